// Picker: a radio group of examples and the visitor's own file. Python sees the event 'chosen'.

const picker = element.querySelector('.lt-picker');
const tiles = () => [...picker.querySelectorAll('[role="radio"]:not([hidden])')];
const input = picker.querySelector('input');
const own = picker.querySelector('.lt-upload');
const surprise = picker.querySelector('.lt-surprise');
let waitsForPicture = false; // the surprise tile shows what came out

function mark(tile) {
  tiles().forEach((other) => {
    other.setAttribute('aria-checked', String(other === tile));
    other.tabIndex = other === tile ? 0 : -1;
  });
  if (tile) own.removeAttribute('aria-checked'); else own.setAttribute('aria-checked', 'true');
}

function choose(tile) {
  mark(tile);
  const names = props.surprises || [];
  const others = names.filter((name) => !props.value || props.value.name !== name);
  waitsForPicture = tile === surprise;
  props.value = { name: waitsForPicture ? others[Math.floor(Math.random() * others.length)] : tile.dataset.name };
  trigger('chosen');
}

picker.addEventListener('click', (event) => {
  const tile = event.target.closest('[role="radio"]');
  if (tile) choose(tile);
});
picker.addEventListener('keydown', (event) => {
  const at = tiles().indexOf(event.target);
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (at < 0 || !step) return;
  event.preventDefault();
  const next = tiles()[(at + step + tiles().length) % tiles().length];
  next.focus();
  choose(next);
});
input.addEventListener('change', async () => {
  const file = input.files[0];
  if (!file) return;
  own.classList.add('lt-busy');
  try {
    const { path, url } = await upload(file);
    props.value = { path, url, orig_name: file.name, size: file.size, meta: { _type: 'gradio.FileData' } };
    const name = own.querySelector('span');
    name.removeAttribute('data-word');
    name.textContent = file.name;
    mark(null);
    trigger('chosen');
  } catch (error) {
    props.value = { failed: `${file.name} could not be sent: ${error.message || error}.` };
    trigger('chosen');
  } finally {
    own.classList.remove('lt-busy');
    input.value = '';
  }
});
on('poster', (url) => {
  if (!waitsForPicture) return;
  waitsForPicture = false;
  surprise.style.setProperty('--picture', `url(${url})`);
  surprise.classList.add('lt-opened');
});
on('look', () => { if (input.accept.startsWith('image')) trigger('chosen'); });
inEveryLanguage(() => translate(element));
