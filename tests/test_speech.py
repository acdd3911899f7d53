"""Synthetic speech: labels mean what they say, clips follow their seed, held-out material stays held out."""

import random
import shutil

import numpy as np
import pytest

from livetalk.distill import lexicon, speech
from livetalk.distill.visemes import REST, mouth_track

pytestmark = pytest.mark.filterwarnings("error")
needs_engines = pytest.mark.skipif(
    shutil.which("flite") is None or shutil.which("espeak-ng") is None,
    reason="needs the Debian packages flite and espeak-ng",
)


def _say(*symbols: str, flite: bool = False) -> np.ndarray:
    """Mouth [T, 3] while each symbol is held for 0.25 s (4 pictures), after and before 0.25 s of silence."""
    phonemes = [(0.25 * (k + 1), 0.25 * (k + 2), symbol) for k, symbol in enumerate(symbols)]
    pictures = 4 * (len(symbols) + 2)
    return mouth_track(phonemes, np.full(pictures * 1000, 0.1, np.float32), pictures, flite)


def test_sounds_have_their_shapes() -> None:
    open_, wide, teeth = (_say("ɑː")[5:7].mean(0), _say("iː")[5:7].mean(0), _say("s")[5:7].mean(0))
    oo = _say("uː")[5:7].mean(0)
    assert open_[0] > 0.7
    assert wide[1] > 0.85
    assert oo[1] < 0.15
    assert teeth[2] > 0.7
    assert open_[0] > wide[0] > 0.1
    np.testing.assert_allclose(_say("aa", flite=True), _say("ɑ"), atol=1e-6)


def test_lips_close_for_p_b_m_and_in_silence() -> None:
    mouth = _say("ɑ", "m", "ɑ")
    assert mouth[9:11, 0].max() < 0.2 * mouth[5, 0]
    assert min(mouth[5, 0], mouth[13, 0]) > 0.5
    np.testing.assert_allclose(mouth[[0, 1, -1]], [REST] * 3, atol=0.02)
    np.testing.assert_allclose(_say(""), [REST] * 12, atol=1e-6)


def test_diphthongs_move_and_consonants_lean() -> None:
    house = _say("aʊ")
    assert house[5, 0] > house[7, 0] + 0.1
    assert _say("uː", "k", "uː")[9, 1] < _say("iː", "k", "iː")[9, 1] - 0.3


def test_quiet_speech_opens_less() -> None:
    phonemes = [(0.25, 1.25, "ɑ")]
    sound = np.full(32_000, 0.2, np.float32)
    sound[12_000:] *= 0.05
    mouth = mouth_track(phonemes, sound, 32)
    assert mouth[16, 0] < 0.75 * mouth[8, 0]


def test_sentences_never_cross_the_border() -> None:
    assert len(lexicon.vocabulary()) >= 1500
    rng = random.Random(0)
    train = {lexicon.sentence(rng) for _ in range(300)}
    held = {lexicon.sentence(rng, held_out=True) for _ in range(60)}
    assert not train & held
    assert len(train) > 280
    assert not any(lexicon.is_held_out(text) for text in train)


@needs_engines
def test_clips_follow_their_seed_and_have_their_length() -> None:
    first, again = (speech.speech_clip(5, 2.5) for _ in range(2))
    assert (first.text, first.voice) == (again.text, again.voice)
    assert np.abs(first.mouth.mean(0) - again.mouth.mean(0)).max() < 0.05
    assert first.samples.shape == (40_000,)
    assert first.mouth.shape == (40, 3)
    assert first.samples.dtype == first.mouth.dtype == np.float32


@needs_engines
def test_held_out_voices_are_never_trained() -> None:
    rng = random.Random(1)
    voices = {speech._choose_speaker(rng, False, None).voice for _ in range(500)}
    assert len(voices) > 60
    assert not voices & set(speech.HELD_OUT_VOICES)
    assert not any("+m7" in name for name in voices)
    assert speech.speech_clip(speech.HELD_OUT_SEED, 1.0, held_out=True).voice in speech.HELD_OUT_VOICES
    with pytest.raises(ValueError, match="seed"):
        speech.speech_clip(3, 1.0, held_out=True)


def test_augmented_sound_stays_sound() -> None:
    rng = np.random.default_rng(0)
    tone = (0.3 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)
    for sound in (tone, np.zeros(16_000, np.float32)):
        for _ in range(6):
            heard = speech.augment(sound, rng)
            assert heard.shape == sound.shape
            assert heard.dtype == np.float32
            assert np.isfinite(heard).all()
            assert np.abs(heard).max() <= 1
