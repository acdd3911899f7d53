"""The generator's training: clips on disk, what a batch looks like, falling loss, exact resume, evaluation."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY

from livetalk.distill import train
from livetalk.distill.data import ClipStore, Encoders, channel_weights, hush, make_clip, write_shards
from livetalk.distill.loop import (
    CHECKPOINT,
    LOG_FILE,
    Loop,
    LoopConfig,
    LoopState,
    flat_weights,
    orthogonal,
    write_weights,
)
from livetalk.distill.pretrain import DiffusionForcing, PretrainConfig, frame_rows, pretrain
from livetalk.distill.sheets import contact_sheet, rollout_sheet
from livetalk.distill.speech import HELD_OUT_SEED
from livetalk.distill.visemes import REST
from livetalk.hub import Models, load_models, random_models
from livetalk.model.transformer import CausalDiT
from livetalk.types import LiveTalkError, pictures_of
from livetalk.voice import available_voices

FRAMES = 12
CLIPS = 4

needs_renderer = pytest.mark.skipif(len(available_voices()) < 2, reason="needs the Debian packages espeak-ng and flite")


@functools.lru_cache(maxsize=1)
def tiny_models() -> Models:
    return random_models(TINY, seed=3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = "drawing needs skia-python with the Debian packages libegl1 and libgl1"
    pytest.importorskip("skia", reason=reason, exc_type=ImportError)
    folder = tmp_path_factory.mktemp("clips")
    models = tiny_models()
    write_shards(folder, range(CLIPS), FRAMES, TINY, Encoders(models.vae, models.audio, models.text))
    return folder


def run(clips: Path, folder: Path, steps: int = 6, matrix_rate: float = 0.01, **more: int) -> Loop:
    loop = LoopConfig(steps=steps, warmup_steps=2, matrix_rate=matrix_rate, log_every=1)
    return pretrain(TINY, clips, folder, tiny_models().vae, loop, PretrainConfig(batch=3), **more)


@needs_renderer
def test_a_clip_follows_from_its_seed(clips: Path) -> None:
    first, again, other = (make_clip(seed, 13, 32, "plain") for seed in (1, 1, 2))
    assert np.array_equal(first.pictures, again.pictures)
    assert np.array_equal(first.samples, again.samples)
    assert first.text == again.text
    assert not np.array_equal(first.pictures, other.pictures)
    assert first.poses.track("open")[0] == 0, "picture 0 is the portrait, its mouth is shut"


@needs_renderer
def test_shards_hold_clips_and_their_truth(clips: Path) -> None:
    store = ClipStore(clips)
    assert len(store) == CLIPS
    clip = store.clip(0)
    pictures = pictures_of(FRAMES)
    assert clip["latents"].shape == (16, FRAMES, 4, 4)
    assert clip["audio"].shape == (pictures, 8)
    assert clip["poses"].shape[0] == clip["spots"].shape[0] == pictures
    assert ((clip["spots"] > 0.2) & (clip["spots"] < 0.9)).all(), "mouth and eyes lie inside the picture"


def test_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="no clips"):
        ClipStore(tmp_path)


def test_hush_silences_sound_and_mouth() -> None:
    rng = np.random.default_rng(0)
    mouth = np.ones((60, 3), np.float32)
    samples, quiet = hush(np.ones(60_000, np.float32), mouth, rng)
    silent = samples.reshape(60, 1000).max(1) == 0
    assert silent.sum() >= 40
    inside = np.flatnonzero(silent)[2:-2]
    np.testing.assert_allclose(quiet[inside], np.tile(REST, (len(inside), 1)))
    assert (quiet[~silent][3:-3] == 1).all() or (~silent).sum() < 8


def test_rows_are_packed_as_the_network_packs_them() -> None:
    rows = torch.arange(9.0)[:, None]
    assert frame_rows(rows)[:, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


@needs_renderer
def test_a_batch_is_a_moment_of_a_rollout(clips: Path) -> None:
    store = ClipStore(clips)
    forcing = DiffusionForcing(store, TINY, PretrainConfig(batch=16, audio_dropout=0.5), torch.ones(16))
    draws = torch.Generator().manual_seed(0)
    windows = forcing.windows(draws)
    assert windows.latents.shape == (16, 16, TINY.rollout.window_frames, 4, 4)
    assert torch.equal(windows.latents[:, :, :1], windows.portraits), "the sink chunk begins with the portrait"
    assert (windows.weights[:, :, 0] == 0).all(), "the given frame has no loss"
    silent = (windows.audio == 0).all(dim=(1, 2)).sum()
    assert 0 < silent < 16
    starts = {tuple(forcing.frames(store.clip(0), draws).tolist()) for _ in range(50)}
    assert starts == {(0, 1, 2, 3, 4, 5, 6, 7, 8), (0, 1, 2, 6, 7, 8, 9, 10, 11)}
    levels = forcing.levels(2000, draws)
    assert 0.15 < float((levels == 0).float().mean()) < 0.2
    assert {1.0, 0.75} <= set(levels.unique().tolist())


@needs_renderer
def test_the_loss_falls_and_resume_is_exact(clips: Path, tmp_path: Path) -> None:
    whole = run(clips, tmp_path / "whole")
    assert len((tmp_path / "whole" / LOG_FILE).read_text().splitlines()) == 6
    assert (tmp_path / "whole" / CHECKPOINT).is_file()

    part = tmp_path / "part"
    assert run(clips, part, stop_after=3).state.step == 3
    resumed = run(clips, part)
    assert resumed.state.step == 6
    for one, other in ((whole.state.weights, resumed.state.weights), (whole.state.average, resumed.state.average)):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    LoopState.start(torch.zeros(7)).save(tmp_path / CHECKPOINT)
    with pytest.raises(LiveTalkError, match="7 weights"):
        LoopState.load(tmp_path / CHECKPOINT, torch.zeros(8))


def test_flat_weights_go_back_where_they_came_from() -> None:
    one, two = CausalDiT(TINY.model), CausalDiT(TINY.model)
    write_weights(two, flat_weights(one))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_orthogonal_keeps_directions_and_levels_strengths() -> None:
    matrices = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(0))
    strengths = torch.linalg.svdvals(orthogonal(matrices))
    assert float(strengths.min()) > 0.5
    assert float(strengths.max()) < 1.5


def test_channels_that_change_pictures_more_weigh_more() -> None:
    models = tiny_models()
    weights = channel_weights(models.vae, torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert weights.shape == (16,)
    assert float(weights.min()) >= 0.4
    assert float(weights.max()) <= 2.5


@needs_renderer
def test_a_sheet_shows_truth_above_rollout(clips: Path) -> None:
    models = tiny_models()
    sheet = rollout_sheet(models.transformer, models.vae, ClipStore(clips), TINY)
    assert sheet.size == (pictures_of(FRAMES) // 6 * 32, 2 * CLIPS * 32)


def test_an_unknown_stage_lists_the_stages(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="pretrain"):
        train.run("bake", "smoke", tmp_path)
    with pytest.raises(LiveTalkError, match="distill vae"):
        train.run("data", "smoke", tmp_path)


def test_contact_sheet_lays_out_rows() -> None:
    clip = np.zeros((5, 8, 8, 3), np.uint8)
    clip[2] = 255
    sheet = np.asarray(contact_sheet([clip, clip], columns=3, every=2))
    assert sheet.shape == (16, 24, 3)
    assert sheet[:, 8:16].min() == 255
    assert sheet[:, 16:].max() == 0


@needs_renderer
def test_evaluation_runs_through_the_performer(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from livetalk.eval import clips as evaluation
    from livetalk.rulers import Probe

    monkeypatch.setattr(evaluation, "find_probe", lambda: Probe().eval())
    monkeypatch.setattr(evaluation, "SILENCE_S", 1.0)
    plan = evaluation.Plan(clips=1, seconds=1.5, long_clips=0, silent_clips=1)
    report = evaluation.evaluate(tiny_models(), plan)
    figures = report["clips"][0]
    assert {"sync_r", "amplitude", "shifted_r", "identity", "ceiling"} <= set(figures)
    assert report["summary"]["clips"] == 1
    with pytest.raises(LiveTalkError, match="trained on"):
        evaluation.evaluate(tiny_models(), replace(plan, first_seed=HELD_OUT_SEED - 1))


@needs_renderer
def test_the_whole_recipe_runs_and_its_result_loads(clips: Path, tmp_path: Path) -> None:
    figures = train.run("all", "smoke", tmp_path)
    assert list(figures) == list(train.STAGES)
    assert load_models(tmp_path / "model").preset.name == "smoke"
    assert list((tmp_path / "pretrain").glob("step-*.png")), "a contact sheet beside the checkpoint"
