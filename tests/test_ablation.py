"""The paper's ablation in miniature: the whole command on a tiny run, what is shared, what is spoiled, what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk.__main__ import main
from livetalk.config import to_dict
from livetalk.distill import loop, train
from livetalk.distill.data import ClipStore
from livetalk.distill.recipes import recipe
from livetalk.eval import ablation, ablation_measure, ablation_plan
from livetalk.eval.ablation_conditions import (
    FAULTLESS,
    SHARD,
    Faults,
    FaultShares,
    faults_of,
    spoiled_picture,
    write_conditions,
)
from livetalk.eval.ablation_measure import Statistics, interval, over_seeds, resamplings
from livetalk.eval.ablation_plan import ARMS, BEYOND, AblationPlan
from livetalk.eval.ablation_report import COUNTERPARTS, PAPER_ROWS, Change, changes_of, steps, verdict
from livetalk.hub import load_models
from livetalk.types import LiveTalkError
from livetalk.voice import available_voices

SMOKE = recipe("smoke")
PORTRAIT = Path(__file__).parents[1] / "checkpoints" / "mini" / "held-out" / "talk-0.png"
EVERYTHING = ("--clips", "2", "--scale", "0.06")
needs_renderer = pytest.mark.skipif(len(available_voices()) < 2, reason="needs the Debian packages espeak-ng and flite")


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> Path:
    """What the recipe "smoke" leaves before the student: clips, encoders, a teacher."""
    reason = "drawing needs skia-python with the Debian packages libegl1 and libgl1"
    pytest.importorskip("skia", reason=reason, exc_type=ImportError)
    patch.setattr(loop, "draw_curves", lambda *_: False)  # a second each
    patch.setattr(ablation_measure, "ROUNDS", 40)
    folder = tmp_path_factory.mktemp("run")
    train.run_recipe(SMOKE, folder, ("audio", "vae", "data", "reader", "teacher"))
    return folder


@pytest.fixture(scope="module")
def done(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished ablation of that run."""
    out = tmp_path_factory.mktemp("ablation")
    assert main(command(run, out)) == 0
    return out


def command(run: Path, out: Path) -> list[str]:
    return ["evaluate", "ablation", "--run", str(run), "--out", str(out), *EVERYTHING]


def stages(out: Path, kind: str) -> list[Path]:
    return sorted(out.glob(f"{kind}-*"))


@needs_renderer
def test_every_recipe_is_trained_and_judged(done: Path) -> None:
    result = json.loads((done / "ablation.json").read_text())
    assert [arm["setting"] for arm in result["arms"]] == [arm.name for arm in ARMS]
    for arm in result["arms"]:
        assert arm["paper"]["FID"] == PAPER_ROWS[arm["setting"]][0]
        for when in ("after_ode", "after_dmd"):
            assert {"sync_r", "frechet_pictures", "frechet_clips", "sharp_eyes", "sharp_mouth"} <= set(arm[when])
            assert {"identity", "flicker", "amplitude", "movement"} <= set(arm[when])
            low, high = arm[when]["frechet_pictures_interval"]
            assert 0 <= low <= high
    assert [step["setting"] for step in result["steps"]] == [arm.name for arm in ARMS[1:]]
    settings = result["settings"]
    assert [one["ode_steps"] for one in settings] == [2, 2, 12, 12, 12] and {one["dmd_steps"] for one in settings} == {
        3
    }
    assert [one["learning_rate"] / settings[0]["learning_rate"] for one in settings] == [1, 1, 1, 2, 2]
    assert settings[3]["audio_guidance"] == 1.75 and settings[4]["audio_guidance"] == 2.25
    page = (done / "ablation.md").read_text()
    assert "| FID | FVD | Sync-C | Sync-D | IQA | ASE |" in page and "| 27.1 | 338.08 |" in page
    for name in ("ablation.png", "pictures.png"):
        assert (done / name).stat().st_size > 500 and name in page


@needs_renderer
def test_recipes_that_differ_only_later_share_their_first_stage(done: Path) -> None:
    assert len(stages(done, "pairs")) == 2 and len(stages(done, "ode")) == 3 and len(stages(done, "dmd")) == 5
    result = json.loads((done / "ablation.json").read_text())
    first, second, *rest = (arm["after_ode"] for arm in result["arms"])
    assert rest[0] == rest[1] == rest[2]
    assert first != second != rest[0]
    finished = {(stage / "model.safetensors").read_bytes() for stage in stages(done, "dmd")}
    assert len(finished) == 5, "every recipe is another student"
    assert load_models(stages(done, "dmd")[0] / "model", "cpu").preset.rollout.audio_guidance == 0


