// Player: draws pictures on the clock of the sound it plays.
//
// A fragment carries pictures (H.264 packets or JPEG) and PCM16 of the same stretch of time. Sound is scheduled on the
// AudioContext clock; the picture to draw follows from the time that is *heard* now. A late fragment moves sound and
// pictures together. A fragment of a new generation replaces everything from its first picture on.

const LEAD_S = 0.1; // scheduled ahead of the first sound, and after every stall
const LEAST_AHEAD_S = 0.01; // a fragment that comes later before its time is late
const SOON_S = 0.02; // scheduled ahead of a late fragment where only silence grows
const FADE_S = 0.005;
const AHEAD_S = 0.012; // of a timer before the picture it is for
const SPARE_S = 0.06; // enough between the arrival of a fragment that left at the last moment and its sound
const LEAST_SPARE_S = 0.03; // too little if even the best of a few has no more
const RECENT = 16; // fragments that tell how much there is between the two
const FEW = 4;
const LEAST_SLIP_S = 0.005;
const SILENT = 0.005; // nobody misses some hundredths of a second that are no louder
const KEPT = 6000; // entries of the debug logs: six minutes of pictures

function parseMessage(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = 4 + length;
  const parts = header.parts.map(([size, key]) => {
    const data = bytes.subarray(at, at + size);
    at += size;
    return { key: Boolean(key), data };
  });
  const pcm = new Int16Array(bytes.buffer.slice(at, at + header.pcm));
  return { header, parts, pcm };
}

async function bestCodec() {
  const asked = new URLSearchParams(window.location.search).get('codec');
  if (asked === 'jpeg' || !window.VideoDecoder) return 'jpeg';
  const support = await VideoDecoder.isConfigSupported({ codec: 'avc1.42c01f', optimizeForLatency: true }).catch(() => null);
  return support && support.supported ? 'h264' : 'jpeg';
}

function keep(list, entry) {
  list.push(entry);
  if (list.length > KEPT) list.shift();
}

