// Microphone: 16 kHz PCM16 in small packets, one request under way at a time, never more than a second behind.
// VoiceMeter: is somebody speaking, judged by loudness alone: quick, and only good enough to lower a volume.
// DelayMeter: how long it takes from the visitor's voice to the mouth that repeats it.

const FRAME_S = 0.02; // loudness is judged this often
const PACKET_S = { instant: 0.02, hasty: 0.04, spoken: 0.08, quiet: 0.16 }; // what is sent at once: every request costs both sides work
const WAITING_S = 1.0; // older sound is not sent any more

const MICROPHONE_WORKLET = `
class Packets extends AudioWorkletProcessor {
  constructor() { super(); this.size = Math.round(sampleRate * ${FRAME_S}); this.fill = 0; this.packet = new Float32Array(this.size); }
  process(inputs) {
    const input = inputs[0][0];
    if (!input) return true;
    for (const sample of input) {
      this.packet[this.fill++] = sample;
      if (this.fill === this.size) { this.port.postMessage(this.packet); this.packet = new Float32Array(this.size); this.fill = 0; }
    }
    return true;
  }
}
registerProcessor('livetalk-packets', Packets);
`;

function toBase64(int16) {
  const bytes = new Uint8Array(int16.buffer, int16.byteOffset, int16.byteLength);
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function joined(parts) {
  const whole = new Float32Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) { whole.set(part, at); at += part.length; }
  return whole;
}

class Microphone {
  // send(rate, base64) -> promise, while maySend(); frame and packet are called with (samples, rate) as it is recorded.
  // packetS() -> how much is sent at once, waitingS() -> how much may wait to be sent
  constructor({ send, maySend, packetS, waitingS, frame, packet }) {
    this.send = send;
    this.maySend = maySend;
    this.packetS = packetS;
    this.waitingS = waitingS;
    this.heardFrame = frame;
    this.heardPacket = packet;
    this.counters = { packets: 0, sent: 0, dropped: 0, failed: 0 };
  }

  open() {
    this.opening = this.opening || this.begin().finally(() => { this.opening = null; });
    return this.opening;
  }

  // All is ready before the visitor is asked, so that no word is lost between permission and recording.
  async begin() {
    const ready = this.recorder(new AudioContext({ sampleRate: 16000 }));
    ready.catch(() => {});
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
      });
      await ready;
      try {
        this.source = this.context.createMediaStreamSource(this.stream);
      } catch { // some browsers refuse a stream of another rate: use theirs and say so with every packet
        this.context.close();
        await this.recorder(new AudioContext());
        this.source = this.context.createMediaStreamSource(this.stream);
      }
      this.node = new AudioWorkletNode(this.context, 'livetalk-packets', { numberOfOutputs: 0 });
      this.waiting = [];
      this.frames = [];
      this.node.port.onmessage = (event) => this.frame(event.data);
      this.source.connect(this.node);
      await this.context.resume();
    } catch (error) {
      this.close();
      throw error;
    }
  }

  async recorder(context) {
    this.context = context;
    const url = URL.createObjectURL(new Blob([MICROPHONE_WORKLET], { type: 'text/javascript' }));
    await context.audioWorklet.addModule(url);
    URL.revokeObjectURL(url);
  }

  get isOpen() { return Boolean(this.node); }

  frame(samples) {
    this.heardFrame(samples, this.context.sampleRate);
    this.frames.push(samples);
    if (this.frames.length * FRAME_S < this.packetS() - FRAME_S / 2) return;
    const packet = joined(this.frames.splice(0));
    this.counters.packets += 1;
    this.heardPacket(packet, this.context.sampleRate);
    this.waiting.push(packet);
    while (this.lengthS(this.waiting) > this.waitingS()) { this.waiting.shift(); this.counters.dropped += 1; }
    if (!this.sending && this.maySend()) this.sendWaiting();
  }

  lengthS(packets) { return packets.reduce((sum, packet) => sum + packet.length, 0) / this.context.sampleRate; }

  async sendWaiting() {
    this.sending = true;
    while (this.waiting.length && this.node) {
      const packets = this.waiting.splice(0);
      const pcm = Int16Array.from(joined(packets), (x) => Math.max(-32768, Math.min(32767, Math.round(x * 32767))));
      try {
        await this.send(this.context.sampleRate, toBase64(pcm));
        this.counters.sent += packets.length;
      } catch {
        this.counters.failed += packets.length;
      }
    }
    this.sending = false;
  }

  close() {
    if (this.node) this.node.port.onmessage = null;
    if (this.source) this.source.disconnect();
    if (this.stream) this.stream.getTracks().forEach((track) => track.stop());
    if (this.context) this.context.close();
    this.node = this.source = this.stream = this.context = null;
    this.waiting = [];
  }
}

