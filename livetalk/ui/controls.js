// Controls: buttons, keys, other parts of the page and the server's values, wired to the stage (stage.js comes before).

find('.lt-power').addEventListener('click', () => (sid ? stop() : ensureLive().catch(() => {})));
find('.lt-cut').addEventListener('click', cut);
find('.lt-hush').addEventListener('click', cut);
find('.lt-leave').addEventListener('click', () => { stop(); find('.lt-talk').focus(); });
find('.lt-talk').addEventListener('click', () => {
  if (sid && microphone.isOpen) { closeMicrophone(); return; }
  ensureLive().catch(() => {});
  openMicrophone();
});
find('.lt-speak').addEventListener('click', async () => {
  if (microphone.isOpen) { closeMicrophone(); return; }
  await ensureLive().then(openMicrophone, () => {});
});
find('.lt-headphones').addEventListener('click', (event) => {
  headphones = !headphones;
  event.currentTarget.setAttribute('aria-pressed', String(headphones));
  player.setMuted(!headphones);
  showControls();
});
find('.lt-write').addEventListener('submit', (event) => {
  event.preventDefault();
  const field = find('.lt-write input');
  const text = field.value.trim();
  field.value = '';
  write(text);
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && sid && mode === 'talk' && element.isConnected) cut();
});
window.addEventListener('pagehide', leave);
on('mode', (next) => {
  if (next === mode) return;
  if (sid) stop();
  mode = next;
  stage.dataset.mode = next;
  say('');
  showControls();
});
on('suggestion', (text) => write(text));
on('keep', (wanted) => {
  keeps = wanted;
  if (sid && !live && mode === 'talk') server.keep([sid, wanted]).catch(() => {});
});
on('character', (wishes) => {
  if (!sid || mode !== 'talk') return;
  if ('talker' in wishes) again();
  else if (live) Object.assign(postponed.wishes, wishes);
  else change(wishes);
});

async function change(wishes) {
  const answer = await server.change([sid, wishes]).catch(() => ({ error: word('lost') }));
  if (answer && answer.error) say(answer.error);
}

// The first fragment has come.
function begun() {
  const { face, wishes } = postponed;
  postponed = { face: false, wishes: {} };
  place = 0;
  live.resolve(sid);
  live = null;
  setState('live');
  if (Object.keys(wishes).length) change(wishes);
  if (face) tell('look', null);
}

// A session may have been stopped before it was on, when there was nothing to stop yet.
function stopStray(value) {
  if (value.end || value.error || strays.has(value.sid)) return;
  strays.add(value.sid);
  server.stop(value.sid).catch(() => strays.delete(value.sid));
}

watch('value', () => {
  const value = props.value;
  if (!value) return;
  if ('poster' in value) {
    say(value.notice);
    if (!value.poster) return; // it could not be read: what is on goes on
    find('.lt-poster').src = value.poster;
    tell('poster', value.poster);
    if (!sid || value.changed) return;
    if (live && mode === 'talk') postponed.face = true; // whoever waits keeps the place in line
    else again().then(() => say(value.notice));
    return;
  }
  if (value.sid !== sid) { stopStray(value); return; }
  if (value.place) { place = value.place; setMood('waiting'); return; }
  if (value.error) { stop(false); say(value.error); return; }
  if (value.end) { stop(false); say(value.end === true ? '' : value.end); return; }
  if (live) begun();
  player.push(parseMessage(value.b));
});

setInterval(() => {
  if (!sid || live || !element.isConnected) return;
  server.beat(sid).catch(() => {});
  if (microphone.isOpen) {
    const delay = delays.measure() || serverDelay;
    if (delay) find('.lt-delay').textContent = `${delay.toFixed(1)} s`;
  }
  if (player.end !== null && player.context.currentTime > player.end + 1) setMood('late');
  const recent = player.log.offsets.slice(-32).sort((a, b) => a - b);
  if (recent.length) find('.lt-offset').textContent = `${Math.round(recent[recent.length >> 1])} ms`;
}, 2000);

// For tests, benchmarks and curious people: everything the player and the conversation counted.
window.livetalk = {
  ensureLive,
  // For the button beside the stage: the sid of a session that is on, or null.
  async play() {
    const name = await ensureLive().catch(() => null);
    if (name) {
      asked = { what: 'play', at: performance.now() };
      closeMicrophone();
    }
    return name;
  },
  stop,
  write,
  player,
  microphone,
  meter,
  delays,
  firsts,
  talk,
  log: talk.log,
  turns: talk.turns,
  get sid() { return sid; },
  get talking() { return mode === 'talk' && sid && !live ? sid : null; },
  get mode() { return mode; },
  get mood() { return mood; },
  get codec() { return codec; },
  get quietS() { return (performance.now() - spokeAt) / 1000; },
};
inEveryLanguage(() => { translate(element); setMood(mood); showControls(); });
if (props.poster) find('.lt-poster').src = props.poster;
tell('ready', null);
