"""What talkers share whose models run on this machine.

A place for the weights and whether they fit there; sentences for what goes wrong; threads that make a reply and can be
called off; the words of a reply while its tokens come in; the rules a speaking model is given; and the sound of the
last turns, because a model understands a voice better than a transcript of it.

This module knows no model, no voice and no conversation.
"""

from __future__ import annotations

import importlib.util
import queue
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from livetalk.stream.talkers.protocol import Heard, Message, TalkerError
from livetalk.types import MODEL_RATE

GIGABYTE = 1e9
HEADROOM_BYTES = 1_500_000_000
"""Beside the weights: activations, the attention cache of a conversation, CUDA itself."""

LONGEST_TURN_SAMPLES = 30 * MODEL_RATE
SHORTEST_TURN_SAMPLES = MODEL_RATE // 2
HISTORY_MESSAGES = 24
SOUND_TURNS = 2
"""Turns before the current one that a model hears again; older ones it reads."""

UNWRITTEN = "…"
"""The visitor's words while the answer is already on its way and the transcript is not written yet."""

NO_SPEECH = "[no speech]"
PERSONA = "You are a friendly person in a video call."
RULES = (
    "Everything you write is spoken aloud: answer in one to three short sentences of plain spoken language, in the "
    "language of the person you talk to, without lists, markdown, emoji or stage directions. "
    f"If a recording holds no words, answer only: {NO_SPEECH}"
)
TRANSCRIBE = (
    "Transcribe the speech in this recording in its original language. Write only the words that are spoken, "
    "without line breaks, and digits for numbers."
)

_CONTROL_WORDS = re.compile(r"<\|?[\w\"]+\|?>")


def instructions(own: str) -> str:
    """System prompt from a persona's instructions: who the model is, and that it is heard, not read."""
    return f"{plain(own) or PERSONA} {RULES}"


def plain(text: str) -> str:
    """Text of a visitor without anything a tokenizer would take for a mark of the chat (``<|im_end|>``, ``<eos>``)."""
    return _CONTROL_WORDS.sub(" ", text).strip()


def bounded(samples: np.ndarray) -> np.ndarray:
    """A turn's sound as models take it: its last 30 s, at least 0.5 s."""
    samples = np.asarray(samples, np.float32)[-LONGEST_TURN_SAMPLES:]
    return np.pad(samples, (0, max(0, SHORTEST_TURN_SAMPLES - len(samples))))


# --- a place for the weights ----------------------------------------------------------------------


def missing(packages: Sequence[str], needed_bytes: float) -> str | None:
    """Why a model cannot run on this machine's GPU, in a sentence; None = it can. Loads nothing.

    Args:
        packages: modules that must be installed.
        needed_bytes: GPU memory for its weights.
    """
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed. Install it with 'pip install -r requirements-extra.txt'."
    try:
        check_memory("This talker", needed_bytes, choose_device("auto"))
    except TalkerError as error:
        return str(error)
    return None


def choose_device(device: str) -> torch.device:
    """The torch device of that name; "auto" = the CUDA GPU.

    Raises:
        TalkerError: "auto", and there is no GPU; or no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            raise TalkerError(
                "A language model on this machine needs a CUDA GPU, and none was found. Choose another talker, or "
                "device 'cpu' if slow answers will do."
            )
        return torch.device("cuda", torch.cuda.current_device())
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise TalkerError(f"There is no device {device!r}. Expected 'auto', 'cpu' or 'cuda:0'.") from error


def number_format(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def check_memory(name: str, needed_bytes: float, device: torch.device) -> None:
    """Refuse weights that do not fit, before they are read.

    Raises:
        TalkerError: less GPU memory is free than the weights and ``HEADROOM_BYTES`` take.
    """
    if device.type != "cuda":
        return
    free, total = torch.cuda.mem_get_info(device)
    needed = needed_bytes + HEADROOM_BYTES
    if free < needed:
        raise TalkerError(
            f"{name} needs {needed / GIGABYTE:.1f} GB of free GPU memory; {free / GIGABYTE:.1f} of "
            f"{total / GIGABYTE:.1f} GB are free on {torch.cuda.get_device_name(device)}. Close other programs or "
            "choose a smaller talker."
        )


def bytes_of(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Memory for a module's weights in ``dtype``; works on the meta device, where they take none."""
    return sum(weight.numel() for weight in module.parameters()) * dtype.itemsize


