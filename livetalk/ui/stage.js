// Stage: wires the player, the microphone and the controls to the server. Runs once when the component is mounted.
//
// Python sees the event 'session' ({sid, codec}) and answers with values {sid, b: fragment | error | end}; it offers
// the functions server.push([sid, rate, base64]), server.stop(sid), server.cut(sid) and server.place(sid).

const find = (selector) => element.querySelector(selector);
const stage = find('.lt-stage');
const message = find('.lt-message');
const player = new Player(find('.lt-canvas'), playerChanged);
const delays = new DelayMeter();
const PAUSE_MS = 800; // a shorter pause is part of speaking
let sid = null; // secret name of the session that is on
let live = null; // {resolve, reject} of the promise that start() returned, until the first fragment
let asked = null; // {what, at}: what the visitor waits for, to measure the first picture
const firsts = []; // how long the visitor waited for the first picture, each time
let mood = 'off';
let codec = 'jpeg';
let headphones = false;
let serverDelay = null; // what the server thinks the mirror's delay is; shown until it is measured
let spokeAt = -Infinity;
let notice = null; // what the server last had to say about its speed
bestCodec().then((best) => { codec = best; });

const microphone = new Microphone(
  (rate, base64) => server.push([sid, rate, base64]),
  (samples, rate) => {
    const startS = performance.now() / 1000 - samples.length / rate;
    delays.add(delays.spoken, startS, samples, rate);
    const peak = samples.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    find('.lt-speak').style.setProperty('--level', Math.min(1, 1.6 * Math.sqrt(peak)).toFixed(2));
  },
);

function newSid() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (x) => x.toString(16).padStart(2, '0')).join('');
}

function say(text) {
  message.textContent = text || '';
  message.hidden = !text;
}

const NAMES = { off: 'Ready', waiting: 'Waking up', idle: 'Here', listening: 'Listening', speaking: 'Speaking', late: 'Catching up' };

function setMood(next, text) {
  const label = text || NAMES[next];
  const shown = find('.lt-pill b');
  if (shown.textContent !== label) shown.textContent = label;
  if (mood === next) return;
  mood = next;
  stage.dataset.mood = next;
}

function setState(state) {
  stage.dataset.state = state;
  const on = state !== 'off';
  find('.lt-power').setAttribute('aria-label', on ? 'Stop' : 'Start');
  find('.lt-power span').textContent = on ? 'Stop' : 'Start';
}

function badge() {
  const mark = find('.lt-badge');
  mark.hidden = !microphone.isOpen;
  mark.textContent = headphones ? 'Mirror with sound' : 'Mirror, silent';
}

function playerChanged(kind, detail) {
  if (kind === 'drawn') {
    find('.lt-canvas').classList.add('lt-drawn');
    if (detail.state === 'speaking') spokeAt = performance.now();
    const speaking = performance.now() - spokeAt < PAUSE_MS;
    stage.dataset.speech = speaking ? 'on' : 'off';
    setMood(speaking ? 'speaking' : microphone.isOpen ? 'listening' : 'idle');
    if (asked && (asked.what === 'start' || detail.state === 'speaking')) {
      const ms = performance.now() - asked.at;
      find('.lt-first').textContent = ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
      firsts.push({ what: asked.what, ms });
      asked = null;
    }
  } else if (kind === 'late') {
    setMood('late');
  } else if (kind === 'error') {
    codec = 'jpeg'; // this browser promised H.264 and failed: begin again with simpler pictures
    stop().then(() => ensureLive()).catch(() => {});
  } else if (kind === 'fragment') {
    const heardS = performance.now() / 1000 + detail.at - player.heardTime();
    const sound = Float32Array.from(detail.pcm, (x) => x / 32768);
    delays.add(delays.played, heardS, sound, detail.header.rate);
    const { facts } = detail.header;
    if (facts.real_time_factor) find('.lt-speed').textContent = `${facts.real_time_factor.toFixed(1)} × live`;
    serverDelay = facts.mirror_delay_s;
    if (facts.notice !== notice) {
      if (facts.notice || message.textContent === notice) say(facts.notice);
      notice = facts.notice;
    }
  }
}

