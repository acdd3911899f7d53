// Character: mood, voice, who answers, and who the face is. The value is {mood, voice, talker, persona}; Python reads it
// when a session starts, the stage is told what changes while one is on.

const moods = [...element.querySelectorAll('[role="radio"]')];

const voice = element.querySelector('.lt-voice');

// Some talkers have voices of their own.
function offerVoices() {
  voice.disabled = element.querySelector('.lt-talker').selectedOptions[0].hasAttribute('data-own-voice');
  if (voice.disabled) voice.value = '';
}

function change(wishes) {
  props.value = { ...props.value, ...wishes };
  tell('character', wishes);
}

function feel(tile) {
  moods.forEach((other) => {
    other.setAttribute('aria-checked', String(other === tile));
    other.tabIndex = other === tile ? 0 : -1;
  });
  change({ mood: tile.dataset.mood });
}

moods.forEach((tile, at) => {
  tile.addEventListener('click', () => feel(tile));
  tile.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = moods[(at + step + moods.length) % moods.length];
    next.focus();
    feel(next);
  });
});
voice.addEventListener('change', () => change({ voice: voice.value }));
element.querySelector('.lt-talker').addEventListener('change', (event) => { offerVoices(); change({ talker: event.target.value, voice: voice.value }); });
element.querySelector('textarea').addEventListener('change', (event) => change({ persona: event.target.value.trim() }));
offerVoices();
inEveryLanguage(() => translate(element));