# --- what goes wrong ------------------------------------------------------------------------------


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turns what a loader of weights raises into a sentence.

    Raises:
        TalkerError: not installed, not there and no network, no access, damaged, or too large.
    """
    try:
        yield
    except TalkerError:
        raise
    except ImportError as error:
        raise TalkerError(f"{name} needs a package that is not installed: {_first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise TalkerError(f"{name} does not fit into the memory. Choose a smaller talker.") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TalkerError(
            f"{name} could not be loaded: {_first_line(error)} It has to be downloaded once: check the network and, "
            "if its page asks for it, accept its terms and log in to the Hugging Face Hub."
        ) from error


def as_talker_error(error: BaseException, name: str) -> TalkerError:
    """What a model raised in the middle of a reply, as a sentence."""
    if isinstance(error, TalkerError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return TalkerError(f"{name} ran out of memory. Close other programs or choose a smaller talker.")
    # After an error of the driver nothing works in this process any more.
    return TalkerError(f"{name} failed: {_first_line(error)}", lasting="CUDA" in str(error))


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].strip()
    return line if line.endswith((".", "!", "?")) else f"{line}."


# --- threads that make a reply --------------------------------------------------------------------


class Relay:
    """Events of one reply on their way from the threads that make it to the one that reads them.

    Attributes:
        stopping: set when the reply is not wanted any more, or one of the threads failed.
        changed: notified then; threads that wait for something else wait with it.
    """

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.changed = threading.Condition()
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._cancelled = False
        self._error: BaseException | None = None

    def run(self, *works: Callable[[], None]) -> None:
        """Start a thread for each; the reply is complete when all have ended."""
        self._running = len(works)
        self._threads = [threading.Thread(target=self._work, args=(work,), daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def put(self, item: Any) -> None:
        """Hand an event to the reader."""
        self._items.put(item)

    def cancel(self) -> None:
        """End the reading at once, and the threads as soon as they look. Any thread."""
        self._cancelled = True
        self._stop()

    def join(self) -> None:
        """Wait until no thread works for this reply any more."""
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[Any]:
        """Events in order, until all threads have ended or the reply was cancelled; raises what a thread raised."""
        while (item := self._items.get()) is not None and not self._cancelled:
            yield item
        if self._error is not None and not self._cancelled:
            raise self._error

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = self._error or error
            self._stop()
        with self.changed:
            self._running -= 1
            if not self._running:
                self._items.put(None)

    def _stop(self) -> None:
        self.stopping.set()
        self._items.put(None)
        with self.changed:
            self.changed.notify_all()


def stop_when(event: threading.Event) -> Any:
    """Stopping criteria for ``generate``: ends at the next token once ``event`` is set."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
            return torch.full((len(input_ids),), event.is_set(), dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Stop()])


class TokenFeed:
    """Streamer for ``generate``: calls ``take`` with every new token; the prompt, which comes first, is left out."""

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._is_prompt = True

    def put(self, tokens: torch.Tensor) -> None:
        """Called by ``generate``."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token in tokens.flatten().tolist():
            self._take(token)

    def end(self) -> None:
        """Called by ``generate`` after the last token."""


# --- words ----------------------------------------------------------------------------------------


class Wording:
    """Tokens to text, token by token; a letter that needs several tokens comes with its last one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often ""."""
        self._tokens.append(token)
        text = self.text
        if text.endswith("\ufffd"):
            return ""
        new, self._given = text[self._given :], max(self._given, len(text))
        return new

    @property
    def text(self) -> str:
        """All text so far."""
        return self._tokenizer.decode(self._tokens, skip_special_tokens=True)


class Opening:
    """The beginning of an answer, held back until it is clear whether the model heard any words at all.

    Args:
        listened: the turn was sound; a typed turn is never without words.
    """

    def __init__(self, listened: bool) -> None:
        self._held: str | None = "" if listened else None
        self.is_nothing = False
        """The model said that there were no words."""

    def push(self, text: str) -> list[Heard | str]:
        """What can be handed on now: first ``Heard``, then text."""
        if self._held is None:
            return [text] if text else []
        self._held += text
        start = self._held.strip().lower()
        if start.startswith(NO_SPEECH):
            self.is_nothing = True
            return self._open(Heard(""))
        return [] if NO_SPEECH.startswith(start) else self._open(Heard(UNWRITTEN), self._held)

    def finish(self) -> list[Heard | str]:
        """The answer is complete: what is still held back."""
        return [] if self._held is None else self._open(Heard(UNWRITTEN), self._held)

    def _open(self, *events: Heard | str) -> list[Heard | str]:
        self._held = "" if self.is_nothing else None
        return [event for event in events if event != ""]


# --- the sound of the last turns ------------------------------------------------------------------


class RecentSound:
    """The sound of the last spoken turns, found again in a conversation by the words it was taken for."""

    def __init__(self) -> None:
        self._turns: deque[tuple[str, np.ndarray]] = deque(maxlen=SOUND_TURNS)

    def keep(self, words: str, samples: np.ndarray) -> None:
        """A turn that became part of the conversation, with the last ``Heard`` that was given for it."""
        self._turns.append((words.strip(), samples))

    def clear(self) -> None:
        """Forget all."""
        self._turns.clear()

    def attach(self, history: Sequence[Message]) -> list[tuple[Message, np.ndarray | None]]:
        """The last ``HISTORY_MESSAGES`` of a conversation, the latest spoken ones with their sound."""
        turns = list(self._turns)
        lines: list[tuple[Message, np.ndarray | None]] = []
        for message in reversed(history[-HISTORY_MESSAGES:]):
            sound = None
            if message.role == "visitor" and turns and turns[-1][0] == message.text.strip():
                sound = turns.pop()[1]
            lines.append((message, sound))
        return lines[::-1]
