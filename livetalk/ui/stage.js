// Stage: wires the player, the microphone, the conversation and the controls to the server. Runs once when mounted.
//
// Python sees the event 'session' ({sid, codec, mode, keeps}) and answers with values {sid, b: fragment | place | error |
// end}; it offers server.push([sid, rate, base64]), stop(sid), cut(sid), write([sid, text]), change([sid, wishes]),
// keep([sid, wanted]) and beat(sid). The mode ("talk", "mirror" or "clip") comes from the head of the page.

const find = (selector) => element.querySelector(selector);
const stage = find('.lt-stage');
const message = find('.lt-message');
const player = new Player(find('.lt-canvas'), playerChanged);
const delays = new DelayMeter();
const meter = new VoiceMeter();
const PAUSE_MS = { talk: 350, mirror: 800 }; // a shorter pause is part of speaking
const EARLY_S = 8; // what is said while the avatar gets ready is heard as soon as it is there
const CALM_MS = 1000; // so long after the last voice nothing is urgent
const WORD_MS = 150; // a longer pause may be the end of a turn
const LEVEL_MS = 80; // the loudness of the microphone is shown so often
const FADED_MS = 4500; // a caption leaves so long after its last word
let mode = 'talk';
let sid = null; // secret name of the session that is on
let live = null; // {resolve, reject} of the promise that start() returned, until the first fragment
let asked = null; // {what, at}: what the visitor waits for, to measure the first picture
const firsts = []; // how long the visitor waited for the first picture, each time
let mood = 'off';
let place = 0;
let codec = 'jpeg';
let headphones = false;
let wantsMicrophone = false;
let keeps = false;
const strays = new Set(); // sids of sessions that nobody wants any more
let unheard = 0; // packets of the microphone that did not get through, in a row
let serverDelay = null; // what the server thinks the mirror's delay is; shown until it is measured
let spokeAt = -Infinity;
let postponed = { face: false, wishes: {} }; // what was chosen before the session could be told
bestCodec().then((best) => { codec = best; });

const talk = new Talk(player, meter, {
  room: () => (find('.lt-frame').clientWidth < 480 ? 54 : 84),
  caption(said, unsaid) {
    find('.lt-said').textContent = said;
    find('.lt-unsaid').textContent = unsaid;
    if (said) find('.lt-asked').classList.add('lt-answered');
    stage.classList.remove('lt-faded');
  },
  asked(text) {
    find('.lt-asked').textContent = text;
    find('.lt-asked').classList.remove('lt-answered');
    find('.lt-said').textContent = '';
    find('.lt-unsaid').textContent = '';
    stage.classList.remove('lt-faded');
  },
  told(text, role) { find('.lt-told').textContent = `${role === 'visitor' ? word('you') : word('avatar')}: ${text}`; },
  line(line) { tell('line', { sid, line }); },
  turn({ stopped, soundMs, pictureMs }) {
    find('.lt-reply').textContent = `${Math.max(0, (soundMs - stopped) / 1000).toFixed(2)} s`;
    find('.lt-lips').textContent = `${pictureMs >= soundMs ? '+' : '−'}${Math.abs(Math.round(pictureMs - soundMs))} ms`;
  },
});

const microphone = new Microphone({
  maySend: () => sid && !live,
  packetS() {
    const quietMs = performance.now() - meter.lastMs;
    if (quietMs > CALM_MS) return PACKET_S.quiet;
    const mayEnd = quietMs > WORD_MS; // a turn that ends must be known to have ended
    if (mode === 'talk' && talk.isSpeaking && meter.isOn) return PACKET_S.instant;
    return mode !== 'talk' || mayEnd ? PACKET_S.hasty : PACKET_S.spoken;
  },
  waitingS: () => (live && place === 0 ? EARLY_S : WAITING_S),
  async send(rate, base64) {
    try {
      const answer = await server.push([sid, rate, base64]);
      unheard = 0;
      if (mode === 'talk') talk.heard(answer);
    } catch (error) {
      unheard += 1;
      if (unheard === 12) say(word('lost')); // a second of speech
      throw error;
    }
  },
  frame(samples, rate) {
    meter.hear(samples, rate, talk.isSpeaking);
    showLevel();
    if (mode === 'talk') talk.frame();
  },
  packet(samples, rate) { if (mode === 'mirror') delays.add(delays.spoken, performance.now() / 1000 - samples.length / rate, samples, rate); },
});

