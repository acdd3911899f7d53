"""Measuring a model: the set without a renderer, words, long rollouts, student and teacher, reports, bad arguments."""

from __future__ import annotations

import functools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY

from livetalk.__main__ import main
from livetalk.distill.portraits import POSE_FIELDS, Poses
from livetalk.distill.speech import HELD_OUT_SEED, HELD_OUT_VOICES
from livetalk.eval import clips, long, truth, versus
from livetalk.eval.cases import MAKE_AGAIN, Case, CaseSet, Reference, cut, fingerprint, read_set, write_set
from livetalk.eval.plots import Line, line_plot
from livetalk.eval.watch import find_probe
from livetalk.hub import Models, random_models, save_models
from livetalk.rulers import Gaussian
from livetalk.rulers.probe import FEATURES
from livetalk.types import MODEL_SAMPLES_PER_PICTURE, PICTURES_PER_SECOND, LiveTalkError
from livetalk.voice import available_voices

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "mini" / "held-out"
LOOK_AHEAD = TINY.audio.look_ahead_samples


@functools.lru_cache(maxsize=1)
def tiny_models() -> Models:
    return random_models(TINY, seed=3)


def made_up(name: str, kind: str, pictures: int, seed: int) -> Case:
    """A case of noise: no face, but everything a measurement touches."""
    rng = np.random.default_rng(seed)
    values = np.zeros((pictures, len(POSE_FIELDS)), np.float32)
    values[:, 0] = np.clip(np.sin(np.arange(pictures) * 0.9 + seed), 0, 1)
    values[0] = 0
    loud = np.repeat(values[:, 0], MODEL_SAMPLES_PER_PICTURE)
    samples = np.concatenate([0.3 * loud * rng.standard_normal(len(loud)), np.zeros(LOOK_AHEAD)]).astype(np.float32)
    figures = {"sharp_eyes": 4.0, "sharp_mouth": 4.0, "flicker": 0.2, "open_deviation": 0.3, "movement": 1.0}
    still = np.zeros((16, 16), bool)
    still[:3] = True
    reference = Reference(still, figures | {"probe_r": 0.99}, figures | {"ceiling": 0.9})
    portrait = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    return Case(
        name=name,
        seed=HELD_OUT_SEED + seed,
        kind=kind,  # type: ignore[arg-type]
        portrait=portrait,
        samples=samples,
        poses=Poses(values),
        text="someone talks",
        mood="happy",
        motion="gentle",
        voice=HELD_OUT_VOICES[seed % 2],
        reference=None if kind == "words" else reference,
    )