class Player {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.changed = changed; // called with (kind, detail) when something worth showing happens
    this.muted = false;
    this.volumeNow = 1;
    this.context = null;
    this.reset();
  }

  reset() {
    this.segments = []; // {at, first, pictures, generation, state, source}
    this.frames = new Map(); // picture index -> {frame, generation, at}: `at` is the context time of its sound
    this.decoder = null;
    this.generation = null;
    this.replacedFrom = 0;
    this.nextIndex = 0;
    this.end = null;
    this.isQuiet = true; // what is scheduled ends in silence
    this.spares = []; // seconds, see schedule()
    this.shown = -1;
    this.shownGeneration = null;
    this.counters = {
      fragments: 0, stale: 0, lostFragments: 0, received: 0, decoded: 0, drawn: 0, skipped: 0, stalls: 0,
      stallMs: 0, slippedMs: 0, heldMs: 0, longestHeldMs: 0, decodeErrors: 0, heardSamples: 0,
    };
    this.log = { fragments: [], drawn: [], heard: [], stalls: [], generations: [], offsets: [] };
  }

  // Must be called from a click: browsers give sound and its clock only then.
  async open() {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: 24000, latencyHint: 'interactive' });
      this.output = this.context.createGain();
      this.output.connect(this.context.destination);
      this.volume = null;
    }
    this.setMuted(this.muted);
    await this.context.resume();
  }

  setMuted(muted) {
    this.muted = muted;
    this.setVolume(this.volumeNow);
  }

  // Loudness 0..1 of everything, from context time `from` on (now if left out).
  setVolume(volume, from = 0) {
    this.volumeNow = volume;
    if (!this.output) return;
    const { gain } = this.output;
    gain.cancelScheduledValues(this.context.currentTime);
    gain.setTargetAtTime(this.muted ? 0 : volume, Math.max(from, this.context.currentTime), FADE_S);
  }

  start() {
    this.reset();
    this.volume = this.freshVolume();
    this.running = true;
    this.look();
  }

  // Draws, and comes back just before the next picture is due: 60 looks a second would cost more than 16 pictures do.
  look() {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frameRequest);
    this.frameRequest = requestAnimationFrame(() => {
      if (!this.running) return;
      this.draw();
      this.timer = setTimeout(() => this.look(), 1000 * this.nextDueS());
    });
  }

  // Seconds until the next picture is due, a screen's picture less; a little while if it is not there.
  nextDueS() {
    const heard = this.heardTime();
    const [segment] = this.segments;
    if (!segment) return AHEAD_S;
    const next = heard < segment.at ? segment.at : segment.at + (Math.floor((heard - segment.at) * 16) + 1) / 16;
    const [, behind] = this.segments;
    return Math.max(0, Math.min(behind && heard < behind.at ? behind.at : next, next) - heard - AHEAD_S);
  }

  stop() {
    this.running = false;
    cancelAnimationFrame(this.frameRequest);
    clearTimeout(this.timer);
    this.silence();
    this.segments = [];
    this.frames.forEach(({ frame }) => frame.close());
    this.frames.clear();
    this.closeDecoder();
    this.end = null;
  }

  freshVolume() {
    const gain = this.context.createGain();
    gain.connect(this.output);
    return gain;
  }

  // Fades out everything scheduled; what is pushed later sounds again.
  silence() {
    if (!this.context || !this.volume) return;
    const old = this.volume;
    old.gain.setTargetAtTime(0, this.context.currentTime, FADE_S);
    this.segments.forEach((segment) => this.stopSound(segment, this.context.currentTime + 10 * FADE_S));
    setTimeout(() => old.disconnect(), 200);
    this.volume = this.freshVolume();
  }

  stopSound(segment, when) {
    if (!segment.source || segment.heard.until <= when) return;
    segment.heard.until = Math.max(when, segment.heard.at);
    segment.source.stop(when);
  }

  // Context time of the sample that leaves the loudspeaker now.
  heardTime() {
    const stamp = this.context.getOutputTimestamp ? this.context.getOutputTimestamp() : null;
    if (stamp && stamp.performanceTime > 0) return stamp.contextTime + (performance.now() - stamp.performanceTime) / 1000;
    return this.context.currentTime - (this.context.outputLatency || this.context.baseLatency || 0);
  }

  push(message) {
    const { header, parts, pcm } = message;
    this.counters.fragments += 1;
    this.counters.lostFragments += Math.max(0, header.index - this.nextIndex);
    this.nextIndex = header.index + 1;
    keep(this.log.fragments, { index: header.index, first: header.first, pictures: header.pictures, generation: header.generation, state: header.state });
    if (this.generation !== null && header.generation < this.generation) {
      this.counters.stale += 1;
      return;
    }
    if (header.generation !== this.generation || header.flush) this.replaceFrom(header.first, header.generation);
    if (!parts.length) return;
    this.counters.received += parts.length;
    const at = this.schedule(header, pcm);
    this.decode(header, parts);
    this.changed('fragment', { header, pcm, at });
  }

  // Drops what is held from picture `first` on. Pictures before it are still shown, for the face must not jump, but
  // what they say is not heard any more: whoever interrupts wants silence now.
  replaceFrom(first, generation) {
    const fresh = this.generation === null;
    const cut = this.timeOf(first);
    const now = this.context.currentTime;
    if (generation !== this.generation) keep(this.log.generations, { generation, first, shown: this.shown, cut: Math.max(cut || now, now), now });
    this.generation = generation;
    this.changed('generation', { generation, first, cut: cut === null ? now : cut });
    if (fresh) return;
    this.silence();
    this.isQuiet = true;
    if (cut === null || cut <= now) {
      this.segments = [];
      this.end = null;
    } else {
      for (const segment of this.segments) {
        segment.pictures = Math.max(0, Math.min(segment.pictures, first - segment.first));
      }
      this.segments = this.segments.filter((segment) => segment.pictures > 0);
      this.end = cut;
    }
    this.frames.forEach(({ frame }, index) => {
      if (index >= first) { frame.close(); this.frames.delete(index); }
    });
    this.replacedFrom = first;
    this.retireDecoder();
  }

  timeOf(picture) {
    for (const segment of this.segments) {
      if (picture >= segment.first && picture < segment.first + segment.pictures) return segment.at + (picture - segment.first) / 16;
    }
    const last = this.segments[this.segments.length - 1];
    return last && picture === last.first + last.pictures ? this.end : null;
  }

  // When the sound of a fragment is heard: behind the one before, or a little from now if that is over.
  //
  // The server says how far ahead of its own clock a fragment left. What would remain if it had left at the last moment
  // is spare: it grows when a stall moves everything back, or when the sound device is slower than the server. Visitors
  // wait for it in every answer, and without it the next late fragment would be a stall. So silence is elastic: shorter
  // where too much is spare, longer where too little is or where a fragment comes late behind it. The last picture of a
  // silent fragment stays less than a sixteenth of a second, or one more at most; where that does not do, it is a stall.
  schedule(header, pcm) {
    const now = this.context.currentTime;
    const isSilent = pcm.every((x) => Math.abs(x) < 32768 * SILENT);
    let at = this.end;
    if (at === null) at = now + LEAD_S;
    else if (at < now + LEAST_AHEAD_S) at = this.late(header, at, now);
    this.spares.push(at - now - (header.facts.ahead_s || 0));
    if (this.spares.length > RECENT) this.spares.shift();
    const stretch = isSilent ? this.stretch(0.5 / header.fps) : 0;
    this.isQuiet = isSilent;
    const samples = pcm.length + Math.round(stretch * header.rate);
    let source = null;
    let heard = null;
    if (samples > 0) {
      const buffer = this.context.createBuffer(1, samples, header.rate);
      const channel = buffer.getChannelData(0);
      for (let i = 0; i < Math.min(samples, pcm.length); i += 1) channel[i] = pcm[i] / 32768;
      source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.volume);
      source.start(at);
      this.counters.heardSamples += samples;
      heard = { generation: header.generation, first: header.first, at, until: at + samples / header.rate, state: header.state };
      keep(this.log.heard, heard);
    }
    const { first, pictures, generation, state } = header;
    this.segments.push({ at, first, pictures, generation, state, source, heard });
    this.end = at + pictures / header.fps + stretch;
    return at;
  }

  // When a late fragment is heard that should have been at `at`: soon if only silence grows, or after a stall.
  late(header, at, now) {
    this.spares = [];
    if (this.isQuiet && now + SOON_S - at <= 1 / header.fps) {
      this.noteHeld(now + SOON_S - at);
      return now + SOON_S;
    }
    const ms = 1000 * (now + LEAD_S - at);
    this.counters.stalls += 1;
    this.counters.stallMs += Math.round(ms);
    keep(this.log.stalls, { picture: header.first, ms });
    this.changed('late', {});
    return now + LEAD_S;
  }

  // Seconds by which a silent fragment is made longer, negative: shorter, at most `most`; see schedule().
  stretch(most) {
    const tooMuch = this.spares.length < RECENT ? 0 : Math.min(...this.spares) - SPARE_S;
    const tooLittle = this.spares.length < FEW ? 0 : LEAST_SPARE_S - Math.max(...this.spares.slice(-FEW));
    const stretch = tooMuch >= LEAST_SLIP_S ? -Math.min(tooMuch, most) : Math.min(Math.max(tooLittle, 0), most);
    if (stretch < 0) this.counters.slippedMs -= Math.round(1000 * stretch);
    else this.noteHeld(stretch);
    this.spares = this.spares.map((value) => value + stretch);
    return stretch;
  }

  noteHeld(seconds) {
    const ms = Math.round(1000 * seconds);
    this.counters.heldMs += ms;
    this.counters.longestHeldMs = Math.max(this.counters.longestHeldMs, ms);
  }

  decode(header, parts) {
    if (header.codec === 'jpeg') {
      parts.forEach((part, j) => {
        const generation = this.generation;
        createImageBitmap(new Blob([part.data], { type: 'image/jpeg' }))
          .then((bitmap) => this.hold(header.first + j, generation, bitmap))
          .catch(() => { this.counters.decodeErrors += 1; });
      });
      return;
    }
    if (!this.decoder) this.openDecoder(header.codec);
    if (this.decoder.state === 'closed') return;
    parts.forEach((part, j) => {
      this.decoder.decode(new EncodedVideoChunk({
        type: part.key ? 'key' : 'delta', timestamp: (header.first + j) * 62500, data: part.data,
      }));
    });
  }

  openDecoder(codec) {
    const { generation } = this;
    this.decoder = new VideoDecoder({
      output: (frame) => this.hold(Math.round(frame.timestamp / 62500), generation, frame),
      error: () => { this.counters.decodeErrors += 1; this.changed('error', {}); },
    });
    this.decoder.configure({ codec, optimizeForLatency: true });
  }

  // Lets the old decoder deliver what is still wanted of it, then ends it.
  retireDecoder() {
    const old = this.decoder;
    if (!old) return;
    this.decoder = null;
    if (old.state === 'configured') old.flush().catch(() => {}).finally(() => old.state !== 'closed' && old.close());
  }

  closeDecoder() {
    if (this.decoder && this.decoder.state !== 'closed') this.decoder.close();
    this.decoder = null;
  }

  hold(index, generation, frame) {
    this.counters.decoded += 1;
    const old = this.frames.get(index);
    const replaced = generation < this.generation && (index >= this.replacedFrom || (old && old.generation > generation));
    if (!this.running || replaced) { frame.close(); return; }
    if (old) old.frame.close();
    const at = this.timeOf(index);
    this.frames.set(index, { frame, generation, at });
    const heard = this.heardTime();
    const now = document.hidden && this.due(heard); // nothing is drawn in a hidden tab
    if (now) this.forget(now.index);
    else if (at !== null && at <= heard) this.look();
  }

  // The last picture whose time has come, and its segment; null before the first.
  due(heard) {
    while (this.segments.length > 1 && this.segments[1].at <= heard) this.segments.shift();
    const segment = this.segments[0];
    if (!segment || heard < segment.at) return null;
    const position = Math.min(segment.pictures - 1, Math.floor((heard - segment.at) * 16));
    return { index: segment.first + position, segment };
  }

  // Draws the newest picture whose time has come. Mostly that is the one whose sound is heard now; where decoding is
  // late, a picture that is a little old is better than none.
  draw() {
    const heard = this.heardTime();
    const now = this.due(heard);
    if (!now) return;
    let index = -1;
    this.frames.forEach((_, other) => { if (other <= now.index && other > index) index = other; });
    const held = this.frames.get(index);
    if (!held || (index <= this.shown && held.generation === this.shownGeneration)) return;
    this.paint(held.frame);
    const expected = this.shown < 0 ? index : this.shown + 1;
    this.counters.skipped += Math.max(0, index - expected);
    this.counters.drawn += 1;
    this.shown = index;
    this.shownGeneration = held.generation;
    const offsetMs = held.at === null ? null : 1000 * (heard - held.at);
    keep(this.log.drawn, { index, generation: held.generation, heard, offsetMs });
    if (offsetMs !== null) keep(this.log.offsets, offsetMs);
    this.forget(index + 1);
    this.changed('drawn', { index, state: now.segment.state, generation: held.generation });
  }

  // Closes the pictures before `index`: a decoder stops when too many of its frames are held.
  forget(index) {
    this.frames.forEach(({ frame }, other) => {
      if (other < index) { frame.close(); this.frames.delete(other); }
    });
  }

  // The picture fills the canvas, which has the resolution of the screen: the browser enlarges it smoothly.
  paint(frame) {
    const { canvas } = this;
    const side = Math.max(2, Math.min(1024, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1))));
    if (canvas.width !== side) { canvas.width = side; canvas.height = side; }
    const brush = canvas.getContext('2d', { alpha: false });
    brush.imageSmoothingEnabled = true;
    brush.imageSmoothingQuality = 'high';
    brush.drawImage(frame, 0, 0, side, side);
  }
}
