// Microphone: 16 kHz PCM16 in small packets, one request under way at a time, never more than a second behind.
// Also DelayMeter: how long it takes from the visitor's voice to the mouth that repeats it.

const PACKET_S = 0.08;
const WAITING_S = 1.0;

const MICROPHONE_WORKLET = `
class Packets extends AudioWorkletProcessor {
  constructor() { super(); this.size = Math.round(sampleRate * ${PACKET_S}); this.fill = 0; this.packet = new Float32Array(this.size); }
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

class Microphone {
  // send(rate, base64) -> promise; heard(samples, rate) is called with every packet as it is recorded
  constructor(send, heard) {
    this.send = send;
    this.heard = heard;
    this.counters = { packets: 0, sent: 0, dropped: 0, failed: 0 };
  }

  async open() {
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
    try {
      this.context = new AudioContext({ sampleRate: 16000 });
      this.source = this.context.createMediaStreamSource(this.stream);
    } catch { // some browsers refuse a stream of another rate: use theirs and say so with every packet
      this.context = new AudioContext();
      this.source = this.context.createMediaStreamSource(this.stream);
    }
    const url = URL.createObjectURL(new Blob([MICROPHONE_WORKLET], { type: 'text/javascript' }));
    await this.context.audioWorklet.addModule(url);
    URL.revokeObjectURL(url);
    this.node = new AudioWorkletNode(this.context, 'livetalk-packets', { numberOfOutputs: 0 });
    this.waiting = [];
    this.node.port.onmessage = (event) => this.packet(event.data);
    this.source.connect(this.node);
    await this.context.resume();
  }

  get isOpen() { return Boolean(this.node); }

  packet(samples) {
    this.counters.packets += 1;
    this.heard(samples, this.context.sampleRate);
    this.waiting.push(samples);
    while (this.waiting.length * PACKET_S > WAITING_S) { this.waiting.shift(); this.counters.dropped += 1; }
    if (!this.sending) this.sendWaiting();
  }

  async sendWaiting() {
    this.sending = true;
    while (this.waiting.length && this.node) {
      const packets = this.waiting.splice(0);
      const pcm = new Int16Array(packets.reduce((n, p) => n + p.length, 0));
      let at = 0;
      for (const packet of packets) for (const x of packet) pcm[at++] = Math.max(-32768, Math.min(32767, Math.round(x * 32767)));
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
