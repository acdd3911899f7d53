// Transcript: what was said and when; copied, or saved as text or as a video. Python sees the event 'film' ({sid}).

const find = (selector) => element.querySelector(selector);
const list = find('.lt-lines');
const scroll = find('.lt-scroll');
const newest = find('.lt-newest');
const rows = new Map(); // "sid number" -> {row, line}
let kept = null; // sid of a conversation that was recorded and has ended

const clock = (seconds) => `${String(Math.floor(seconds / 60)).padStart(2, '0')}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
const name = (line) => (line.role === 'visitor' ? word('you') : word('avatar'));

function isAtEnd() { return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40; }

function follow(wasAtEnd) {
  if (wasAtEnd) scroll.scrollTop = scroll.scrollHeight;
  newest.hidden = wasAtEnd || isAtEnd();
}

function newRow(line) {
  const row = document.createElement('li');
  row.className = `lt-said-by-${line.role}`;
  row.innerHTML = '<p class="lt-meta"><b></b><time></time></p><p class="lt-text"></p>';
  return row;
}

function show(row, line) {
  row.querySelector('b').textContent = name(line);
  row.querySelector('time').textContent = clock(line.start_s);
  row.querySelector('.lt-text').textContent = line.text;
  row.classList.toggle('lt-broken', Boolean(line.is_cut));
  if (line.is_cut) row.querySelector('.lt-text').dataset.cut = word('interrupted'); else delete row.querySelector('.lt-text').dataset.cut;
}

// A line that began earlier stands earlier, whichever was told first.
function place(row, sid, number) {
  const later = [...rows.entries()].filter(([key, held]) => key.startsWith(sid) && held.line.number > number && held.row.isConnected);
  const before = later.sort((a, b) => a[1].line.number - b[1].line.number)[0];
  list.insertBefore(row, before ? before[1].row : null);
}

on('line', ({ sid, line }) => {
  const key = `${sid} ${line.number}`;
  const held = rows.get(key);
  const wasAtEnd = isAtEnd();
  if (!line.text) {
    if (held) { held.row.remove(); rows.delete(key); }
  } else {
    const row = held ? held.row : newRow(line);
    rows.set(key, { row, line });
    show(row, line);
    if (!held) place(row, sid, line.number);
  }
  const isEmpty = rows.size === 0;
  find('.lt-empty').hidden = !isEmpty;
  find('.lt-copy').disabled = find('.lt-save').disabled = isEmpty;
  follow(wasAtEnd);
});

function asText() {
  return [...list.querySelectorAll('li')].map((row) => {
    const [who, when, what] = ['b', 'time', '.lt-text'].map((part) => row.querySelector(part).textContent);
    return `[${when}] ${who}: ${what}${row.classList.contains('lt-broken') ? ' —' : ''}\n`;
  }).join('');
}

function save(url, file) {
  const link = document.createElement('a');
  link.href = url;
  link.download = file;
  link.click();
}

function hint(button, text) {
  button.title = text;
  button.setAttribute('aria-label', text);
}

find('.lt-copy').addEventListener('click', async () => {
  await navigator.clipboard.writeText(asText());
  hint(find('.lt-copy'), word('copied'));
  find('.lt-copy').classList.add('lt-done');
  setTimeout(() => { hint(find('.lt-copy'), word('copy')); find('.lt-copy').classList.remove('lt-done'); }, 1600);
});
find('.lt-save').addEventListener('click', () => {
  const url = URL.createObjectURL(new Blob([asText()], { type: 'text/plain' }));
  save(url, 'livetalk.txt');
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});
find('.lt-film').addEventListener('click', () => trigger('film', { sid: kept }));
find('.lt-keep input').addEventListener('change', (event) => {
  tell('keep', event.target.checked);
  if (!event.target.checked) { kept = null; find('.lt-film').hidden = true; }
});
on('begun', () => { kept = null; find('.lt-film').hidden = true; });
on('ended', ({ sid, keeps }) => {
  if (!keeps || ![...rows.keys()].some((key) => key.startsWith(sid))) return;
  kept = sid;
  find('.lt-film').hidden = false;
});
scroll.addEventListener('scroll', () => { if (isAtEnd()) newest.hidden = true; });
newest.addEventListener('click', () => { scroll.scrollTop = scroll.scrollHeight; });
element.addEventListener('click', (event) => {
  const suggestion = event.target.closest('.lt-suggestion');
  if (suggestion) tell('suggestion', suggestion.textContent);
});
watch('value', () => { if (props.value && props.value.url) save(props.value.url, 'livetalk.mp4'); });
inEveryLanguage(() => {
  translate(element);
  rows.forEach(({ row, line }) => show(row, line));
});
