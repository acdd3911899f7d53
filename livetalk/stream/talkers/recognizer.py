"""Speech to words with pocketsphinx, in a process of its own: run as a program, it serves an ``ear.Ear``.

Two decoders hear the same sound. The general one knows English; the domain one knows only the sentences it was given,
and so nearly always hears one of them. What the two make of a turn is for others to judge. Decoding never releases
Python's global lock, which is why it lives in a process and not in a thread of the conversation.

This file imports nothing of this package, so that its process stays small: no torch. Orders come in on standard input,
each a letter and a length: ``A`` sound (float32 at 16 kHz), ``F`` finish (then a line of JSON goes out), ``R`` forget.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import struct
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pocketsphinx
from pocketsphinx.lm import ArpaBoLM

RATE_HZ = 16_000
BLOCK = 1_600
"""Samples decoded in one go; between blocks an order to forget is noticed."""

FRAMES_PER_SECOND = 100
SECOND_PASS_FRAMES = 10
"""How far around a word the second pass looks for others, 25 by default: as many right answers, a quarter less time."""

NOISE_FLOOR = 8.9e-4
"""About -61 dBFS: digital silence upsets the normalisation of the features."""

USUAL_MEAN = (47.8, 0.9, -1.5, 21.0, 0.2, -2.9, 4.0, -3.8, -2.3, -3.0, 1.2, 0.2, -3.5)
"""Mean cepstrum of speech with its pauses, as the decoder measures it; its own default is far off."""

HEADER = struct.Struct("<cI")


class Recognizer:
    """Two decoders for one conversation; not thread-safe.

    Args:
        sentences: what the domain decoder may hear, in lower-case words.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        model = Path(pocketsphinx.get_model_path())
        self._general = pocketsphinx.Decoder(loglevel="FATAL", fwdflatsfwin=SECOND_PASS_FRAMES)
        dictionary = _entries(model / "en-us" / "cmudict-en-us.dict", {w for s in sentences for w in s.split()})
        known = {line.split("(")[0].split()[0] for line in dictionary}
        usable = [sentence for sentence in sentences if set(sentence.split()) <= known]
        with tempfile.TemporaryDirectory(prefix="livetalk-") as folder:
            words, grammar = Path(folder, "words.dict"), Path(folder, "sentences.arpa")
            words.write_text("\n".join(dictionary) + "\n", encoding="utf-8")
            grammar.write_text(_language_model(usable), encoding="utf-8")
            settings = {"lm": str(grammar), "dict": str(words), "fwdflatsfwin": SECOND_PASS_FRAMES}
            self._domain = pocketsphinx.Decoder(loglevel="FATAL", **settings)
        self._decoders = (self._general, self._domain)
        self._noise = np.random.default_rng(0)
        self._pending = np.zeros(0, np.float32)
        self._open = False

    def hear(self, samples: np.ndarray) -> None:
        """Sound of an utterance (float32), which begins with the first call."""
        if not self._open:
            self._begin()
        self._pending = np.concatenate([self._pending, samples])
        while len(self._pending) >= BLOCK:
            self._decode(self._pending[:BLOCK])
            self._pending = self._pending[BLOCK:]

    def finish(self) -> dict[str, Any]:
        """What was said.

        Returns:
            ``general`` and ``domain``: the words as the decoders heard them; ``words``: of the general one, each with
            its probability, its length in seconds and its number of phones.
        """
        if not self._open:
            return {"general": "", "domain": "", "words": []}
        if len(self._pending):
            self._decode(self._pending)
        self._end()
        return {
            "general": _text(self._general),
            "domain": _text(self._domain),
            "words": [self._described(word) for word in self._general.seg() or () if word.word[0] not in "<[+"],
        }

    def warm_up(self) -> None:
        """Hear a moment of nothing, so that the first visitor does not wait for what happens once."""
        self.hear(np.zeros(3 * BLOCK, np.float32))
        self.finish()

    def forget(self) -> None:
        """Drop the utterance."""
        if self._open:
            self._end()

    def _described(self, word: pocketsphinx.Segment) -> tuple[str, float, float, int]:
        phones = (self._general.lookup_word(word.word) or "").split()
        length_s = (word.end_frame - word.start_frame + 1) / FRAMES_PER_SECOND
        return word.word, round(word.prob, 3), length_s, max(1, len(phones))

    def _begin(self) -> None:
        self._noise = np.random.default_rng(0)
        self._pending = np.zeros(0, np.float32)
        for decoder in self._decoders:
            decoder.set_cmn(",".join(map(str, USUAL_MEAN)))
            decoder.start_utt()
        self._open = True

    def _decode(self, samples: np.ndarray) -> None:
        noisy = samples + self._noise.normal(0.0, NOISE_FLOOR, len(samples))
        pcm = (np.clip(noisy, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        for decoder in self._decoders:
            decoder.process_raw(pcm)

    def _end(self) -> None:
        self._open = False
        for decoder in self._decoders:
            decoder.end_utt()


def _text(decoder: pocketsphinx.Decoder) -> str:
    found = decoder.hyp()
    return found.hypstr if found is not None else ""


def _entries(dictionary: Path, words: set[str]) -> list[str]:
    """Lines of a pronouncing dictionary that belong to ``words``, with all their variants."""
    lines = dictionary.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and line.split(maxsplit=1)[0].split("(")[0] in words]


def _language_model(sentences: Iterable[str]) -> str:
    model = ArpaBoLM(text="\n".join(sentences), add_start=True)
    model.compute()
    written = io.StringIO()
    model.write(written)
    return written.getvalue()


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Do what is ordered until the orders end. A thread reads them, so that the sender never waits for the decoders."""
    sentences = json.loads(orders.readline())
    waiting: collections.deque[tuple[bytes, bytes]] = collections.deque()
    arrived = threading.Condition()

    def read() -> None:
        header = orders.read(HEADER.size)
        while len(header) == HEADER.size:
            order, length = HEADER.unpack(header)
            content = orders.read(length)
            with arrived:
                if order == b"R":
                    waiting.clear()
                waiting.append((order, content))
                arrived.notify()
            header = orders.read(HEADER.size)
        with arrived:
            waiting.append((b"", b""))
            arrived.notify()

    threading.Thread(target=read, daemon=True).start()
    recognizer = Recognizer(sentences)
    recognizer.warm_up()
    while True:
        with arrived:
            arrived.wait_for(lambda: waiting)
            order, content = waiting.popleft()
        if order == b"A":
            recognizer.hear(np.frombuffer(content, np.float32))
        elif order == b"F":
            answer = {"number": json.loads(content), **recognizer.finish()}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
        elif order == b"R":
            recognizer.forget()
        else:
            return


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        serve(sys.stdin.buffer, sys.stdout.buffer)
