"""A model so small that tests can train and stream it: 32x32 pictures, latents 4x4, four tokens a frame.

This module does not know recipes.
"""

from __future__ import annotations

from livetalk.config import AudioConfig, ModelConfig, Preset, RolloutConfig, TextConfig, VaeConfig, WeightsConfig

TINY = Preset(
    name="tiny",
    title="Tiny, for tests",
    height=32,
    width=32,
    model=ModelConfig(
        width=32,
        heads=2,
        layers=3,
        ffn_width=48,
        text_width=16,
        text_tokens=4,
        freq_width=32,
        audio_width=8,
        audio_bottleneck=16,
        audio_layers=(1, 2),
        rotary_split=(8, 4, 4),
    ),
    rollout=RolloutConfig(
        window_frames=9,
        sink_frames=3,
        timesteps=(1000.0, 750.0),
        sigmas=(1.0, 0.75),
        shift=3.0,
        prediction="portrait_residual",
    ),
    vae=VaeConfig(kind="small", widths=(16, 12, 8), encoder_widths=(8, 12, 16)),
    audio=AudioConfig(kind="mel", past_samples=8_000, look_ahead_samples=1_600, widths=(12, 12)),
    text=TextConfig(kind="words"),
    weights=WeightsConfig(folder="tiny", licence="apache-2.0"),
)