def made_up_set(encoders: str = "") -> CaseSet:
    cases = (
        made_up("talk-0", "talk", 24, 0),
        made_up("talk-1", "talk", 24, 1),
        made_up("long-0", "long", 18, 2),
        made_up("long-1", "long", 18, 3),
        made_up("words-0", "words", 16, 4),
    )
    seen = [Gaussian(np.zeros(size), np.eye(size)) for size in (FEATURES, 2 * FEATURES)]
    return CaseSet(cases, "made up", *seen, diversity=1.0, encoders=encoders)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny model, and a set for it."""
    model, cases = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("set")
    models = tiny_models()
    save_models(model, TINY, {"transformer": models.transformer, "vae": models.vae, "audio": models.audio})
    write_set(cases, made_up_set())
    return str(model), str(cases)


def test_a_set_needs_no_renderer_and_leaves_a_report(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skia", None)
    model, cases = folders
    wanted = ["--preset", model, "--device", "cpu", "--data", cases, "--report", str(tmp_path), "--silent", "0"]
    assert main(["evaluate", "clips", *wanted]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"sync_r", "sync_r_interval", "width_r", "amplitude", "sharp_eyes", "sharp_mouth"} <= set(result["summary"])
    assert {"silence_open", "identity", "flicker", "black_frames", "probe_r"} <= set(result["summary"])
    assert {"frechet_pictures", "frechet_clips", "motion_diversity", "mood_share"} <= set(result["summary"])
    assert result["summary"]["clips"] == 4 and len(result["clips"]) == len(result["long"]) == 2
    assert not result["encoders_known"] and "ceiling" not in result["summary"], "figures of another VAE are left out"
    assert sum(sum(read.values()) for read in result["words"]["moods"].values()) == 5
    assert json.loads((tmp_path / "report.json").read_text()) == result
    page = (tmp_path / "report.md").read_text()
    for picture in ("clips.png", "openness.png", "time.png"):
        assert (tmp_path / picture).stat().st_size > 500 and picture in page
    assert main(["evaluate", "clips", *wanted[:4], "--data", "fresh"]) == 2
    assert "skia-python is missing" in capsys.readouterr().err


def test_known_encoders_give_the_ceiling_and_a_listening_face_is_read() -> None:
    models = tiny_models()
    plan = clips.Plan(clips=1, seconds=1.0, long_clips=0, words=0, silent_clips=1, silent_s=1.0)
    result = clips.evaluate(models, find_probe(), made_up_set(fingerprint(models)), plan)
    assert result["summary"]["ceiling"] == 0.9 and "flicker_ratio" in result["clips"][0]
    assert result["summary"]["share_of_ceiling"] == pytest.approx(result["summary"]["sync_r"] / 0.9, abs=1e-3)
    assert {"open", "blinks_per_minute", "movement"} <= set(result["silence"][0])
    assert result["words"] == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["clips", "--clips", "99"], "99 talking clips were asked for, the set has 2"),
        (["clips", "--seconds", "0.1"], "cannot be measured"),
        (["clips", "--clips", "0", "--long", "0", "--words", "0"], "Nothing to measure"),
        (["clips", "--data", "no-such-folder"], "There is no held-out set"),
        (["clips", "--seed", "9000000"], "has its own seeds"),
        (["long", "--minutes", "1"], "cannot be compared with itself"),
        (["long", "--sinks", "4"], "4 sink frames do not fit"),
        (["long", "--faces", "5"], "has 2 long clips"),
        (["teacher", "--teacher", "no-such-folder"], "There is no teacher"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(
    folders: tuple[str, str], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cases = folders
    data = [] if "--data" in arguments else ["--data", cases]
    assert main(["evaluate", *arguments, *data, "--preset", model, "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err


def test_seeds_of_training_are_refused() -> None:
    with pytest.raises(LiveTalkError, match="trained on"):
        truth.case_plans(truth.SetPlan(HELD_OUT_SEED - 1))


def test_sets_come_back_as_they_were_written(folders: tuple[str, str], tmp_path: Path) -> None:
    written, read = made_up_set(), read_set(Path(folders[1]))
    for one, other in zip(written.cases, read.cases, strict=True):
        assert (one.name, one.seed, one.text, one.voice) == (other.name, other.seed, other.text, other.voice)
        assert np.array_equal(one.portrait, other.portrait) and one.samples.shape == other.samples.shape
        assert np.abs(one.poses.values - other.poses.values).max() < 1e-3
        assert np.corrcoef(np.abs(one.samples), np.abs(other.samples))[0, 1] > 0.5, "OGG is lossy"
        assert (one.reference is None) == (other.reference is None)
    assert read.diversity == 1.0 and read.pictures_seen is not None
    assert cut(written.cases[0], 1.0, LOOK_AHEAD).samples.shape == (16 * MODEL_SAMPLES_PER_PICTURE + LOOK_AHEAD,)
    (tmp_path / "set.json").write_text("{}")
    with pytest.raises(LiveTalkError, match="could not be read") as told:
        read_set(tmp_path)
    assert MAKE_AGAIN in str(told.value)


def test_weights_have_one_fingerprint_in_every_number_format() -> None:
    assert fingerprint(tiny_models()) == fingerprint(random_models(TINY, seed=3, dtype="bfloat16"))
    assert fingerprint(tiny_models()) != fingerprint(random_models(TINY, seed=4))


def test_a_long_rollout_with_other_sinks_and_without_the_portrait(tmp_path: Path) -> None:
    models, plan = tiny_models(), long.LongPlan(stretches=3, sinks=(0, 9))
    talks = long.talks_from(made_up_set().of_kind("long"), plan, LOOK_AHEAD)
    assert [part.name for part in talks[0].parts] == ["long-0", "long-1", "long-0"]
    result = long.evaluate_long(models, find_probe(), talks, long.variants(plan), tmp_path)
    rows = result["variants"]
    assert [(row["sink_frames"], row["portrait_channels"]) for row in rows] == [
        (0, True),
        (9, True),
        (0, False),
        (9, False),
    ]
    assert all(len(row["stretches"]) == 3 and set(row["last_over_first"]) == set(long.COMPARED) for row in rows)
    assert rows[0]["sharp_mouth"] != rows[2]["sharp_mouth"], "the portrait channels matter"
    assert result["seconds"] == 3 * 18 / PICTURES_PER_SECOND
    assert {"report.md", "report.json", "faces.png", "over-time.png"} <= {path.name for path in tmp_path.iterdir()}


def test_student_and_teacher_on_the_same_clips(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versus, "BOOTSTRAP_ROUNDS", 3)
    models = tiny_models()
    teacher = versus.load_teacher(Path(folders[0]), models)
    plan = versus.VersusPlan(clips=2, frames=6, steps=4, text_guidance=2.0, audio_guidance=3.0)
    result = versus.compare(models, teacher, find_probe(), made_up_set(), plan, tmp_path)
    for side in ("student", "teacher"):
        assert {"sync_r", "frechet_pictures", "frechet_clips_interval", *versus.TIMED} <= set(result[side])
    assert set(result["ratios"]) == {"generator", "all_stages", "first_picture"}
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["difference"]["sync_r_interval"][0] <= result["difference"]["sync_r"]
    assert "versus.png" in (tmp_path / "report.md").read_text()
    with pytest.raises(LiveTalkError, match="clips are needed"):
        versus.compare(models, teacher, find_probe(), made_up_set(), replace(plan, frames=9))


@pytest.mark.skipif(len(available_voices()) < 2, reason="needs the Debian packages espeak-ng and flite")
def test_a_drawn_set_knows_the_truth_and_the_ceiling() -> None:
    pytest.importorskip("skia", reason="drawing needs skia-python", exc_type=ImportError)
    models, probe = tiny_models(), find_probe()
    plan = truth.SetPlan(HELD_OUT_SEED + 5, 1, 1.5, 0, 60.0, 1, 1.0, voices=("flite:slt",))
    drawn = truth.draw_set(models, probe, plan, "drawn")
    talk, words = drawn.cases
    assert talk.reference is not None and words.reference is None and words.mood == "neutral"
    assert {"ceiling", "heard_r", "flicker", "sharp_eyes"} <= set(talk.reference.through)
    assert talk.voice == "flite:slt" and drawn.encoders == fingerprint(models)
    figures = truth.vae_figures(models, probe, [talk])
    assert 5 < figures["psnr"] < 60 and -1 <= figures["lip_r"] <= 1
    assert sum(len(piece) for piece in truth.through_vae(models, np.zeros((24, 32, 32, 3), np.uint8))) == 21


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="needs checkpoints/mini/held-out (evaluate make-set)")
def test_the_shipped_set_is_small_and_held_out() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 3_000_000
    shipped = read_set(SHIPPED)
    assert all(case.seed >= HELD_OUT_SEED for case in shipped.cases)
    voices = {case.voice for case in shipped.cases}
    assert set(HELD_OUT_VOICES) <= voices and {"flite:rms", "flite:awb"} <= voices
    assert shipped.encoders and shipped.pictures_seen is not None
    assert all(case.reference is not None for case in shipped.cases if case.kind != "words")


def test_plots_draw_lines_and_leave_gaps() -> None:
    whole = line_plot([Line("a", range(20), np.linspace(0, 1, 20))], "title", size=(200, 120))
    broken = line_plot([Line("a", range(20), [math.nan] * 20)], "title", size=(200, 120))
    assert whole.size == (200, 120)
    assert np.asarray(whole, int).sum() < np.asarray(broken, int).sum(), "a line is ink"