// Starts a session; resolves with its sid at the first fragment.
async function start() {
  await player.open();
  player.start();
  sid = newSid();
  say('');
  setState('waiting');
  setMood('waiting');
  asked = { what: 'start', at: performance.now() };
  const begun = new Promise((resolve, reject) => { live = { resolve, reject }; });
  begun.catch(() => {});
  trigger('session', { sid, codec });
  watchPlace(sid);
  return begun;
}

// While nothing has come yet: the visitor's place in line, asked for once a second.
async function watchPlace(mine) {
  while (sid === mine && live) {
    await new Promise((resolve) => { setTimeout(resolve, 1000); });
    if (sid !== mine || !live) return;
    const place = await server.place(mine).catch(() => 0);
    if (sid === mine && live && place > 0) setMood('waiting', `Place ${place} in line`);
  }
}

async function stop(tell = true) {
  const old = sid;
  sid = null;
  player.stop();
  closeMicrophone();
  find('.lt-canvas').classList.remove('lt-drawn');
  stage.dataset.speech = 'off';
  setState('off');
  setMood('off');
  if (live) { live.reject(new Error('stopped')); live = null; }
  if (tell && old) await server.stop(old).catch(() => {});
}

async function ensureLive() {
  return live || !sid ? start.running || (start.running = start().finally(() => { start.running = null; })) : sid;
}

function closeMicrophone() {
  microphone.close();
  stage.dataset.microphone = 'off';
  find('.lt-speak').setAttribute('aria-pressed', 'false');
  find('.lt-speak').style.setProperty('--level', 0);
  find('.lt-delay').textContent = '–';
  player.setMuted(false);
  badge();
}

async function openMicrophone() {
  try {
    await microphone.open();
  } catch (error) {
    closeMicrophone();
    say(`The microphone could not be opened (${error.name}). Allow it in the browser, or play a speech clip instead.`);
    return;
  }
  if (!sid) { microphone.close(); return; }
  say('');
  stage.dataset.microphone = 'on';
  find('.lt-speak').setAttribute('aria-pressed', 'true');
  player.setMuted(!headphones);
  badge();
}

async function cut() {
  if (!sid) return;
  player.silence();
  await server.cut(sid).catch(() => {});
}

find('.lt-power').addEventListener('click', () => (sid ? stop() : ensureLive().catch(() => {})));
find('.lt-cut').addEventListener('click', cut);
find('.lt-speak').addEventListener('click', async () => {
  if (microphone.isOpen) { closeMicrophone(); return; }
  await ensureLive().then(openMicrophone, () => {});
});
find('.lt-headphones').addEventListener('click', (event) => {
  headphones = !headphones;
  event.currentTarget.setAttribute('aria-pressed', String(headphones));
  player.setMuted(!headphones);
  badge();
});

watch('value', () => {
  const value = props.value;
  if (!value) return;
  if ('poster' in value) {
    say(value.notice);
    if (!value.poster) return; // it could not be read: what is on goes on
    find('.lt-poster').src = value.poster;
    if (sid) stop().then(() => ensureLive()).catch(() => {}).then(() => say(value.notice));
    return;
  }
  if (!sid || value.sid !== sid) return;
  if (value.error) { stop(false); say(value.error); return; }
  if (value.end) { stop(false); say(value.end === true ? '' : value.end); return; }
  if (live) { live.resolve(sid); live = null; setState('live'); }
  player.push(parseMessage(value.b));
});

setInterval(() => {
  if (!sid || !element.isConnected) return;
  if (microphone.isOpen) {
    const delay = delays.measure() || serverDelay;
    if (delay) find('.lt-delay').textContent = `${delay.toFixed(1)} s`;
  }
  if (player.end !== null && player.context.currentTime > player.end + 1) setMood('late');
  const recent = player.log.offsets.slice(-32).sort((a, b) => a - b);
  if (recent.length) find('.lt-offset').textContent = `${Math.round(recent[recent.length >> 1])} ms`;
}, 2000);

// For tests, benchmarks and curious people: everything the player counted.
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
  player,
  microphone,
  delays,
  firsts,
  get sid() { return sid; },
  get mood() { return mood; },
  get codec() { return codec; },
  get quietS() { return (performance.now() - spokeAt) / 1000; },
};
if (props.poster) find('.lt-poster').src = props.poster;
