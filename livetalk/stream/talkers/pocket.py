"""A voice for talkers that only write: Pocket TTS, clause by clause, on the CPU.

Speech comes in pieces while it is made, so that the first sound does not wait for the end of a clause. The weights are
``kyutai/pocket-tts-without-voice-cloning`` (CC-BY-4.0) at the commits the package is pinned to; they are downloaded
once. This module does not know who writes the text, and keeps nothing between clauses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from livetalk.stream.talkers.machine import loading, once
from livetalk.stream.talkers.pieces import PieceCutter
from livetalk.stream.talkers.protocol import SpeechPiece, TalkerError
from livetalk.stream.talkers.relay import taking

LANGUAGE = "english"
DEFAULT_VOICE = "alba"
VOICES = (
    *("alba", "marius", "javert", "jean", "fantine", "cosette", "eponine", "azelma", "anna", "vera", "charles"),
    *("paul", "george", "mary", "jane", "michael", "eve", "bill_boerst", "peter_yearsley", "stuart_bell", "caro_davy"),
    *("giovanni", "lola", "juergen", "rafael", "estelle"),
)
MOST_TOKENS = 50
"""Longer clauses are said in parts: beyond this the model begins to skip words."""


class Voice(Protocol):
    """Something that says clauses, one at a time.

    Attributes:
        title: name and licence, for the page.
    """

    title: str

    def use(self, name: str) -> None:
        """Speak as ``name`` from now on; "" = its best voice.

        Raises:
            TalkerError: no such voice, or it cannot be loaded.
        """

    def speak(self, clause: str, stop: threading.Event) -> Iterator[SpeechPiece]:
        """The clause's speech, while it is made.

        Args:
            clause: one or more sentences, with the space before them; the pieces carry its words.
            stop: ends the speech within ``CANCEL_S`` once it is set; set as well if the reader goes away early.
        """


@dataclass(frozen=True)
class PocketModel:
    """Loaded weights, shared by all voices of a process.

    Attributes:
        tts: the package's model, on the CPU.
        turn: taken while a clause is said; the model says one at a time.
        states: what each voice sounds like, by name.
    """

    tts: Any
    turn: threading.Lock = field(default_factory=threading.Lock)
    states: dict[str, Any] = field(default_factory=dict)


@once
def load_pocket(language: str = LANGUAGE, config: Path | None = None) -> PocketModel:
    """The model, once for each process.

    Args:
        language: one of the package's languages, such as "english" or "german".
        config: another model's configuration (YAML, as the package reads it) in place of the language's.

    Raises:
        TalkerError: not installed, or not downloaded yet and no network.
    """
    threads = torch.get_num_threads()
    try:
        with loading("The voice Pocket TTS"):
            from pocket_tts import TTSModel

            tts = TTSModel.load_model(config=config) if config else TTSModel.load_model(language=language)
    finally:
        torch.set_num_threads(threads)  # the package sets one thread for the whole process when it is imported
    return PocketModel(tts)


class PocketVoice:
    """Pocket TTS as a ``Voice``.

    Args:
        model: see ``load_pocket``.
    """

    title = "voice: Pocket TTS by Kyutai (CC-BY-4.0)"

    def __init__(self, model: PocketModel) -> None:
        self._model = model
        self._name = DEFAULT_VOICE

    def use(self, name: str) -> None:
        """See ``Voice.use``; names are ``VOICES`` or what ``states`` holds."""
        name = name or next(iter(self._model.states), DEFAULT_VOICE)
        if name not in self._model.states:
            if name not in VOICES:
                raise TalkerError(
                    f"Pocket TTS has no voice {name!r}. Choose one of {', '.join(VOICES)}.", lasting=False
                )
            with loading(f"The voice {name!r} of Pocket TTS"), self._model.turn:
                self._model.states[name] = self._model.tts.get_state_for_audio_prompt(name)
        self._name = name

    def speak(self, clause: str, stop: threading.Event) -> Iterator[SpeechPiece]:
        """See ``Voice.speak``; 24 kHz."""
        if not any(letter.isalnum() for letter in clause):
            return
        cutter = PieceCutter(self._model.tts.sample_rate, clause)
        with taking(self._model.turn, stop) as taken:
            if not taken:
                return
            state = self._model.states[self._name]
            sounds = self._model.tts.generate_audio_stream(state, clause, max_tokens=MOST_TOKENS, stop=stop)
            complete = False
            try:
                for sound in sounds:
                    if stop.is_set():
                        return
                    yield from cutter.push(np.clip(sound.numpy(), -1, 1))
                complete = True
            finally:
                if not complete:
                    stop.set()
                    for _ in sounds:  # the model's threads end after their step; until then it must not be used
                        pass
        yield from cutter.finish()
