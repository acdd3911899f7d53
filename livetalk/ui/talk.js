// Talk: what the page knows of a conversation: lines, captions in step with the sound, when to lower the volume, and
// how long an answer took. It sees no buttons; the stage tells it what happens and shows what it says.

const DUCKED = 0.2; // volume while the visitor may be about to interrupt
const QUIET_MS = 500; // so long without a voice, and the volume rises again
const AUDIBLE = 400; // of 32768

class Talk {
  // show.caption(said, unsaid), asked(text), told(text, role), line(line), turn(turn); room() characters in a caption
  constructor(player, meter, show) {
    this.player = player;
    this.meter = meter;
    this.show = show;
    this.log = []; // {ms, what, ...}: everything that tests, benchmarks and curious people may ask about
    this.turns = []; // {how, stopped, soundMs, pictureMs, generation}, times by performance.now()
    this.reset();
  }

  reset() {
    this.lines = new Map(); // number -> line as the server last told it
    this.marks = { reply: null, list: [] }; // how many characters of a reply have been said before which picture
    this.facts = {};
    this.answer = {}; // what the server said to the last packet of the microphone
    this.typedMs = null; // when a typed turn was sent that has no answer yet
    this.usedMs = -Infinity; // end of the visitor's voice that the last turn began from
    this.answered = -1; // number of the visitor's line that the last turn answered
    this.awaited = null; // number of a reply whose sound has not come yet
    this.turn = null; // the turn whose first picture is not drawn yet
    this.picture = -1;
    this.isSpeaking = false;
    this.pageText = null;
    this.setDuck(1, 'reset');
  }

  note(what, detail) { keep(this.log, { ms: performance.now(), what, ...detail }); }

  // Facts that came with a fragment.
  take(facts) {
    this.facts = facts;
    (facts.lines || []).forEach((line) => this.takeLine(line));
    const { said } = facts;
    if (said && said.reply !== this.marks.reply) this.awaited = said.reply;
    if (said && said.from === 0) this.marks = { reply: said.reply, list: [] };
    if (said) this.marks.list.push(...said.marks);
    if (facts.duck) this.setDuck(Math.min(this.ducked, DUCKED), 'server');
  }

  takeLine(line) {
    const before = this.lines.get(line.number);
    this.lines.set(line.number, line);
    if (line.role === 'visitor' && line.text && (!before || before.text !== line.text)) {
      this.show.asked(line.text);
      this.show.told(line.text, 'visitor');
    }
    if (line.role === 'avatar' && line.is_final) this.show.told(line.text, 'avatar');
    this.note('line', { number: line.number, role: line.role, text: line.text, final: line.is_final, cut: line.is_cut });
    this.show.line({ ...line, text: this.saidOf(line) });
  }

  newestVisitorLine() {
    let newest = -1;
    this.lines.forEach((line) => { if (line.role === 'visitor' && line.text) newest = Math.max(newest, line.number); });
    return newest;
  }

  // Text of a line that has been heard by now: whole words, in step with the pictures.
  saidOf(line) {
    if (line.role === 'visitor' || line.is_final || line.reply !== this.marks.reply) return line.text;
    let [from, at] = [0, -Infinity];
    for (const [characters, picture] of this.marks.list) {
      if (picture > this.picture + 1) {
        const start = Math.max(at, picture - 8);
        const share = Math.max(0, Math.min(1, (this.picture + 1 - start) / (picture - start)));
        const cut = from + Math.round(share * (characters - from));
        const end = line.text.slice(cut).search(/\s/);
        return share > 0 ? line.text.slice(0, end < 0 ? characters : Math.min(cut + end, characters)) : line.text.slice(0, from);
      }
      [from, at] = [characters, picture];
    }
    return line.text.slice(0, from);
  }

  // A picture was drawn. `speaking`: the avatar's voice is in its sound.
  drawn(index, generation, speaking) {
    this.picture = index;
    this.isSpeaking = speaking;
    const { turn } = this;
    if (turn && turn.generation === generation && index >= turn.first) {
      turn.pictureMs = performance.now();
      this.turn = null;
      this.show.turn(turn);
    }
    if (this.marks.reply === null) return;
    const line = [...this.lines.values()].find((one) => one.role === 'avatar' && one.reply === this.marks.reply);
    if (line) this.caption(line);
  }

