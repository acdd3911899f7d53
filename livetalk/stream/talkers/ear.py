"""The offline talker's ear: sound goes to a process that recognises speech, and words come back.

The ear sends the visitor's sound on while it is being spoken, so that little is left to do at the end of the turn, and
never waits for more than it must: a turn that was cancelled ends at once, whatever the process is doing. If the process
dies, the turn fails and the next one starts another. This module does not know what the words mean; what recognises
them is in ``recognizer``, which is run as a program and not imported here.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import itertools
import json
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.stream.talkers.protocol import TalkerError
from livetalk.types import MODEL_RATE

AGREEMENT = 0.7
"""The sentence of the domain decoder counts only if it is this much like what the general one heard."""

SLOWEST_PHONE_S = 0.27
LEAST_PROBABILITY = 0.2

PATIENCE_S = 60.0
"""A process that has not answered by then is taken for stuck."""

_POLL_S = 0.03
_PACKET_SAMPLES = MODEL_RATE // 4
_HEADER = struct.Struct("<cI")
_PROGRAM = Path(__file__).with_name("recognizer.py")
_RUN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"


@dataclass(frozen=True)
class Words:
    """What an ear made of a turn.

    Attributes:
        general: what was said, as far as English goes; "" = no words.
        domain: one of the known sentences (or nearly), if it agrees with ``general``; else "".
    """

    general: str
    domain: str = ""


class Ear:
    """One conversation's ear. Driven by one thread; ``close`` from any.

    Args:
        sentences: what visitors are likely to say, in plain lower-case words.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self._sentences = frozenset(sentences)
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._heard = np.zeros(0, np.float32)
        self._finished = False
        self._closed = False
        self._lock = threading.Lock()

    def open(self) -> None:
        """Start the process, unless it runs; it loads its models by itself, while others go on.

        Raises:
            TalkerError: the recogniser is not installed or cannot be started.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if importlib.util.find_spec("pocketsphinx") is None:
            raise TalkerError("The offline talker cannot hear. Install its ear with 'pip install pocketsphinx'.")
        with self._lock:
            if self._closed:
                raise TalkerError("The ear is closed.", lasting=False)
            self._start()
        self._heard, self._finished = np.zeros(0, np.float32), False

    def hear(self, samples: np.ndarray) -> None:
        """Sound of the turn that is going on (float32 ``[n]`` at ``MODEL_RATE``)."""
        if self._finished:
            self.forget()
        self._heard = np.concatenate([self._heard, samples])
        self._send_sound(samples)

    def forget(self) -> None:
        """Drop what was heard."""
        self._heard, self._finished = np.zeros(0, np.float32), False
        self._send(b"R")

    def understand(self, samples: np.ndarray, stop: Callable[[], bool]) -> Words | None:
        """The words of a whole turn; what ``hear`` brought of it is not decoded again.

        Args:
            samples: float32 ``[n]`` at ``MODEL_RATE``.
            stop: asked often; once it says True, None is returned soon.

        Raises:
            TalkerError: the process died or is stuck.
        """
        self.open()
        begun = len(self._heard)
        if self._finished or begun > len(samples) or not np.array_equal(self._heard, samples[:begun]):
            self.forget()
            begun = 0
        self._send_sound(samples[begun:])
        self._heard, self._finished = samples, True
        number = next(self._numbers)
        self._send(b"F", json.dumps(number).encode())
        answer = self._wait_for(number, stop)
        return None if answer is None else judge(answer, self._sentences)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(_PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise TalkerError(f"The offline talker's ear could not be started: {error}.") from error
        self._process, self._answers = process, queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, self._answers), name="livetalk-ear", daemon=True).start()
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(json.dumps(sorted(self._sentences)).encode() + b"\n")
            process.stdin.flush()

    def _send_sound(self, samples: np.ndarray) -> None:
        for at in range(0, len(samples), _PACKET_SAMPLES):
            self._send(b"A", samples[at : at + _PACKET_SAMPLES].astype(np.float32).tobytes())

    def _send(self, order: bytes, content: bytes = b"") -> None:
        """To a process that is gone nothing is sent: whoever waits for its answer will notice."""
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(_HEADER.pack(order, len(content)) + content)
            process.stdin.flush()

    def _wait_for(self, number: int, stop: Callable[[], bool]) -> dict[str, Any] | None:
        waited_s = 0.0
        while not stop():
            try:
                answer = self._answers.get(timeout=_POLL_S)
            except queue.Empty:
                waited_s += _POLL_S
                if waited_s > PATIENCE_S:
                    self._drop_process()
                    raise TalkerError("The offline talker's ear is stuck. Say it again, or type it.", False) from None
                continue
            if answer is None:
                self._drop_process()
                raise TalkerError("The offline talker's ear has crashed. Say it again, or type it.", False)
            if answer["number"] == number:
                return answer
        return None

    def _drop_process(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()


def _read(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Answers of one process; None when it has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(json.loads(line))
    answers.put(None)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def judge(answer: dict[str, Any], sentences: Collection[str] = ()) -> Words:
    """What two decoders heard, to what is worth believing.

    Args:
        answer: see ``Recognizer.finish``.
        sentences: those that the domain decoder knows.
    """
    general = _plain(answer["general"])
    domain = _plain(answer["domain"])
    agree = difflib.SequenceMatcher(None, general, domain, autojunk=False).ratio() >= AGREEMENT
    if not _are_words(answer["words"], sure=agree and domain in sentences):
        return Words("")
    return Words(general, domain if agree else "")


def _are_words(words: Sequence[tuple[str, float, float, int]], sure: bool) -> bool:
    """Whether somebody spoke, as far as the manner tells: noise is heard as a word or two, drawn out or doubtful.

    Args:
        words: see ``Recognizer.finish``.
        sure: both decoders heard the same sentence.
    """
    whole_s = sum(length_s for _, _, length_s, _ in words)
    drawn_out_s = sum(length_s for _, _, length_s, phones in words if length_s > phones * SLOWEST_PHONE_S)
    if not words or drawn_out_s > whole_s / 2:
        return False
    return sure or len(words) > 2 or any(p >= LEAST_PROBABILITY and phones > 2 for _, p, _, phones in words)


def _plain(text: str) -> str:
    """Words without the numbers of their pronunciations, such as "the(2)"."""
    return " ".join(word.split("(")[0] for word in text.split())
