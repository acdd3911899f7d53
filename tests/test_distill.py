"""The recipe: clips on disk, batches, and every stage from nothing to a model that loads (``distill all``)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY

from livetalk.config import LIVETALK_1_3B, from_dict, to_dict
from livetalk.distill import train
from livetalk.distill.curves import read_log
from livetalk.distill.data import ClipStore, channel_weights, hush, make_clip
from livetalk.distill.learner import save_tensors
from livetalk.distill.loop import CURVES, LOG_FILE, Loop
from livetalk.distill.portraits import POSE_FIELDS
from livetalk.distill.recipes import Recipe, recipe
from livetalk.distill.sheets import contact_sheet
from livetalk.distill.teacher import TeacherConfig, TeacherLoss, frame_rows, mood_change
from livetalk.distill.visemes import REST
from livetalk.hub import load_models, random_models, read_checkpoint, save_models
from livetalk.model.transformer import CausalDiT
from livetalk.types import LiveTalkError, pictures_of
from livetalk.voice import available_voices

SMOKE = recipe("smoke")
FRAMES = SMOKE.clip_frames
RUNS = ("rulers", "audio", "vae/joint", "teacher", "ode", "dmd")
GENERATOR = ("teacher", "ode", "dmd")
needs_renderer = pytest.mark.skipif(len(available_voices()) < 2, reason="needs the Debian packages espeak-ng and flite")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole run of the recipe "smoke"."""
    reason = "drawing needs skia-python with the Debian packages libegl1 and libgl1"
    pytest.importorskip("skia", reason=reason, exc_type=ImportError)
    folder = tmp_path_factory.mktemp("run")
    figures = train.run("all", "smoke", folder)
    assert list(figures) == list(train.STAGES)
    return folder


@needs_renderer
def test_the_whole_recipe_runs_and_its_result_loads(run: Path) -> None:
    assert load_models(run / "model").preset.name == "smoke"
    for name in GENERATOR:
        assert list((run / name).glob("step-*.png")), "a contact sheet beside the checkpoint"
        assert (run / name / CURVES).is_file()
    assert from_dict(Recipe, json.loads((run / "recipe.json").read_text())) == SMOKE


@needs_renderer
@pytest.mark.parametrize("name", RUNS)
def test_the_loss_of_every_stage_falls(run: Path, name: str) -> None:
    figure = "partner_fixed" if name == "dmd" else "fixed"  # the student's gradient follows a critic that moves
    fixed = read_log(run / name / LOG_FILE)[figure][1]
    assert fixed[-1] < fixed[0]


@needs_renderer
@pytest.mark.parametrize("name", GENERATOR)
def test_resume_gives_the_same_weights(run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out = GENERATOR[GENERATOR.index(name) :]
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(*leave_out))
    with monkeypatch.context() as patch:
        whole = Loop.run
        patch.setattr(Loop, "run", lambda self, *_: whole(self, stop_after=3))
        train.run(name, "smoke", tmp_path / "run")
    interrupted = load_file(tmp_path / "run" / name / train.RESULT)
    train.run(name, "smoke", tmp_path / "run")
    resumed, expected = load_file(tmp_path / "run" / name / train.RESULT), load_file(run / name / train.RESULT)
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)
    assert not all(torch.equal(interrupted[key], expected[key]) for key in expected)