class VoiceMeter {
  constructor() {
    this.floor = -60; // dB of the quiet room, follows it slowly
    this.loud = 0; // of the last frames, how many were loud, fading
    this.lastMs = -Infinity; // when voice was last heard, by performance.now()
    this.level = 0; // 0..1, for a display
  }

  // `careful`: the avatar speaks, and some of it may come back through the microphone.
  hear(samples, rate, careful) {
    let sum = 0;
    for (const x of samples) sum += x * x;
    const db = 10 * Math.log10(sum / samples.length + 1e-9);
    this.floor = Math.max(-65, Math.min(-35, db < this.floor ? 0.8 * this.floor + 0.2 * db : this.floor + 0.02));
    const isLoud = db > Math.max(this.floor + (careful ? 18 : 12), careful ? -38 : -48);
    this.loud = isLoud ? Math.min(4, this.loud + 1) : Math.max(0, this.loud - 1);
    if (isLoud && this.loud > 1) this.lastMs = performance.now();
    this.level = Math.max(0, Math.min(1, (db + 55) / 45));
  }

  get isOn() { return this.loud > 2; }
}

// Compares the loudness that was recorded with the loudness that was played, on one clock, and finds the shift that
// fits best. It measures the whole way, and needs no help from the server.
class DelayMeter {
  constructor() {
    this.step = 0.02;
    this.span = 400; // steps kept: 8 s
    this.spoken = new Map();
    this.played = new Map();
    this.delay = null;
  }

  add(track, startS, samples, rate) {
    const size = Math.round(rate * this.step);
    for (let at = 0; at + size <= samples.length; at += size) {
      let sum = 0;
      for (let i = at; i < at + size; i += 1) sum += samples[i] * samples[i];
      track.set(Math.round((startS + at / rate) / this.step), Math.sqrt(sum / size));
    }
    const oldest = Math.round(startS / this.step) - this.span;
    for (const key of track.keys()) { if (key < oldest) track.delete(key); else break; }
  }

  measure() {
    const keys = [...this.spoken.keys()];
    if (keys.length < 100) return this.delay;
    const values = keys.map((key) => this.spoken.get(key));
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    if (Math.max(...values) < 0.02) return this.delay;
    let best = 0.6; // below this likeness nothing is claimed
    for (let shift = 5; shift < 200; shift += 1) {
      let xy = 0; let xx = 0; let yy = 0; let n = 0; let playedMean = 0;
      for (const key of keys) if (this.played.has(key + shift)) { playedMean += this.played.get(key + shift); n += 1; }
      if (n < 80) continue;
      playedMean /= n;
      keys.forEach((key, i) => {
        const y = this.played.get(key + shift);
        if (y === undefined) return;
        const x = values[i] - mean;
        xy += x * (y - playedMean); xx += x * x; yy += (y - playedMean) ** 2;
      });
      const likeness = xy / Math.sqrt(xx * yy + 1e-12);
      if (likeness > best) { best = likeness; this.delay = shift * this.step; }
    }
    return this.delay;
  }
}