let levelAt = 0;
function showLevel() {
  if (performance.now() - levelAt < LEVEL_MS) return;
  levelAt = performance.now();
  stage.style.setProperty('--level', meter.level.toFixed(1));
}

function newSid() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (x) => x.toString(16).padStart(2, '0')).join('');
}

function say(text) {
  message.textContent = text || '';
  message.hidden = !text;
}

function moodName() {
  if (mood === 'waiting' && place > 0) return word('place', { place });
  return { off: word('off'), waiting: word('waiting'), idle: word('idle'), listening: word('listening'), thinking: word('thinking'), speaking: word('speaking'), late: word('late') }[mood];
}

function setMood(next) {
  if (mood !== next) talk.note('state', { state: next });
  mood = next;
  stage.dataset.mood = next;
  const shown = find('.lt-pill b');
  if (shown.textContent !== moodName()) shown.textContent = moodName();
}

function setState(state) {
  stage.dataset.state = state;
  showControls();
}

// Names of the buttons follow what they would do now.
function showControls() {
  const isOn = Boolean(sid);
  const power = isOn ? word('stop') : word('start');
  find('.lt-power').setAttribute('aria-label', power);
  find('.lt-power span').textContent = power;
  const button = find('.lt-talk');
  const isOpen = isOn && microphone.isOpen;
  const hint = isOpen ? word('microphone_off') : isOn ? word('microphone_on') : word('talk_hint');
  button.setAttribute('aria-pressed', String(isOpen));
  button.setAttribute('aria-label', hint);
  button.title = hint;
  find('.lt-talk-name').textContent = isOpen ? word('mute') : word('talk');
  find('.lt-hush').hidden = find('.lt-leave').hidden = !isOn;
  const mark = find('.lt-badge');
  mark.hidden = mode !== 'mirror' || !microphone.isOpen;
  mark.textContent = headphones ? word('mirror_sound') : word('mirror_silent');
}

function moodNow(isSpeaking) {
  if (isSpeaking) return 'speaking';
  if (mode !== 'talk') return microphone.isOpen ? 'listening' : 'idle';
  if (talk.facts.ready === false) return 'waiting';
  if (talk.facts.state === 'thinking' || talk.typedMs !== null) return 'thinking';
  return microphone.isOpen ? 'listening' : 'idle';
}

function playerChanged(kind, detail) {
  if (kind === 'drawn') drawn(detail);
  else if (kind === 'generation') { if (mode === 'talk') { spokeAt = -Infinity; talk.generation(detail); } }
  else if (kind === 'error') {
    codec = 'jpeg'; // this browser promised H.264 and failed: begin again with simpler pictures
    again();
  } else if (kind === 'fragment') fragment(detail);
}

function drawn({ index, state, generation }) {
  find('.lt-canvas').classList.add('lt-drawn');
  if (state === 'speaking') spokeAt = performance.now();
  const quietMs = performance.now() - spokeAt;
  const speaking = quietMs < PAUSE_MS[mode === 'talk' ? 'talk' : 'mirror'];
  stage.dataset.speech = speaking ? 'on' : 'off';
  setMood(moodNow(speaking));
  if (mode === 'talk') talk.drawn(index, generation, state === 'speaking');
  if (quietMs > FADED_MS && mood !== 'thinking') stage.classList.add('lt-faded');
  if (asked && (asked.what === 'start' || state === 'speaking')) {
    const ms = performance.now() - asked.at;
    find('.lt-first').textContent = ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
    firsts.push({ what: asked.what, ms });
    asked = null;
  }
}

function fragment(detail) {
  const { header, pcm, at } = detail;
  if (mode === 'mirror') {
    const heardS = performance.now() / 1000 + at - player.heardTime();
    delays.add(delays.played, heardS, Float32Array.from(pcm, (x) => x / 32768), header.rate);
  }
  const { facts } = header;
  if (mode === 'talk') {
    talk.take(facts);
    talk.fragment(detail);
    find('.lt-answers').hidden = !facts.talker;
    if (find('.lt-who').textContent !== facts.talker) find('.lt-who').textContent = facts.talker || '';
  }
  if (facts.real_time_factor) find('.lt-speed').textContent = word('speed_value', { factor: facts.real_time_factor.toFixed(1) });
  serverDelay = facts.mirror_delay_s;
  const note = find('.lt-notice');
  if (note.textContent !== (facts.notice || '')) note.textContent = facts.notice || '';
}

