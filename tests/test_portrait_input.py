"""Portraits: every picture a person may have becomes a tensor or one sentence; the fit is the published one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk.media.pictures import closest_size, fit_picture, load_portrait, looks_illustrated
from livetalk.types import LiveTalkError
from tests.bad_input import PORTRAITS

EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "portraits").glob("*.png"))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("case", PORTRAITS, ids=lambda case: case.name)
def test_awkward_files_work_or_give_one_sentence(case, tmp_path) -> None:
    path = case.make(tmp_path, EXAMPLES[0])
    if case.outcome == "works":
        image = load_portrait(path, 64, 64).image
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32
        assert image.min() >= -1 and image.max() <= 1 and image.std() > 0.1
        return
    with pytest.raises(LiveTalkError) as caught:
        load_portrait(path, 64, 64)
    sentence = str(caught.value)
    assert case.outcome in sentence and "\n" not in sentence and sentence.endswith(".")


def test_every_kind_of_source_gives_the_same_portrait() -> None:
    image = Image.open(EXAMPLES[0]).convert("RGB")
    expected = load_portrait(EXAMPLES[0], 48, 48).image
    for source in (str(EXAMPLES[0]), EXAMPLES[0].read_bytes(), image, np.asarray(image)):
        assert torch.equal(load_portrait(source, 48, 48).image, expected)
    assert torch.equal(load_portrait(np.asarray(image).astype(np.uint16) * 257, 48, 48).image, expected)
    assert torch.equal(load_portrait(np.asarray(image) / 255.0, 48, 48).image, expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "TGA"])
def test_formats(kind: str) -> None:
    if kind not in Image.registered_extensions().values():
        pytest.skip(f"this build of Pillow has no {kind}")
    image = Image.open(EXAMPLES[0]).convert("RGB").resize((96, 96))
    loaded = load_portrait(encoded(image, kind), 96, 96)
    true = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1
    assert (loaded.image - true).abs().mean() < 0.05
    assert loaded.pixels().shape == (96, 96, 3) and loaded.pixels().dtype == np.uint8


def test_what_is_see_through_becomes_white_and_turned_pictures_stand_upright() -> None:
    empty = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert load_portrait(encoded(empty, "PNG"), 32, 32).image.min() > 0.999
    palette = Image.new("P", (40, 40), 0)
    assert load_portrait(encoded(palette, "GIF", transparency=0), 32, 32).image.min() > 0.999
    half = Image.new("RGB", (40, 40))
    half.paste("white", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = load_portrait(encoded(half, "PNG", exif=exif), 32, 32).image
    assert turned[:, -8:].min() > 0.9 and turned[:, :8].max() < -0.9


def test_sixteen_bits_keep_their_white() -> None:
    grey = np.full((40, 40), 65_535, np.uint16)
    grey[:, :20] = 32_768
    image = load_portrait(encoded(Image.fromarray(grey), "PNG"), 40, 40).image
    assert image[:, :, 30].min() > 0.999 and abs(image[0, 0, 5].item()) < 0.01
    assert load_portrait(encoded(Image.fromarray(grey // 512), "TIFF"), 40, 40).image.max() < -0.99


def test_formats_that_start_foreign_programs_are_refused() -> None:
    drawing = Image.new("RGB", (64, 64), "red")
    with pytest.raises(LiveTalkError, match="could not be read as a picture"):
        load_portrait(encoded(drawing, "EPS"), 32, 32)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 3, 40, 40)), np.zeros((40, 40, 2)), np.full((40, 40, 3), np.nan), np.zeros((40, 40, 3), np.int64)],
    ids=["four axes", "two channels", "not a number", "wide integers"],
)
def test_arrays_that_are_no_pictures_say_why(pixels: np.ndarray) -> None:
    with pytest.raises(LiveTalkError, match="portrait array must"):
        load_portrait(pixels, 32, 32)


def test_a_folder_and_a_number_are_no_portraits(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match="is a folder"):
        load_portrait(tmp_path, 32, 32)
    with pytest.raises(LiveTalkError, match="int is no portrait"):
        load_portrait(7, 32, 32)  # type: ignore[arg-type]


def test_extreme_shapes_stay_cheap() -> None:
    """A ribbon of 32 x 200 000 pixels scaled to cover the target would be 1.2 GB of floats."""
    image = load_portrait(Image.new("L", (200_000, 32), 128), 64, 64).image
    assert image.shape == (3, 64, 64) and abs(image.mean().item()) < 0.01
    large = load_portrait(Image.new("RGB", (4000, 3000), (255, 0, 0)), 64, 64).image
    assert large[0].min() > 0.99 and large[1].max() < -0.99


def test_fit_covers_and_cuts_the_middle() -> None:
    picture = torch.zeros(1, 3, 40, 80)
    picture[..., 20:60] = 1
    assert fit_picture(picture, 40, 40).min() > 0.999
    # 98 x 98 to 512: rounding down leaves 511, filled by one black row and column, as published
    bordered = fit_picture(torch.ones(1, 3, 98, 98), 512, 512)
    assert bordered.shape == (1, 3, 512, 512)
    assert bordered[..., :511, :511].min() > 0.999 and bordered[..., 511, :].max() == -1


def test_among_equal_shapes_the_first_size_wins() -> None:
    assert closest_size([(512, 512), (256, 256)], 300, 301) == (512, 512)
    assert closest_size([(400, 720), (720, 400)], 900, 500) == (720, 400)


def test_drawings_pass_and_photos_get_an_honest_notice() -> None:
    for path in EXAMPLES:
        assert load_portrait(path, 128, 128).notice is None, path
    rough = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    grain = torch.nn.functional.avg_pool2d(rough[None] * 2 - 1, 5, 1, 2)[0] * 3
    assert not looks_illustrated(grain)
    photo = load_portrait(((grain.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy(), 128, 128)
    assert photo.notice is not None and "LiveTalk-1.3B" in photo.notice
