"""Curation: clean clips become a shard to train on, damaged ones are refused for what is wrong with them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from livetalk.__main__ import build_parser
from livetalk.distill.curate import captions, reference
from livetalk.distill.curate.candidates import Tools
from livetalk.distill.curate.command import Options, read_limits, run, sync_ruler
from livetalk.distill.curate.faces import CascadeFinder, FaceBox, YuNetFinder, box_of_points, cut_around, spots_of
from livetalk.distill.curate.judge import blur_effect, periodicity, sync_figures
from livetalk.distill.curate.limits import SENTENCES, Limits, Reason
from livetalk.distill.curate.run import BOOK, Job, curate
from livetalk.distill.curate.scan import cuts
from livetalk.distill.data import Clip, ClipStore, make_clip
from livetalk.distill.portraits import POSE_FIELDS, Face, draw_clip
from livetalk.distill.speech import HELD_OUT_SEED, speech_clip
from livetalk.distill.teacher import TeacherConfig, TeacherLoss
from livetalk.hub import Models, inference_client, load_models
from livetalk.media.clips import write_clip
from livetalk.media.videos import video_blocks
from livetalk.types import MODEL_RATE, LiveTalkError
from livetalk.voice import available_voices

pytest.importorskip("cv2", reason="needs opencv-python-headless (requirements-train.txt)")

PERSON, OTHER = HELD_OUT_SEED + 700_010, HELD_OUT_SEED + 700_005
OTHERS_SPEECH = PERSON + 2  # flite, which says the same thing the same way every time; espeak-ng does not
PICTURES, SIDE, FRAMES = 48, 128, 12
EXPECTED: dict[str, set[str]] = {
    "blurred": {"blurred"},
    "dark": {"dark"},
    "black": {"black"},
    "interrupted": {"black", "short"},
    "frozen": {"frozen"},
    "tiny": {"small_face"},
    "aside": {"off_centre"},
    "late": {"off_sync"},
    "dubbed": {"off_sync"},
    "mute": {"no_sound"},
    "quiet": {"silent"},
    "tone": {"no_speech"},
    "nobody": {"no_face"},
    "cut-off": {"unreadable"},
    "no-video": {"unreadable"},
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Three seconds of a drawn person that training never sees."""
    reason = "drawing needs skia-python with the Debian packages libegl1 and libgl1"
    pytest.importorskip("skia", reason=reason, exc_type=ImportError)
    if len(available_voices()) < 2:
        pytest.skip("needs the Debian packages espeak-ng and flite")
    return make_clip(PERSON, PICTURES, SIDE, "A person speaks.", pauses=False)


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models("mini", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clean clip, a file with two shots, and the clip with everything that can be wrong with it."""
    where = tmp_path_factory.mktemp("videos")
    pictures, sound = clip.pictures, clip.samples
    second = draw_clip(Face.sample(OTHER), clip.poses, SIDE)
    write_clip(where / "clean.mp4", pictures, sound, MODEL_RATE)
    write_clip(where / "shots.mp4", np.concatenate([pictures, second]), np.concatenate([sound, sound]), MODEL_RATE)
    (where / "notes.txt").write_text("no video")
    bad = where / "bad"
    for name, damaged in damage(clip).items():
        write_clip(bad / f"{name}.mp4", damaged, sound, MODEL_RATE)
    other = speech_clip(OTHERS_SPEECH, PICTURES / 16, held_out=True).samples
    tone = (0.3 * np.sin(np.arange(len(sound)) * 0.08)).astype(np.float32)
    late = np.roll(sound, MODEL_RATE // 2)
    for name, heard in {"late": late, "dubbed": other, "quiet": 0.001 * sound, "tone": tone}.items():
        write_clip(bad / f"{name}.mp4", pictures, heard, MODEL_RATE)
    whole = (where / "clean.mp4").read_bytes()
    (bad / "cut-off.mp4").write_bytes(whole[: len(whole) // 2])
    (bad / "no-video.mp4").write_text("this is no video")
    write_mute(bad / "mute.mp4", pictures)
    return where


def damage(clip: Clip) -> dict[str, np.ndarray]:
    """Pictures by what is wrong with them."""
    pictures = clip.pictures
    black, frozen = pictures.copy(), pictures.copy()
    black[20:24], frozen[10:40] = 0, pictures[10]
    soft = np.stack([np.asarray(Image.fromarray(one).reduce(4).resize((SIDE, SIDE), 2)) for one in pictures])
    room = np.broadcast_to(pictures[:, :1, :1], (PICTURES, 192, 192, 3)).copy()
    room[:, 64:128, 64:128] = pictures[:, ::2, ::2]
    aside = np.concatenate([pictures[:, :, 26:], np.repeat(pictures[:, :, -1:], SIDE, axis=2)], axis=2)
    drift = np.linspace(60, 200, 256)[None, None, :, None] + 40 * np.sin(np.arange(PICTURES))[:, None, None, None]
    return {
        "blurred": soft,
        "dark": pictures // 7,
        "black": np.zeros_like(pictures),
        "interrupted": black,
        "frozen": frozen,
        "tiny": room,
        "aside": aside[:, :, :254],
        "nobody": np.broadcast_to(drift, (PICTURES, SIDE, 256, 3)).astype(np.uint8),
    }


def write_mute(path: Path, pictures: np.ndarray) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def job(folder: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished curation."""
    tools = Tools(CascadeFinder(), sync_ruler(models))
    where = tmp_path_factory.mktemp("curated")
    done = Job(folder, where / "shards", models, tools, frames=FRAMES, report=where / "report")
    figures = curate(done)
    assert figures["kept"] == 3 and figures["files"] == len(EXPECTED) + 2
    return done


def book(job: Job) -> list[dict]:
    return [json.loads(line) for line in (job.out / BOOK).read_text().splitlines()]


def test_every_damage_is_called_by_its_name(job: Job) -> None:
    found: dict[str, set[str]] = {}
    for line in book(job):
        if line["file"].startswith("bad/") and not line.get("done"):
            assert not line["kept"] and line["sentence"].endswith(".")
            found.setdefault(Path(line["file"]).stem, set()).add(line["reason"])
    assert found == EXPECTED
    cut_off = next(line for line in book(job) if line["file"] == "bad/cut-off.mp4")
    assert "cut off" in cut_off["sentence"] and "Expected" in cut_off["sentence"]


def test_clean_clips_are_kept_and_never_span_a_cut(job: Job) -> None:
    kept = [line for line in book(job) if line.get("kept")]
    assert [(line["file"], line["start_s"]) for line in kept] == [
        ("clean.mp4", 0.0), ("shots.mp4", 0.0), ("shots.mp4", 3.0),
    ]  # fmt: skip
    for line in kept:
        assert line["figures"]["sync_r"] > 0.8 and line["figures"]["sync_lag"] == 0
        assert line["figures"]["reference_open"] < 0.2
    assert kept[0]["caption"] == kept[0]["caption"].strip()
    assert kept[0]["figures"]["motion"] in ("still", "gentle"), (
        "nods follow the sound, and espeak-ng repeats it only nearly"
    )
    assert len(list(job.report.glob("*.png"))) >= 3


def test_the_shard_is_one_to_train_on(job: Job, clip: Clip) -> None:
    preset, store = job.models.preset, ClipStore(job.out)
    assert len(store) == 3
    rows = [store.clip(index) for index in range(3)]
    row = min(rows, key=lambda row: float((row["spots"] - torch.from_numpy(clip.spots[:45])).abs().mean()))
    assert row["latents"].shape == (preset.model.out_channels, FRAMES, SIDE // 8, SIDE // 8)
    assert row["audio"].shape == (45, preset.model.heard_width) and row["poses"].shape == (45, len(POSE_FIELDS))
    assert float((row["spots"] - torch.from_numpy(clip.spots[:45])).abs().mean()) < 0.03
    told, truth = row["poses"][1:, 0].numpy(), clip.poses.track("open")[1:45]
    assert np.corrcoef(told, truth)[0, 1] > 0.9
    known = dict(zip(POSE_FIELDS, row["poses_known"].tolist(), strict=True))
    assert known["blink"] == 1 and known["dx"] == 0 and known["gaze_x"] == 0
    small = replace(preset, rollout=replace(preset.rollout, window_frames=9, sink_frames=3))
    loss = TeacherLoss(store, small, TeacherConfig(batch=4, sinks=(0, 3)), torch.ones(preset.model.out_channels))
    batch = loss.windows(torch.Generator().manual_seed(0))
    assert batch.latents.shape[:3] == (4, preset.model.out_channels, 9) and torch.isfinite(batch.latents).all()
    assert batch.audio.shape == (4, 36, preset.model.audio_width) and float(batch.weights.max()) > 1


def test_a_stopped_run_goes_on_and_changed_settings_start_over(job: Job, tmp_path: Path, folder: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for name in ("clean.mp4", "bad/dark.mp4"):
        (some / Path(name).name).write_bytes((folder / name).read_bytes())
    small = replace(job, folder=some, out=tmp_path / "shards", report=None)
    first = curate(small)
    shard = next(small.out.glob("shard-*.safetensors"))
    content, written = shard.read_bytes(), shard.stat().st_mtime_ns
    lines = (small.out / BOOK).read_text()
    (small.out / BOOK).write_text(lines + '{"file": "dark.mp4", "kep')
    assert curate(small) == first == {"files": 2, "clips": 2, "kept": 1, "kept_s": 2.81, "rejected": {"dark": 1}}
    assert shard.stat().st_mtime_ns == written and (small.out / BOOK).read_text() == lines
    (small.out / BOOK).unlink()
    curate(small)
    assert shard.read_bytes() == content and (small.out / BOOK).read_text() == lines
    assert curate(replace(small, limits=Limits(sync_r=0.999)))["rejected"] == {"dark": 1, "off_sync": 1}
    assert not shard.exists()


def test_without_a_ruler_less_is_said(job: Job, tmp_path: Path, folder: Path, clip: Clip) -> None:
    some, asked = tmp_path / "some", []
    some.mkdir()
    (some / "clean.mp4").write_bytes((folder / "clean.mp4").read_bytes())
    (some / "clean.txt").write_text("A woman in a red coat.\n")

    def rewrite(text: str, pictures: list[np.ndarray]) -> str:
        asked.append((text, len(pictures)))
        if len(asked) > 1:
            raise LiveTalkError("The model is asleep.")
        return "She nods."

    tools = Tools(CascadeFinder(), sync=None, rewriter=rewrite)
    blind = replace(job, folder=some, out=tmp_path / "shards", tools=tools, report=None)
    curate(blind)
    line = book(blind)[0]
    assert line["kept"] and line["figures"]["sync"] == "no ruler" and line["caption"] == "She nods."
    assert asked[0][0].startswith("A woman in a red coat. ") and "speaks, " in asked[0][0] and asked[0][1] == 3
    row = ClipStore(blind.out).clip(0)
    assert not row["poses_known"].any() and not row["poses"].any()
    assert float((row["spots"] - torch.from_numpy(clip.spots[:45])).abs().mean()) < 0.04
    curate(replace(blind, limits=Limits(most_clips=1)))
    line = book(blind)[0]
    assert line["kept"] and line["figures"]["caption_by"] == "measured" and "asleep" in line["figures"]["rewriting"]


def test_a_video_is_read_at_its_own_pace(clip: Clip, folder: Path) -> None:
    blocks = list(video_blocks(folder / "clean.mp4", pictures=10))
    assert [block.first_picture for block in blocks] == [0, 10, 20, 30, 40]
    pictures = np.concatenate([block.pictures for block in blocks]).astype(int)
    assert pictures.shape == clip.pictures.shape and np.abs(pictures - clip.pictures).mean() < 3
    sound = np.concatenate([block.sound for block in blocks])
    assert np.corrcoef(sound, clip.samples)[0, 1] > 0.95, "not a sample early or late"


def test_faces_are_cut_as_portraits_are_framed() -> None:
    limits, wanted = Limits(), (512, 512)
    face = FaceBox(1200, 400, 270)
    cut = cut_around(face, (1080, 1920), wanted, limits)
    assert (cut.height, cut.width) == (500, 500)
    assert (cut.left, cut.top) == (950, 130)
    placed = cut.place(face, 512)
    assert placed.side == pytest.approx(0.54 * 512, abs=1)
    mouth, left, right = spots_of(placed, 512, 512)
    assert left[0] < mouth[0] < right[0] and mouth[1] > left[1]
    points = np.array([left, right, mouth, mouth, mouth]) * 512
    same = box_of_points(points)
    assert (same.column, same.row, same.side) == pytest.approx((placed.column, placed.row, placed.side), rel=0.02)
    framed = cut_around(FaceBox(256, 270, 250), (512, 512), wanted, limits)
    assert (framed.top, framed.left, framed.height) == (0, 0, 512), "framed well enough already"
    with pytest.raises(LiveTalkError, match="yunet"):
        YuNetFinder(Path("missing.onnx"))


def blocks(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture of sharp edges, and the same out of focus."""
    sharp = np.kron(rng.integers(0, 2, (8, 8, 1)), np.ones((16, 16, 3))).astype(np.uint8) * 180
    return sharp, np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(4)))


def test_measures_rank() -> None:
    rng = np.random.default_rng(0)
    sharp, soft = (one[..., 0].astype(np.float32) for one in blocks(rng))
    assert blur_effect(sharp) < 0.3 < 0.5 < blur_effect(soft) < blur_effect(0 * sharp) == 1
    at = np.arange(4000) / MODEL_RATE
    voice = np.sign(np.sin(2 * np.pi * 140 * at)) * 0.2
    assert periodicity(voice).min() > 0.8 > 0.5 > periodicity(rng.standard_normal(4000)).max()
    change = rng.uniform(0.5, 2, 60)
    change[30] = 25
    assert cuts(change, Limits()) == [30]
    mouth = rng.uniform(0, 1, 81)
    assert sync_figures(np.roll(mouth, 2), mouth, Limits())["sync_lag"] == 2
    assert sync_figures(np.roll(mouth, 9), mouth, Limits())["sync_far_r"] > 0.9
    assert set(SENTENCES) == set(Reason.__args__)


def test_poor_references_are_restored_or_refused() -> None:
    rng = np.random.default_rng(1)
    sharp, soft = (one[None].repeat(6, axis=0) for one in blocks(rng))
    face = FaceBox(64, 70, 70)
    finder, limits = SimpleNamespace(eyes=lambda picture, face: 2), Limits(reference_blur=0.3)
    assert not reference.choose_reference(sharp, face, None, finder, limits).poor
    mixed = soft.copy()
    mixed[3] = sharp[3]
    assert reference.choose_reference(mixed, face, None, finder, limits).index == 3
    poor = reference.choose_reference(soft, face, None, finder, limits)
    assert poor.poor
    mended = reference.restored(poor, face, lambda picture: sharp[0], limits)
    assert not mended.poor and mended.figures["restored"] == 1
    sharpened = reference.restored(poor, face, reference.sharpen, limits)
    assert sharpened.figures["reference_blur"] < poor.figures["reference_blur"]
    with pytest.raises(LiveTalkError, match="expected uint8"):
        reference.restored(poor, face, lambda picture: picture[:64], limits)
    asked = SimpleNamespace(image_to_image=lambda data, prompt, model: Image.open(io.BytesIO(data)).resize((64, 64)))
    assert reference.hosted_restorer(asked, "some/model")(soft[0]).shape == soft[0].shape


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict]]]:
    """A local chat server: its address, and what it was asked."""
    asked: list[dict] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            said = {"role": "assistant", "content": '"A man nods eagerly,\nbrows raised."'}
            answer = {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}], "id": "1", "created": 0}
            body = json.dumps({**answer, "model": "m", "object": "chat.completion"}).encode()
            self.send_response(200 if len(asked) < 3 else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Chat)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/v1", asked
    listening.shutdown()
    listening.server_close()


def test_captions_are_rewritten_by_a_server(server: tuple[str, list[dict]]) -> None:
    url, asked = server
    client = inference_client(url, timeout_s=10)
    picture = np.zeros((8, 8, 3), np.uint8)
    plain = captions.hosted_rewriter(client, "some/model")
    assert plain("A man speaks.", [picture]) == "A man nods eagerly, brows raised."
    assert asked[0]["model"] == "some/model" and asked[0]["messages"][1]["content"] == "Caption: A man speaks."
    captions.hosted_rewriter(client, "some/model", see=True)("A man speaks.", [picture])
    assert asked[1]["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    with pytest.raises(LiveTalkError, match="could not rewrite"):
        plain("A man speaks.", [picture])


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    given = build_parser().parse_args(["curate", str(tmp_path), "--out", str(tmp_path / "out"), "--restore", "plain"])
    assert given.frames == 21 and given.preset == "mini"
    with pytest.raises(LiveTalkError, match="does not move"):
        run(tmp_path, tmp_path, Options(frames=1))
    file = tmp_path / "limits.json"
    file.write_text('{"blur": 0.4}')
    assert read_limits(file) == Limits(blur=0.4)
    file.write_text('{"blurr": 0.4}')
    with pytest.raises(LiveTalkError, match="blurr"):
        read_limits(file)


def test_empty_folders_are_named(tmp_path: Path) -> None:
    nothing = Job(tmp_path, tmp_path / "out", None, Tools(CascadeFinder()))
    with pytest.raises(LiveTalkError, match="no videos"):
        curate(nothing)
    with pytest.raises(LiveTalkError, match="no folder"):
        curate(replace(nothing, folder=tmp_path / "missing"))
