"""Text to speech: phoneme times fit the sound, unknown voices are refused, labels close the mouth."""

import shutil

import numpy as np
import pytest

from livetalk import voice
from livetalk.types import LiveTalkError
from livetalk.voice import speak

TEXT = "Hello there. My name is Bob, and people believe me."


def _has_espeak() -> bool:
    return any(name.startswith("espeak") for name in voice.available_voices())


needs_espeak = pytest.mark.skipif(not _has_espeak(), reason="needs the Debian package espeak-ng")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="needs the Debian package flite")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("espeak:en-us+m3", marks=needs_espeak),
        pytest.param("espeak:fr-fr", marks=needs_espeak),
        pytest.param("flite:slt", marks=needs_flite),
        pytest.param("flite:kal16", marks=needs_flite),
    ],
)
def test_phonemes_fit_the_sound(name: str) -> None:
    said = speak(TEXT, name)
    assert said.sample_rate == 16_000
    assert said.samples.dtype == np.float32
    assert 0.05 < np.abs(said.samples).max() <= 1
    assert 2 < said.duration_s < 6
    starts, ends = (np.array([p[k] for p in said.phonemes]) for k in (0, 1))
    assert len(said.phonemes) > 20
    assert (ends > starts).all()
    assert (starts[1:] >= ends[:-1] - 1e-6).all()
    assert ends[-1] <= said.duration_s + 1e-3
    assert not any(symbol.startswith("(") for _, _, symbol in said.phonemes)


@needs_espeak
def test_rate_changes_the_length_and_pauses_are_quiet() -> None:
    slow, fast = (speak(TEXT, "espeak:en-us", rate) for rate in (130, 190))
    assert slow.duration_s > 1.2 * fast.duration_s
    spoken = np.zeros(len(slow.samples), bool)
    for start_s, end_s, symbol in slow.phonemes:
        spoken[int(start_s * 16_000) : int(end_s * 16_000)] = bool(symbol)
    assert np.square(slow.samples[spoken]).mean() > 30 * np.square(slow.samples[~spoken]).mean()


@needs_flite
def test_flite_follows_rate_and_pitch() -> None:
    slow, fast, high = (speak("-5 degrees", "flite:kal16", *manner) for manner in ((130,), (190,), (190, 1.2)))
    assert slow.duration_s > 1.2 * fast.duration_s > 0.5
    assert not np.array_equal(fast.samples, high.samples)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("espeak:xx-nowhere", "no language", marks=needs_espeak),
        pytest.param("espeak:en-us+nobody", "no variant", marks=needs_espeak),
        pytest.param("flite:nobody", "no voice", marks=needs_flite),
        ("slt", "Unknown voice"),
    ],
)
def test_unknown_voices_are_refused(name: str, message: str) -> None:
    with pytest.raises(LiveTalkError, match=message):
        speak("Hello.", name)


def test_unusable_text_is_refused() -> None:
    for text in ("", "  \n", "a" * (voice.MAX_TEXT_CHARACTERS + 1)):
        with pytest.raises(LiveTalkError, match="characters"):
            speak(text)
    with pytest.raises(LiveTalkError, match="rate_wpm"):
        speak("Hello.", rate_wpm=5)


def test_a_missing_engine_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "_flite_voices", lambda: ())
    with pytest.raises(LiveTalkError, match="apt install flite"):
        speak("Hello.", "flite:slt")

    def missing() -> None:
        raise LiveTalkError("espeak-ng is not installed.")

    monkeypatch.setattr(voice, "_espeak", missing)
    assert voice.available_voices() == []
    with pytest.raises(LiveTalkError, match="apt install"):
        voice.default_voice()