@needs_renderer
def test_a_run_goes_on_from_a_finished_model(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("rulers", "audio", "vae"):
        assert "taken from" in train.run(stage, "smoke", tmp_path, run / "model")[stage]["skipped"]
    base = read_checkpoint(run / "model")[1]
    for part in ("audio", "vae"):
        taken = load_file(tmp_path / part / f"{part}.safetensors")
        assert all(torch.equal(value, base[f"{part}.{name}"]) for name, value in taken.items())
    shutil.copytree(run / "clips", tmp_path / "clips")
    begun: list[dict[str, torch.Tensor]] = []
    whole = train.teacher.train
    monkeypatch.setattr(train.teacher, "train", lambda *args: (begun.append(args[-2]), whole(*args))[1])
    train.run("reader", "smoke", tmp_path, run / "model")
    train.run("teacher", "smoke", tmp_path, run / "model")
    assert all(torch.equal(value, base[f"transformer.{name}"]) for name, value in begun[0].items())


def test_a_base_that_is_driven_less_says_the_same_until_it_is_driven(tmp_path: Path) -> None:
    narrow = replace(SMOKE.preset, model=replace(SMOKE.preset.model, audio_width=11, drive_width=3))
    models = random_models(narrow, dtype="float32")
    modules = {"transformer": models.transformer, "vae": models.vae, "audio": models.audio}
    save_models(tmp_path, narrow, modules, "float32")
    wide = CausalDiT(SMOKE.preset.model)
    train._from_base(replace(SMOKE, base=str(tmp_path)), wide, "transformer")
    rows = torch.randn(1, 12, 16)
    rows[..., 11:] = 0
    assert torch.allclose(wide.audio_proj(rows), models.transformer.audio_proj(rows[..., :11]), atol=1e-5)
    rows[..., 11:] = 1
    assert not torch.allclose(wide.audio_proj(rows), models.transformer.audio_proj(rows[..., :11]), atol=1e-2)


@needs_renderer
def test_a_clip_follows_from_its_seed(run: Path) -> None:
    first, again, other = (make_clip(seed, 13, 32, "plain") for seed in (1, 1, 2))
    assert np.array_equal(first.pictures, again.pictures)
    assert np.array_equal(first.samples, again.samples)
    assert first.text == again.text
    assert not np.array_equal(first.pictures, other.pictures)
    assert first.poses.track("open")[0] == 0, "picture 0 is the portrait, its mouth is shut"


@needs_renderer
def test_shards_hold_clips_and_their_truth(run: Path) -> None:
    store = ClipStore(run / "clips")
    assert len(store) == SMOKE.clips
    clip = store.clip(0)
    pictures = pictures_of(FRAMES)
    assert clip["latents"].shape == (16, FRAMES, 4, 4)
    assert clip["audio"].shape == (pictures, 8)
    assert clip["poses"].shape[0] == clip["spots"].shape[0] == pictures
    assert ((clip["spots"] > 0.2) & (clip["spots"] < 0.9)).all(), "mouth and eyes lie inside the picture"


@needs_renderer
def test_a_batch_is_a_moment_of_a_rollout(run: Path) -> None:
    store, preset = ClipStore(run / "clips"), SMOKE.preset
    config = TeacherConfig(batch=16, audio_dropout=0.5, sinks=(0, 3))
    forcing = TeacherLoss(store, preset, config, torch.ones(16))
    draws = torch.Generator().manual_seed(0)
    windows = forcing.windows(draws)
    assert windows.latents.shape == (16, 16, preset.rollout.window_frames, 4, 4)
    assert torch.equal(windows.latents[windows.starts, :, :1], windows.portraits[windows.starts])
    assert (windows.weights[windows.starts, :, 0] == 0).all(), "the given frame has no loss"
    silent = (windows.audio[..., :8] == 0).all(dim=(1, 2)).sum()
    assert 0 < silent < 16
    starts = {tuple(forcing.frames(store.clip(0), draws, start=True).tolist()) for _ in range(80)}
    assert starts == {tuple(range(9))}
    later = {tuple(forcing.frames(store.clip(0), draws, start=False).tolist()) for _ in range(80)}
    assert later == {(0, 1, 2, 6, 7, 8, 9, 10, 11), tuple(range(3, 12))}


@needs_renderer
def test_starts_are_taken_where_the_words_must_be_listened_to(run: Path) -> None:
    store = ClipStore(run / "clips")
    forcing = TeacherLoss(store, SMOKE.preset, TeacherConfig(change_share=1.0), torch.ones(16))
    forcing._changing, forcing._looked_at = [2], len(store)
    draws = torch.Generator().manual_seed(0)
    wanted = store.clip(2)["seeds"]
    assert all(int(forcing.draw_clip(draws, start=True)["seeds"]) == int(wanted) for _ in range(20))
    assert len({int(forcing.draw_clip(draws, start=False)["seeds"]) for _ in range(40)}) > 1


def test_a_mood_that_the_portrait_hides_is_a_change() -> None:
    calm = torch.zeros(10, len(POSE_FIELDS))
    smiling = calm.clone()
    smiling[1:, POSE_FIELDS.index("smile")] = 0.9
    assert mood_change({"poses": calm}) == 0
    assert mood_change({"poses": smiling}) == pytest.approx(0.9)


@needs_renderer
def test_levels_are_those_of_the_rollout_and_between(run: Path) -> None:
    forcing = TeacherLoss(ClipStore(run / "clips"), SMOKE.preset, TeacherConfig(), torch.ones(16))
    draws = torch.Generator().manual_seed(0)
    levels = forcing.levels(2000, 3, draws, same=False)
    assert 0.15 < float((levels == 0).float().mean()) < 0.2
    assert {1.0, 0.75} <= set(levels.unique().tolist())


def test_livetalk_trains_from_given_weights(tmp_path: Path) -> None:
    """The 1.3B recipe with shrunken sizes: a larger teacher, velocity, shift 5, absolute positions, accelerate."""
    state = pytest.importorskip("accelerate.state")
    chosen = shrunken(recipe("livetalk-1.3b"))
    published_stand_ins(chosen, tmp_path)
    try:
        figures = train.run_recipe(chosen, tmp_path)
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)
    assert "skipped" in figures["vae"]
    assert figures["export"]["of"] == "dmd"
    made = load_file(tmp_path / "model" / train.RESULT)
    assert made.keys() == CausalDiT(chosen.preset.model).state_dict().keys()
    for name, figure in (("ode", "fixed"), ("dmd", "partner_fixed")):
        fixed = read_log(tmp_path / name / LOG_FILE)[figure][1]
        assert fixed[-1] < fixed[0]


