"""Speech to features with log-mel bands and small convolutions: the embedded model's ear.

One row of 32 features per picture. A row depends only on the sound from ``reach_samples[0]`` before the picture's
start to ``reach_samples[1]`` after its end, and nothing is normalised over a window: wherever a picture lies in a
window, its row is the same. The linear ``head`` reads the mouth (open, wide, teeth) off a row; it was the
training target and is kept as a ruler of what the features can tell.

This module does not know where sound comes from, how it was labelled, or who uses the features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from livetalk.config import AudioConfig
from livetalk.types import MODEL_RATE, MODEL_SAMPLES_PER_PICTURE, LiveTalkError

MEL_BANDS = 40
HOP_SAMPLES = 250  # 64 mel frames a second, four a picture
WINDOW_SAMPLES = 640
FRAMES_PER_PICTURE = MODEL_SAMPLES_PER_PICTURE // HOP_SAMPLES
FEATURE_WIDTH = 32
DEFAULT_WIDTHS = (80, 96)
# A floor under every band: digital silence and -75 dB noise look alike, and the logarithm stays finite.
_FLOOR = 1e-4
_HEARD_FRAMES_BEFORE, _HEARD_FRAMES_AFTER = 13, 5


def mel_filters(bands: int, bins: int, rate_hz: int, low_hz: float = 60.0, high_hz: float = 7600.0) -> Tensor:
    """Triangular filters, equally spaced in mel: float32 [bins, bands], each with peak 1."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    mels = torch.linspace(low, high, bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hz = torch.linspace(0, rate_hz / 2, bins, dtype=torch.float64)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class MelAudioEncoder(nn.Module):
    """Windows of sound to one feature row per picture.

    Args:
        config: ``past_samples`` (whole pictures, at least 4 of them) and ``look_ahead_samples`` of the windows it will
            be given; ``widths`` = (mel frames, pictures) hidden widths, empty for the defaults.
        feature_width: features per picture.

    Attributes:
        past_samples, look_ahead_samples: sound before the first and after the last picture of a window.
        feature_width: features per row.
        head: linear map from a row to (open, wide, teeth).

    Raises:
        LiveTalkError: past or look-ahead shorter than what a row hears, or past not whole pictures.
    """

    mel: Tensor
    taper: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(self, config: AudioConfig, feature_width: int = FEATURE_WIDTH) -> None:
        super().__init__()
        self.past_samples = config.past_samples
        self.look_ahead_samples = config.look_ahead_samples
        self.feature_width = feature_width
        before, after = reach_samples()
        if self.past_samples % MODEL_SAMPLES_PER_PICTURE or self.past_samples < before:
            raise LiveTalkError(
                f"past_samples {self.past_samples}: expected a multiple of {MODEL_SAMPLES_PER_PICTURE} "
                f"of at least {before}."
            )
        if self.look_ahead_samples < after:
            raise LiveTalkError(f"look_ahead_samples {self.look_ahead_samples}: expected at least {after}.")
        frame_width, row_width = config.widths or DEFAULT_WIDTHS
        self.register_buffer("mel", mel_filters(MEL_BANDS, WINDOW_SAMPLES // 2 + 1, MODEL_RATE), persistent=False)
        self.register_buffer("taper", torch.hann_window(WINDOW_SAMPLES), persistent=False)
        self.enter = nn.Conv1d(MEL_BANDS, frame_width, 5)
        self.near = nn.Conv1d(frame_width, frame_width, 3)
        self.far = nn.Conv1d(frame_width, frame_width, 3, dilation=2)
        span = _HEARD_FRAMES_BEFORE - _HEARD_FRAMES_AFTER + FRAMES_PER_PICTURE
        self.gather = nn.Conv1d(frame_width, row_width, span, stride=FRAMES_PER_PICTURE)
        self.project = nn.Conv1d(row_width, feature_width, 1)
        self.register_buffer("feature_mean", torch.zeros(feature_width))
        self.register_buffer("feature_scale", torch.ones(feature_width))
        self.head = nn.Linear(feature_width, 3)

    def forward(self, window: Tensor, rows: int) -> Tensor:
        """Features of ``rows`` pictures.

        Args:
            window: [B, past_samples + rows * 1000 + look_ahead_samples] sound at 16 kHz, -1..1; zeros where unknown.
            rows: number of pictures between past and look-ahead.

        Returns:
            [B, rows, feature_width], about unit scale.

        Raises:
            ValueError: the window's length does not fit ``rows``.
        """
        expected = self.past_samples + rows * MODEL_SAMPLES_PER_PICTURE + self.look_ahead_samples
        if window.shape[-1] != expected:
            raise ValueError(f"window of {window.shape[-1]} samples; {rows} rows need {expected}")
        hidden = self.log_mel(window, rows).to(self.enter.weight.dtype)
        hidden = nn.functional.gelu(self.enter(hidden))
        hidden = hidden[..., 1:-1] + nn.functional.gelu(self.near(hidden))
        hidden = hidden[..., 2:-2] + nn.functional.gelu(self.far(hidden))
        hidden = nn.functional.gelu(self.gather(hidden))
        features = nn.functional.gelu(self.project(hidden)).transpose(1, 2)
        return (features - self.feature_mean) * self.feature_scale

    def log_mel(self, window: Tensor, rows: int) -> Tensor:
        """Log-mel frames that ``rows`` pictures hear: [B, 40, 13 + 4 rows + 5], about -1..2."""
        # Frame i of a picture is centred on its i-th quarter.
        start = self.past_samples - reach_samples()[0]
        frames = _HEARD_FRAMES_BEFORE + rows * FRAMES_PER_PICTURE + _HEARD_FRAMES_AFTER
        heard = window[..., start : start + (frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES].float()
        pieces = heard.unfold(-1, WINDOW_SAMPLES, HOP_SAMPLES) * self.taper
        spectrum = torch.fft.rfft(pieces).abs()
        level = torch.log10(spectrum.square() @ self.mel + _FLOOR)
        return (level * 0.5 + 0.5).transpose(1, 2)

    def mouth(self, features: Tensor) -> Tensor:
        """(open, wide, teeth) the features tell: [..., feature_width] -> [..., 3]."""
        return self.head(features)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Makes such ``features`` [..., feature_width] zero-mean with unit deviation; the head reads the same mouth."""
        flat = features.reshape(-1, self.feature_width)
        mean, scale = flat.mean(0), 1 / (flat.std(0) + 1e-3)
        self.head.bias.add_(self.head.weight @ mean)
        self.head.weight.div_(scale)
        self.feature_mean += mean / self.feature_scale
        self.feature_scale *= scale


def reach_samples() -> tuple[int, int]:
    """Sound a row hears before its picture starts and after it ends."""
    overlap = (WINDOW_SAMPLES - HOP_SAMPLES) // 2
    return _HEARD_FRAMES_BEFORE * HOP_SAMPLES + overlap, _HEARD_FRAMES_AFTER * HOP_SAMPLES + overlap