@needs_renderer
def test_what_goes_beyond_the_paper_is_compared_with_one_recipe(run: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "beyond"
    shutil.copytree(done, out)
    tried = ("pairs of a causal teacher", "a reader looks at the lips", "rollouts no longer than the window")
    with pytest.MonkeyPatch.context() as few:
        few.setattr(ablation_plan, "BEYOND", (BEYOND[0], *(arm for arm in BEYOND if arm.name in tried)))
        assert main([*command(run, out), "--beyond"]) == 0
    result = json.loads((out / "beyond.json").read_text())
    first, *others = result["arms"]
    assert not first["clear"] and {arm["setting"] for arm in others} == set(tried)
    assert all({"sync_r", "frechet_clips", "flicker"} <= set(arm["changes"]) for arm in others)
    assert len(stages(out, "pairs")) == 3 and len(stages(out, "ode")) == 4, "only causal pairs start another student"
    assert len(stages(out, "dmd")) == len(stages(done, "dmd")) + 3
    assert "beyond.png" in (out / "beyond.md").read_text()


@needs_renderer
def test_without_a_reader_nothing_is_begun(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poor = tmp_path / "run"
    shutil.copytree(run, poor, ignore=lambda *_: {"reader"})
    assert main([*command(poor, tmp_path / "out"), "--beyond"]) == 2
    assert "distill reader" in capsys.readouterr().err


@needs_renderer
def test_a_stopped_ablation_goes_on(run: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((done / "ablation.json").read_text())
    lost, kept = stages(done, "dmd")[-1], stages(done, "dmd")[0] / "model.safetensors"
    weights, written = (lost / "model.safetensors").read_bytes(), kept.stat().st_mtime_ns
    shutil.rmtree(lost)
    trained, whole = [], ablation.run_ranks
    with pytest.MonkeyPatch.context() as watched:
        watched.setattr(ablation, "run_ranks", lambda *given: (trained.append(given[1].__name__), whole(*given)))
        assert main(command(run, done)) == 0
        assert trained == ["_dmd_rank", "judge_clips"], "nothing that was finished is done again"
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == before
        assert (lost / "model.safetensors").read_bytes() == weights
        assert kept.stat().st_mtime_ns == written


@needs_renderer
def test_uncurated_conditions_are_spoiled_and_always_the_same(run: Path, tmp_path: Path) -> None:
    given = ablation.open_run(run)
    encoders, everything = (given.vae(), given.ear()), FaultShares(0.4, 0.3, 0.3, 0, 0.5, 0.5, 1.0)
    sources = {"clean": FAULTLESS, "one": everything, "again": everything}
    for name, shares in sources.items():
        write_conditions(tmp_path / name, run / "clips", 4, 9, encoders, shares)
    assert (tmp_path / "one" / SHARD).read_bytes() == (tmp_path / "again" / SHARD).read_bytes()
    whole, clean, bad = (ClipStore(folder) for folder in (run / "clips", tmp_path / "clean", tmp_path / "one"))
    assert len(clean) == len(bad) == 4
    for index in range(4):
        was, spoiled = clean.clip(index), bad.clip(index)
        assert torch.equal(was["latents"], whole.clip(index)["latents"][:, :9])
        assert not torch.equal(was["latents"][:, 0], spoiled["latents"][:, 0]), "the portrait"
        assert torch.equal(was["latents"][:, 1:], spoiled["latents"][:, 1:]), "the truth stays"
        assert not torch.equal(was["audio"], spoiled["audio"]) and torch.isfinite(spoiled["audio"]).all()
        assert was["text"].any() and not spoiled["text"].any()
        assert all(torch.equal(was[key], spoiled[key]) for key in ("poses", "spots", "seeds"))


def test_faults_come_in_their_shares() -> None:
    shares = FaultShares()
    drawn = [faults_of(seed, shares) for seed in range(2_000)]
    assert drawn == [faults_of(seed, shares) for seed in range(2_000)]
    for name, kind in [(f.name, "portrait") for f in fields(shares)[:4]] + [("noise", "sound"), ("dubbed", "sound")]:
        share = sum(getattr(one, kind) == name for one in drawn) / len(drawn)
        assert share == pytest.approx(getattr(shares, name), abs=0.03)
    assert 0.15 < sum(one == Faults() for one in drawn) / len(drawn) < 0.35


def test_curation_would_refuse_the_spoiled_portraits() -> None:
    pytest.importorskip("cv2", reason="needs opencv-python-headless (requirements-train.txt)")
    from livetalk.distill.curate.judge import blur_effect
    from livetalk.distill.curate.limits import Limits
    from livetalk.rulers import luminance

    picture, limits = np.asarray(Image.open(PORTRAIT).convert("RGB")), Limits()
    light = {name: luminance(spoiled_picture(picture, name)[None])[0] for name in ("blurred", "dark")}
    assert blur_effect(luminance(picture[None])[0]) < limits.reference_blur < blur_effect(light["blurred"])
    assert light["dark"].mean() < limits.dark_light < luminance(picture[None]).mean()


def made_up(centre: float, spread: float = 0.1, seed: int = 0) -> Statistics:
    rounds = centre + spread * np.random.default_rng(seed).standard_normal(ablation_measure.ROUNDS + 1)
    rounds[0] = centre
    return {"sync_r": rounds, "frechet_pictures": 2 - rounds, "flicker": rounds}


def test_sentences_follow_from_intervals() -> None:
    values = dict(zip(PAPER_ROWS, (0.5, 0.7, 0.6, 0.6, 0.65), strict=False))
    arms = {name: {"after_ode": made_up(0.5), "after_dmd": made_up(value)} for name, value in values.items()}
    # the first step is certain (the same clips in every resampling), the last one is not
    arms["+ stronger guidance"]["after_dmd"] = made_up(0.65, spread=0.1, seed=1)
    curated, converged, faster, guided = steps(arms)
    assert curated["verdicts"] == {"frechet_pictures": "agrees", "sync_r": "agrees"}
    assert converged["verdicts"] == {"frechet_pictures": "contradicts", "sync_r": "contradicts"}
    assert faster["verdicts"] == guided["verdicts"] == {"frechet_pictures": "open", "sync_r": "open"}
    assert "agrees with the paper on" in curated["sentence"] and "Sync-C 3.13 -> 3.53" in curated["sentence"]
    assert "contradicts the paper on" in converged["sentence"] and "FID 14.9 -> 11.67" in converged["sentence"]
    assert "cannot be told from no change" in guided["sentence"] and "ODE" not in guided["sentence"]
    assert "flicker (+0.2" in curated["sentence"]


def test_a_change_must_leave_out_zero() -> None:
    lips = next(one for one in COUNTERPARTS if one.paper == "Sync-C")
    for low, high, told in ((0.01, 0.2, "agrees"), (-0.01, 0.2, "open"), (-0.3, -0.1, "contradicts")):
        change = Change((low + high) / 2, low, high)
        assert verdict(change, lips, "baseline", "+ curated conditions") == told
    before, after = made_up(0.5), made_up(0.7)
    change = changes_of(before, after)["sync_r"]
    assert change.value == pytest.approx(0.2) and change.low == pytest.approx(change.high)


def test_trainings_are_resampled_together() -> None:
    draws = resamplings(5, seed=0)
    assert draws.shape == (ablation_measure.ROUNDS + 1, 5) and draws[0].tolist() == [0, 1, 2, 3, 4] and draws.max() == 4
    one, other = made_up(0.2, spread=0), made_up(0.6, spread=0)
    both = over_seeds([one, other])["sync_r"]
    assert both[0] == pytest.approx(0.4)
    assert interval(both) == pytest.approx((0.2, 0.6)), "two trainings far apart are a wide interval"
    assert np.array_equal(over_seeds([one])["sync_r"], one["sync_r"])


def test_the_plan_is_the_papers_in_small() -> None:
    plan = AblationPlan(final_uncurated=True)
    short, long = (plan.initialisation(arm, 0).steps for arm in (ARMS[0], ARMS[2]))
    assert short * 5 == long, "4k of 20k"
    configs = [plan.distillation(arm, 0)[0] for arm in plan.arms]
    assert [config.rate_factor for config in configs] == [1, 1, 1, 2, 2, 2]
    strength = [config.audio_scale - 1 for config in configs]
    assert strength[4] / strength[3] == pytest.approx((6 - 1) / (4 - 1))
    assert [arm.name for arm in plan.arms] == list(PAPER_ROWS)
    assert plan.distillation(ARMS[0], 7)[1].seed == 7
    assert replace(plan, scale=0.1).distillation(ARMS[0], 0)[0].alone == round(0.1 * plan.matching.alone)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0"], "0 seeds were asked for"),
        (["--clips", "1"], "have no spread"),
        (["--scale", "0"], "leaves no steps"),
        ([], "distill all --config mini"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *arguments]
    assert main(["evaluate", "ablation", *given]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_of_published_weights_is_refused(tmp_path: Path) -> None:
    for name in ablation.RUN_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe("livetalk-1.3b"))))
    with pytest.raises(LiveTalkError, match="published weights"):
        ablation.open_run(tmp_path)
