"""Text to speech with phoneme times, from two small engines that need no network.

``speak(text, voice)`` returns mono float32 sound at 16 kHz together with the time of every phoneme.
espeak-ng is driven through ctypes (its library is global state, so one lock guards it), flite through
its command line. Both serve the offline talker's voice and the synthetic training data.

This module does not know what a mouth looks like, what is being said, or who listens; it plays nothing.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import io
import shutil
import subprocess
import tempfile
import threading
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from livetalk.types import LiveTalkError

SPEECH_RATE_HZ = 16_000
FLITE_VOICES = ("slt", "rms", "awb", "kal16")
MAX_TEXT_CHARACTERS = 20_000

# flite's own tempo and median pitch per voice, measured on everyday sentences.
_FLITE_WPM = 170.0
_FLITE_PITCH_HZ = {"slt": 172.0, "rms": 97.0, "awb": 132.0, "kal16": 105.0}

_SYNCHRONOUS, _PHONEME_EVENTS, _IPA = 2, 0x0001, 0x0002
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_STOP_POLL_S = 0.02
_ESPEAK_HELP = "Install it with 'apt install espeak-ng' or 'pip install espeakng-loader'."


@dataclass(frozen=True)
class Utterance:
    """Spoken text.

    Attributes:
        samples: float32 [samples], mono, -1..1.
        sample_rate: samples per second.
        phonemes: (start_s, end_s, symbol) in order, without overlap; IPA from espeak, flite's phones
            (cmu us, "pau" = silence) from flite; "" is espeak's pause.
        word_starts: (start_s, position of the word's first character in the text) as espeak counts words; empty from
            flite, which does not tell.
    """

    samples: np.ndarray
    sample_rate: int
    phonemes: list[tuple[float, float, str]]
    word_starts: list[tuple[float, int]] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """Length of the sound in seconds."""
        return len(self.samples) / self.sample_rate


def speak(
    text: str,
    voice: str = "flite:slt",
    rate_wpm: float = 165.0,
    pitch: float = 1.0,
    stop: Callable[[], bool] = lambda: False,
) -> Utterance:
    """Speaks a text.

    Args:
        text: plain text, up to ``MAX_TEXT_CHARACTERS`` characters.
        voice: "flite:slt|rms|awb|kal16" or "espeak:<language>[+variant]", such as "espeak:en-us+m3".
        rate_wpm: words a minute, 80..400.
        pitch: factor on the voice's own pitch, 0.5..2 (flite's rms has one pitch only and ignores it).
        stop: asked every few milliseconds; once it says True the engine is ended.

    Returns:
        The utterance at 16 kHz; if it was stopped, what was spoken until then (nothing from flite).

    Raises:
        LiveTalkError: unknown voice, engine not installed, unusable text, rate or pitch.
    """
    engine, _, name = voice.partition(":")
    if not text.strip() or len(text) > MAX_TEXT_CHARACTERS:
        raise LiveTalkError(
            f"Cannot speak a text of {len(text)} characters: expected 1 to {MAX_TEXT_CHARACTERS}. "
            "Split it into sentences."
        )
    if not 80 <= rate_wpm <= 400 or not 0.5 <= pitch <= 2:
        raise LiveTalkError(f"rate_wpm {rate_wpm} or pitch {pitch} is outside 80..400 and 0.5..2.")
    text = text.replace("\0", " ")
    if engine == "espeak":
        return _espeak().speak(text, name, rate_wpm, pitch, stop)
    if engine == "flite":
        return _flite_speak(text, name, rate_wpm, pitch, stop)
    raise LiveTalkError(f"Unknown voice {voice!r}: expected 'flite:slt' or 'espeak:en-us+m3'.")


def available_voices() -> list[str]:
    """The voices that can speak here: flite's, then espeak's "en-us" variants; empty without an engine."""
    voices = [f"flite:{name}" for name in _flite_voices()]
    try:
        engine = _espeak()
    except LiveTalkError:
        return voices
    return voices + ["espeak:en-us"] + [f"espeak:en-us+{variant}" for variant in sorted(engine.variants)]


def default_voice() -> str:
    """The most human voice found here.

    Raises:
        LiveTalkError: neither flite nor espeak-ng is installed.
    """
    voices = available_voices()
    if not voices:
        raise LiveTalkError(
            "No speech engine found. Install one with 'apt install flite' or 'apt install espeak-ng' "
            "('pip install espeakng-loader' works too)."
        )
    return voices[0]


# --- espeak-ng ------------------------------------------------------------------------------------


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # pairs of one priority byte and a zero-ended string
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Espeak:
    """The espeak-ng library. It has one voice, one rate and one callback at a time: hence the lock."""

    def __init__(self, library: str, data_folder: str | None) -> None:
        self._lock = threading.Lock()
        self._library: Any = ctypes.CDLL(library)
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        path = data_folder.encode() if data_folder else None
        self._rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _PHONEME_EVENTS | _IPA))
        if self._rate_hz <= 0:
            raise LiveTalkError(f"espeak-ng was found but cannot start (no data folder?). {_ESPEAK_HELP}")
        self._languages = self._list_languages()
        self.variants = self._list_variants()
        self._pcm: list[np.ndarray] = []
        self._marks: list[tuple[int, str]] = []
        self._words: list[tuple[int, int]] = []
        self._stop: Callable[[], bool] = lambda: False
        self._callback = _Callback(self._collect)  # kept alive: the library keeps only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def _voices(self, languages: bytes | None) -> list[_Voice]:
        spec = None
        if languages is not None:
            buffer = ctypes.create_string_buffer(languages)
            spec = ctypes.byref(_Voice(languages=ctypes.cast(buffer, ctypes.c_void_p)))
        table = self._library.espeak_ListVoices(spec)
        voices: list[_Voice] = []
        while table[len(voices)]:
            voices.append(table[len(voices)].contents)
        return voices

    def _list_languages(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for voice in self._voices(None):
            identifier = voice.identifier.decode()
            found.setdefault(identifier, identifier)
            address = voice.languages
            while address and ctypes.string_at(address, 1) != b"\0":
                code = ctypes.string_at(address + 1)
                found.setdefault(code.decode(), identifier)
                address += len(code) + 2
        return found

    def _list_variants(self) -> set[str]:
        return {voice.identifier.decode().split("/")[-1] for voice in self._voices(b"variant")}

    def _collect(self, wav: Any, count: int, events: Any) -> int:
        if wav and count > 0:
            self._pcm.append(np.ctypeslib.as_array(wav, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            event = events[index]
            symbol = event.id.string.decode("utf-8", "ignore")
            # "(en)" marks a change of pronunciation rules, not a sound.
            if event.type == _EVENT_PHONEME and not symbol.startswith("("):
                self._marks.append((event.sample, symbol))
            if event.type == _EVENT_WORD:
                self._words.append((event.sample, event.text_position - 1))
            index += 1
        return int(self._stop())

    def _select(self, name: str, rate_wpm: float, pitch: float) -> None:
        language, plus, variant = name.partition("+")
        # The library keeps its former voice on an unknown language and ignores an unknown variant.
        if language not in self._languages:
            raise LiveTalkError(f"espeak-ng has no language {language!r}; 'espeak-ng --voices' lists them.")
        if plus and variant not in self.variants:
            raise LiveTalkError(f"espeak-ng has no variant {variant!r}; it has: {', '.join(sorted(self.variants))}.")
        full = f"{self._languages[language]}{plus}{variant}"
        if self._library.espeak_SetVoiceByName(full.encode()) != 0:
            raise LiveTalkError(f"espeak-ng refused the voice {name!r} although it lists it.")
        self._library.espeak_SetParameter(_PARAMETER_RATE, round(rate_wpm), 0)
        # espeak's pitch scale runs 0..99 with 50 = the voice's own; 25 steps are about a factor 1.3.
        scale = 50 + 66 * float(np.log2(pitch))
        self._library.espeak_SetParameter(_PARAMETER_PITCH, int(np.clip(scale, 0, 99)), 0)

    def speak(self, text: str, name: str, rate_wpm: float, pitch: float, stop: Callable[[], bool]) -> Utterance:
        data = text.encode("utf-8", "replace")
        with self._lock:
            self._select(name, rate_wpm, pitch)
            self._pcm, self._marks, self._words, self._stop = [], [], [], stop
            status = self._library.espeak_Synth(data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
            pcm, marks, words = self._pcm, self._marks, self._words
        if status != 0 and not stop():
            raise LiveTalkError(f"espeak-ng could not speak the text (code {status}).")
        samples = np.concatenate(pcm) if pcm else np.zeros(0, np.int16)
        ends = [mark[0] for mark in marks[1:]] + [len(samples)]
        phonemes = [
            (start / self._rate_hz, end / self._rate_hz, symbol)
            for (start, symbol), end in zip(marks, ends, strict=False)  # no mark at all still has an end
            if end > start
        ]
        starts = [(sample / self._rate_hz, position) for sample, position in words]
        return Utterance(_to_speech_rate(samples, self._rate_hz), SPEECH_RATE_HZ, phonemes, starts)


@functools.lru_cache(maxsize=1)
def _espeak() -> _Espeak:
    """The one espeak-ng library of this process: the wheel's, else the system's."""
    if importlib.util.find_spec("espeakng_loader") is not None:
        import espeakng_loader

        return _Espeak(espeakng_loader.get_library_path(), espeakng_loader.get_data_path())
    for library in ("libespeak-ng.so.1", "libespeak-ng.dylib", "libespeak-ng.dll"):
        try:
            return _Espeak(library, None)
        except OSError:
            continue
    raise LiveTalkError(f"espeak-ng is not installed. {_ESPEAK_HELP}")


# --- flite ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _flite_voices() -> tuple[str, ...]:
    if shutil.which("flite") is None:
        return ()
    listed = (_run_flite(["-lv"]) or "").split()
    return tuple(name for name in FLITE_VOICES if name in listed)


def _run_flite(arguments: Sequence[str], stop: Callable[[], bool] = lambda: False) -> str | None:
    """What flite prints; None if it was stopped (its process is then killed)."""
    command = ["flite", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace") as flite:
        while True:
            try:
                printed, complaint = flite.communicate(timeout=_STOP_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if stop():
                    flite.kill()
                    return None
            except BaseException:
                flite.kill()
                raise
    if flite.returncode != 0:
        raise LiveTalkError(f"flite failed (code {flite.returncode}): {complaint.strip()[:200]}")
    return printed


def _flite_speak(text: str, name: str, rate_wpm: float, pitch: float, stop: Callable[[], bool]) -> Utterance:
    known = _flite_voices()
    if not known:
        raise LiveTalkError("flite is not installed. Install it with 'apt install flite'.")
    if name not in known:  # flite itself falls back to another voice without a word
        raise LiveTalkError(f"flite has no voice {name!r}; it has: {', '.join(known)}.")
    options = ["-psdur", "-voice", name, "--setf", f"duration_stretch={_FLITE_WPM / rate_wpm:.3f}"]
    if abs(pitch - 1) > 1e-3:
        options += ["--setf", f"int_f0_target_mean={_FLITE_PITCH_HZ[name] * pitch:.1f}"]
    with tempfile.TemporaryDirectory(prefix="livetalk-") as folder:
        sound = Path(folder, "sound.wav")
        # The leading space keeps a text such as "-5 degrees" from being read as an option.
        printed = _run_flite([*options, "-t", f" {text}", "-o", str(sound)], stop)
        if printed is None:
            return Utterance(np.zeros(0, np.float32), SPEECH_RATE_HZ, [])
        if not sound.exists():
            raise LiveTalkError("flite wrote no sound: it found nothing to say in the text.")
        data = sound.read_bytes()
    with wave.open(io.BytesIO(data)) as file:
        rate_hz = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    duration_s = len(samples) / rate_hz
    return Utterance(_to_speech_rate(samples, rate_hz), SPEECH_RATE_HZ, _read_psdur(printed, duration_s))


def _read_psdur(printed: str, duration_s: float) -> list[tuple[float, float, str]]:
    """Phonemes from ``phone:end_s`` words, kept within the sound (flite's clock may end 2 ms late)."""
    phonemes: list[tuple[float, float, str]] = []
    start_s = 0.0
    for item in printed.split():
        symbol, _, end = item.rpartition(":")
        end_s = min(float(end), duration_s)
        if end_s > start_s:
            phonemes.append((start_s, end_s, symbol))
            start_s = end_s
    return phonemes


def _to_speech_rate(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    sound = samples.astype(np.float32) / 32768
    if rate_hz != SPEECH_RATE_HZ and len(sound):
        sound = soxr.resample(sound, rate_hz, SPEECH_RATE_HZ)
    return np.clip(sound, -1, 1).astype(np.float32)
