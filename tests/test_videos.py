"""Reading videos: pictures and sound on one clock, whatever rate, delay and turn the file has."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from livetalk.media.videos import VideoFacts, video_blocks, video_facts
from livetalk.types import LiveTalkError

HEIGHT, WIDTH = 96, 160


def write_film(path: Path, late_s: float) -> None:
    """Three seconds at 25 pictures a second, ever brighter; clicks at .25 and 1.25 s of a late stereo track."""
    sound = np.zeros((2, 88_200), np.float32)
    for at_s in (0.25, 1.25):
        sound[:, round(at_s * 44_100) :][:, :200] = 0.8
    with av.open(str(path), "w") as container:
        video, speech = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=44_100)
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for index in range(75):
            picture = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 3 * index, np.uint8), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            container.mux(video.encode(picture))
        for start in range(0, sound.shape[1], 1024):
            part = np.ascontiguousarray(sound[:, start : start + 1024])
            block = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 44_100, start + round(late_s * 44_100), Fraction(1, 44_100)
            container.mux(speech.encode(block))
        container.mux(video.encode(None))
        container.mux(speech.encode(None))


def test_pictures_and_sound_are_where_the_file_puts_them(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mkv", late_s=0.5)
    facts = video_facts(tmp_path / "film.mkv")
    assert (facts.height, facts.width, facts.has_sound) == (HEIGHT, WIDTH, True)
    assert facts.length_s == pytest.approx(3.0, abs=0.1)
    blocks = list(video_blocks(tmp_path / "film.mkv", pictures=7))
    pictures = np.concatenate([block.pictures for block in blocks])
    sound = np.concatenate([block.sound for block in blocks])
    assert pictures.shape == (48, HEIGHT, WIDTH, 3) and sound.shape == (48_000,)
    shown = np.round(pictures.mean(axis=(1, 2, 3)) / 3).astype(int)
    assert shown.tolist() == [int((tick + 0.5) / 16 * 25) for tick in range(48)]
    loud = np.flatnonzero(np.abs(sound) > 0.3)
    clicks = loud[np.diff(loud, prepend=-16_000) > 500] / 16_000
    assert clicks == pytest.approx([0.75, 1.75], abs=0.002)
    small = next(video_blocks(tmp_path / "film.mkv", largest_side=80))
    assert small.pictures.shape[1:3] == (48, 80)


def test_turned_pictures_are_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, :40] = 200
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        video.set_display_rotation(90)
        for _ in range(6):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
    assert video_facts(path) == VideoFacts(WIDTH, HEIGHT, pytest.approx(0.2), has_sound=False)
    block = next(video_blocks(path))
    assert block.pictures.shape == (3, WIDTH, HEIGHT, 3) and not block.sound.any()
    assert block.pictures[0, -1].mean() > 190 > 10 > block.pictures[0, 0].mean()


@pytest.mark.parametrize(("name", "content", "said"), [("a.mp4", b"", "0 bytes"), ("b.mp4", b"text", "could not be")])
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LiveTalkError, match=said):
        list(video_blocks(tmp_path / name))
    with pytest.raises(LiveTalkError, match="No such file"):
        video_facts(tmp_path / "missing.mp4")
