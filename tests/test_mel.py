"""The embedded ear: rows depend on a finite stretch of sound, never on where the window lies."""

import pytest
import torch

from livetalk.config import MINI, AudioConfig
from livetalk.model.mel import MelAudioEncoder, reach_samples
from livetalk.types import LiveTalkError


@pytest.fixture(scope="module")
def encoder() -> MelAudioEncoder:
    torch.manual_seed(0)
    return MelAudioEncoder(MINI.audio).eval()


def _sound(seconds: float, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = int(seconds * 16_000)
    envelope = torch.sin(torch.arange(count) / 900.0).abs()
    return (0.2 * torch.randn(1, count, generator=generator) * envelope).clamp(-1, 1)


def _rows(encoder: MelAudioEncoder, sound: torch.Tensor, first: int, rows: int) -> torch.Tensor:
    start = first * 1000 - encoder.past_samples
    stop = (first + rows) * 1000 + encoder.look_ahead_samples
    return encoder(sound[:, start:stop], rows)


@torch.inference_mode()
def test_a_row_is_the_same_in_every_window(encoder: MelAudioEncoder) -> None:
    sound = _sound(4)
    whole = _rows(encoder, sound, 8, 48)
    for first, rows in ((8, 12), (20, 9), (31, 1), (44, 12)):
        torch.testing.assert_close(_rows(encoder, sound, first, rows), whole[:, first - 8 : first - 8 + rows])


@torch.inference_mode()
def test_equal_windows_give_equal_bits(encoder: MelAudioEncoder) -> None:
    sound = _sound(2)
    assert torch.equal(_rows(encoder, sound, 8, 12), _rows(encoder, sound.clone(), 8, 12))


@torch.inference_mode()
def test_nothing_outside_the_reach_matters(encoder: MelAudioEncoder) -> None:
    before, after = reach_samples()
    sound = _sound(2)
    changed = sound.clone()
    changed[:, : 16_000 - before] = 0.9
    changed[:, 17_000 + after :] = -0.9
    torch.testing.assert_close(_rows(encoder, changed, 16, 1), _rows(encoder, sound, 16, 1))
    changed[:, 16_000 - before + 40] += 0.5
    assert not torch.equal(_rows(encoder, changed, 16, 1), _rows(encoder, sound, 16, 1))


@torch.inference_mode()
def test_silence_is_finite_and_steady(encoder: MelAudioEncoder) -> None:
    rows = _rows(encoder, torch.zeros(1, 32_000), 8, 12)
    assert rows.shape == (1, 12, encoder.feature_width)
    assert torch.isfinite(rows).all()
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))


@torch.inference_mode()
def test_standardise_keeps_what_the_head_reads() -> None:
    torch.manual_seed(1)
    encoder = MelAudioEncoder(MINI.audio).eval()
    sound = _sound(3)
    for _ in range(2):
        features = _rows(encoder, sound, 8, 30)
        said = encoder.mouth(features)
        encoder.standardise(features)
        again = _rows(encoder, sound, 8, 30)
        torch.testing.assert_close(encoder.mouth(again), said, rtol=1e-3, atol=1e-4)
    assert again.mean().abs() < 1e-3
    assert (again.std((0, 1)) > 0.3).all()


def test_too_little_sound_is_refused() -> None:
    with pytest.raises(LiveTalkError, match="past_samples"):
        MelAudioEncoder(AudioConfig(kind="mel", past_samples=3_000, look_ahead_samples=1_600))
    with pytest.raises(LiveTalkError, match="look_ahead_samples"):
        MelAudioEncoder(AudioConfig(kind="mel", past_samples=8_000, look_ahead_samples=800))
    with pytest.raises(ValueError, match="need"):
        MelAudioEncoder(MINI.audio)(torch.zeros(1, 9_000), 12)