  caption(line) {
    const said = this.saidOf(line);
    if (said === this.pageText) return;
    this.pageText = said;
    if (!line.is_final) this.show.line({ ...line, text: said });
    const page = captionPages(line.text, this.show.room()).find(([, stop]) => said.length <= stop) || [0, 0];
    this.show.caption(said.slice(page[0]), line.text.slice(Math.max(said.length, page[0]), page[1]));
  }

  // A fragment was scheduled: is it the beginning of a reply?
  fragment({ header, pcm, at }) {
    if (header.state !== 'speaking' || this.awaited === null) return;
    const loud = pcm.findIndex((x) => Math.abs(x) > AUDIBLE);
    if (loud < 0) return;
    this.awaited = null;
    const visitor = this.newestVisitorLine();
    const how = this.typedMs === null ? 'spoken' : 'typed';
    const stopped = this.typedMs === null ? this.meter.lastMs : this.typedMs;
    this.typedMs = null;
    const soundMs = performance.now() + 1000 * (at + loud / header.rate - this.player.heardTime());
    this.note('reply', { reply: this.marks.reply, generation: header.generation });
    if (visitor === this.answered || stopped === this.usedMs || !Number.isFinite(stopped)) return;
    this.answered = visitor;
    this.usedMs = stopped;
    this.turn = { how, stopped, soundMs, pictureMs: null, generation: header.generation, first: header.first + Math.floor((16 * loud) / header.rate) };
    this.turns.push(this.turn);
  }

  // What was pushed so far is void from a picture on: whatever is heard from now on is new.
  generation({ generation, first, cut }) {
    this.note('generation', { generation, first, heardMs: performance.now() + 1000 * (cut - this.player.heardTime()) });
    this.isSpeaking = false;
    this.setDuck(1, 'generation', cut);
  }

  // The microphone recorded a frame.
  frame() {
    if (this.isSpeaking && this.meter.isOn) this.setDuck(Math.min(this.ducked, DUCKED), 'meter');
    const quiet = performance.now() - this.meter.lastMs > QUIET_MS && !this.answer.duck && !this.answer.voice && !this.facts.duck;
    if (this.ducked < 1 && this.ducked > 0 && quiet) this.setDuck(1, 'quiet');
  }

  // The server's answer to a packet of the microphone comes before its pictures do.
  heard(answer) {
    this.answer = answer || {};
    const isCut = this.isSpeaking && this.answer.voice && this.answer.generation > this.player.generation;
    if (isCut && this.ducked > 0) { this.setDuck(0, 'voice'); this.player.silence(); }
    if (this.isSpeaking && this.answer.duck) this.setDuck(Math.min(this.ducked, DUCKED), 'server');
  }

  // The visitor wants silence: nothing is heard until the server has new things to say.
  hush() {
    this.note('cut', { picture: this.picture });
    this.setDuck(0, 'cut');
  }

  setDuck(volume, why, from = 0) {
    if (this.ducked === volume) return;
    this.ducked = volume;
    this.player.setVolume(volume, from);
    this.note(volume < 1 ? 'duck' : 'unduck', { volume, why });
  }
}

// Where a text is cut to fit a caption of `room` characters: after sentences, else between words. [[start, stop], ...]
function captionPages(text, room) {
  const found = [];
  let [start, stop] = [0, 0];
  const close = () => { if (stop > start) found.push([start, stop]); start = stop; };
  const fits = (end) => text.slice(start, end).trimEnd().length <= room;
  for (const { 0: sentence, index } of text.matchAll(/.+?(?:[.!?…。！？]+["')\]]*(?=\s|$)\s*|[。！？]+|$)/gs)) {
    if (!fits(index + sentence.length)) close();
    for (const { 0: piece, index: inside } of sentence.matchAll(/\s*\S+\s*|\s+/g)) {
      const end = index + inside + piece.length;
      if (!fits(end)) close();
      stop = end;
    }
  }
  close();
  return found;
}