def shrunken(chosen: Recipe) -> Recipe:
    """The same run with a tiny network and four steps."""
    model = replace(TINY.model, audio_width=24, layers=4, audio_layers=None)
    rollout = replace(LIVETALK_1_3B.rollout, window_frames=15, sink_frames=9)
    preset = replace(chosen.preset, height=32, width=32, model=model, rollout=rollout)
    short = {"steps": 6, "learning_rate": 2e-3, "log_every": 1, "curves": False}
    critic = replace(chosen.dmd.critic, learning_rate=2e-3)
    dmd = replace(chosen.dmd, frames=(9,), scored_frames=9, alone=1, every=2, critic=critic, critic_model=model)
    return replace(
        chosen,
        preset=preset,
        clip_frames=9,
        pairs=replace(chosen.pairs, clips=2, frames=9, steps=4, dtype="float32"),
        ode_loop=replace(chosen.ode_loop, **short),
        dmd=replace(dmd, teacher_model=replace(model, width=48, heads=3, layers=6, ffn_width=64)),
        dmd_loop=replace(chosen.dmd_loop, **short),
    )


def published_stand_ins(chosen: Recipe, folder: Path) -> None:
    """Random weights where the published ones would be, and two curated clips."""
    model = chosen.preset.model
    for name, sizes in (("student", model), ("teacher", chosen.dmd.teacher_model)):
        torch.manual_seed(len(name))
        (folder / "given").mkdir(exist_ok=True)
        save_tensors(folder / "given" / f"{name}.safetensors", CausalDiT(sizes).state_dict())
    draws = torch.Generator().manual_seed(0)
    pictures, frames = pictures_of(chosen.clip_frames), chosen.clip_frames
    clips = {
        "latents": torch.randn(2, 16, frames, 4, 4, generator=draws).half(),
        "audio": torch.randn(2, pictures, model.heard_width, generator=draws).half(),
        "text": torch.randn(2, model.text_tokens, model.text_width, generator=draws).half(),
        "poses": torch.zeros(2, pictures, len(POSE_FIELDS)),
        "spots": torch.full((2, pictures, 3, 2), 0.5),
        "seeds": torch.arange(2),
    }
    (folder / "clips").mkdir()
    save_tensors(folder / "clips" / "shard-00000000.safetensors", clips)


def test_a_recipe_can_be_read_from_a_file(tmp_path: Path) -> None:
    for name in ("mini", "livetalk-1.3b"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(to_dict(recipe(name))))
        assert recipe(str(path)) == recipe(name)
    with pytest.raises(LiveTalkError, match=r"livetalk-1\.3b"):
        recipe("maxi")
    with pytest.raises(LiveTalkError, match=r"recipe\.json"):
        recipe(str(tmp_path / "no.json"))


def test_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="no clips"):
        ClipStore(tmp_path)


def test_an_unknown_stage_lists_the_stages(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="teacher"):
        train.run("bake", "smoke", tmp_path)
    with pytest.raises(LiveTalkError, match="distill vae"):
        train.run("data", "smoke", tmp_path)
    with pytest.raises(LiveTalkError, match="published weights"):
        train.run("teacher", "livetalk-1.3b", tmp_path)


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


def test_channels_that_change_pictures_more_weigh_more() -> None:
    vae = random_models(TINY, seed=3).vae
    weights = channel_weights(vae, torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert weights.shape == (16,)
    assert float(weights.min()) >= 0.4
    assert float(weights.max()) <= 2.5


def test_contact_sheet_lays_out_rows() -> None:
    clip = np.zeros((5, 8, 8, 3), np.uint8)
    clip[2] = 255
    sheet = np.asarray(contact_sheet([clip, clip], columns=3, every=2))
    assert sheet.shape == (16, 24, 3)
    assert sheet[:, 8:16].min() == 255
    assert sheet[:, 16:].max() == 0