// Starts a session; resolves with its sid at the first fragment.
async function start() {
  await player.open();
  player.start();
  sid = newSid();
  place = 0;
  postponed = { face: false, wishes: {} };
  spokeAt = -Infinity;
  talk.reset();
  say('');
  setState('waiting');
  setMood('waiting');
  asked = { what: 'start', at: performance.now() };
  const begun = new Promise((resolve, reject) => { live = { resolve, reject }; });
  begun.catch(() => {});
  tell('begun', { sid, mode });
  trigger('session', { sid, codec, mode, keeps });
  return begun;
}

async function stop(isToTell = true) {
  const old = sid;
  sid = null;
  player.stop();
  closeMicrophone();
  find('.lt-canvas').classList.remove('lt-drawn');
  stage.classList.add('lt-faded');
  stage.dataset.speech = 'off';
  setState('off');
  setMood('off');
  if (live) { live.reject(new Error('stopped')); live = null; }
  if (old) tell('ended', { sid: old, keeps });
  if (isToTell && old) await server.stop(old).catch(() => {});
}

async function ensureLive() {
  return live || !sid ? start.running || (start.running = start().finally(() => { start.running = null; })) : sid;
}

// The same once more, with what was chosen meanwhile.
function again() {
  const isOpen = wantsMicrophone;
  return stop().then(() => ensureLive()).then(() => (isOpen ? openMicrophone() : null)).catch(() => {});
}

// A tab that closes does not wait for answers: its place is given back by a message that outlives it.
function leave() {
  if (!sid) return;
  const { root, api_prefix: prefix, components } = window.gradio_config;
  const own = components.find((one) => one.props && one.props.elem_id === 'lt-stage');
  const body = { data: sid, component_id: own.id, fn_name: 'stop', session_hash: window.__gradio_session_hash__ };
  navigator.sendBeacon(`${root}${prefix || '/gradio_api'}/component_server/`, new Blob([JSON.stringify(body)], { type: 'application/json' }));
  stop(false);
}

function closeMicrophone() {
  microphone.close();
  wantsMicrophone = false;
  stage.dataset.microphone = 'off';
  stage.style.setProperty('--level', 0);
  find('.lt-speak').setAttribute('aria-pressed', 'false');
  find('.lt-delay').textContent = '–';
  player.setMuted(false);
  talk.setDuck(1, 'microphone');
  showControls();
}

async function openMicrophone() {
  wantsMicrophone = true;
  try {
    await microphone.open();
  } catch (error) {
    if (!wantsMicrophone) return; // it is not wanted any more
    closeMicrophone();
    const known = { NotAllowedError: word('refused_microphone'), NotFoundError: word('no_microphone'), TypeError: word('no_microphone') };
    say(known[error.name] || word('broken_microphone', { name: error.name }));
    if (mode === 'talk') find('.lt-write input').focus();
    return;
  }
  if (!sid || !wantsMicrophone) { closeMicrophone(); return; }
  say('');
  stage.dataset.microphone = 'on';
  find('.lt-speak').setAttribute('aria-pressed', 'true');
  player.setMuted(mode === 'mirror' && !headphones);
  showControls();
}

async function cut() {
  if (!sid) return;
  if (mode === 'talk') talk.hush();
  player.silence();
  await server.cut(sid).catch(() => talk.setDuck(1, 'lost'));
}

// A typed turn: needs no microphone, and begins the conversation by itself.
async function write(text) {
  if (!text) return;
  const isNew = !sid;
  const begun = ensureLive();
  if (isNew) { find('.lt-asked').textContent = text; stage.classList.remove('lt-faded'); }
  try {
    await begun;
  } catch {
    return;
  }
  talk.typedMs = performance.now();
  if (talk.isSpeaking) { talk.hush(); player.silence(); }
  const answer = await server.write([sid, text]).catch(() => ({ error: word('lost') }));
  if (!answer || !answer.error) return;
  talk.typedMs = null;
  talk.setDuck(1, 'refused');
  say(answer.error);
}
