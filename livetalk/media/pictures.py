"""Portraits in: any picture a person may have, as the tensor the network wants.

The fit to the network's size is the published one (spec section 4.1). Sizes are checked before anything is decoded, and
whatever goes wrong becomes one sentence. This module does not find faces; the middle of the picture is used.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from livetalk.types import LiveTalkError

PortraitSource: TypeAlias = str | Path | bytes | Image.Image | np.ndarray

LARGEST_PIXELS = 40_000_000
SMALLEST_SIDE = 32
SHRINK_FIRST_PIXELS = 4_000_000
"""Above this a picture is first halved, thirded, ... so that the exact resize needs little memory."""

LONGEST_SHAPE = 8
"""Pictures longer than this many times their shorter side are cut around their middle first."""

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF",
    "JPEG2000", "PPM", "TGA", "ICO", "ICNS", "PCX", "SGI", "PSD", "DDS", "QOI",
)  # fmt: skip
"""Raster formats only: others (EPS, WMF) would start foreign programs."""

EXPECTED = "Expected a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file with a face"

ILLUSTRATED_SIDE = 128
ILLUSTRATED_SMOOTH = 0.62
"""Least share of smooth pixels in a drawing. Our twelve portraits have .70-.81 (.72 as a small JPEG), photos of people
and animals .2-.5; a plain photo (sky, moon) passes as a drawing, a richly textured drawing as a photo."""

PHOTO_NOTICE = (
    "This looks like a photo: LiveTalk mini was trained on illustrated faces only and will redraw it as one."
    " Photos want LiveTalk-1.3B."
)


@dataclass(frozen=True)
class Portrait:
    """A portrait at the network's size.

    Attributes:
        image: float32 ``[3, H, W]`` in -1..1.
        notice: a sentence for the person who gave it, if a model for drawings would not do it justice; else None.
    """

    image: Tensor
    notice: str | None

    def pixels(self) -> np.ndarray:
        """The portrait as uint8 ``[H, W, 3]``, to be shown."""
        levels = ((self.image + 1) * 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def load_portrait(source: PortraitSource, height: int, width: int) -> Portrait:
    """Portrait from a file, its bytes, a Pillow image or an array, its middle filling ``height`` x ``width``.

    Turned pictures are turned upright, see-through ones get a white ground, of moving ones the first is taken. Arrays
    are ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``: uint8, uint16, or floats in 0..1.

    Raises:
        LiveTalkError: no such file, empty, no picture, damaged, smaller than 32 pixels or larger than 40 megapixels.
    """
    image = _opened(source)
    _check_size(image.width, image.height)
    try:
        upright = ImageOps.exif_transpose(image)
        colour = _rgb(upright)
    except LiveTalkError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise _unreadable(source, error) from error
    colour = _bounded(colour, height, width)
    levels = torch.from_numpy(np.array(colour)).permute(2, 0, 1).unsqueeze(0)
    fitted = fit_picture(levels.float() / 255.0, height, width)[0].clamp(-1.0, 1.0)
    return Portrait(image=fitted, notice=None if looks_illustrated(fitted) else PHOTO_NOTICE)


def fit_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """Scale to cover the target, cut (or fill with black) around the middle, shift to -1..1 (spec section 4.1).

    Sizes are rounded down after scaling, as published, so that a side may be filled by one black row.

    Args:
        picture: ``[B, 3, H, W]`` in 0..1.

    Returns:
        ``[B, 3, height, width]`` in -1..1.
    """
    old_height, old_width = picture.shape[-2:]
    ratio = max(height / old_height, width / old_width)
    # extremely narrow pictures must keep at least one pixel
    size = max(1, math.floor(old_height * ratio)), max(1, math.floor(old_width * ratio))
    scaled = functional.interpolate(picture, size=size, mode="bilinear", align_corners=False, antialias=True)
    above, left = (height - size[0]) // 2, (width - size[1]) // 2
    padding = left, width - size[1] - left, above, height - size[0] - above
    return functional.pad(scaled, padding) * 2 - 1


def closest_size(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Of several (height, width), the one whose shape is closest to the picture's (spec section 4.1.1).

    Among equal shapes the first wins, unless a later one is also exactly as far off in its longer side.
    """

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return abs(size[0] / size[1] - height / width), abs(max(size) - max(height, width))

    best = sizes[0]
    for size in sizes[1:]:
        if distance(size)[0] < distance(best)[0] or distance(size) == distance(best):
            best = size
    return best


def looks_illustrated(image: Tensor) -> bool:
    """Whether a picture ``[3, H, W]`` in -1..1 is smooth like a drawing rather than textured like a photo.

    A rough guess from the share of pixels that lie within one of 255 levels of the mean of their neighbours.
    """
    small = functional.interpolate(
        image.unsqueeze(0), size=(ILLUSTRATED_SIDE,) * 2, mode="bilinear", align_corners=False, antialias=True
    )
    grey = small.mean(dim=1)[0] * 127.5
    middle = grey[1:-1, 1:-1]
    around = (grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]) / 4
    return bool(((middle - around).abs() < 1).float().mean() >= ILLUSTRATED_SMOOTH)


def _opened(source: PortraitSource) -> Image.Image:
    """The picture with its header read and nothing decoded.

    Raises:
        LiveTalkError: no file, empty, or no picture.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        data: io.BytesIO | Path = io.BytesIO(source)
        size = len(source)
    elif isinstance(source, (str, Path)):
        data = Path(source)
        size = _file_size(data)
    else:
        raise LiveTalkError(f"A {type(source).__name__} is no portrait. Give a file name, bytes, an image or an array.")
    if size == 0:
        raise LiveTalkError(f"{_called(source)} is empty (0 bytes). {EXPECTED}. Choose another file.")
    Image.init()  # AVIF, HEIF and others come with some builds of Pillow and not with others
    try:
        with warnings.catch_warnings():  # our own limit is lower than the one Pillow warns about
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(data, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise _unreadable(source, error) from error


def _file_size(path: Path) -> int:
    """Size of a file in bytes.

    Raises:
        LiveTalkError: no such file, or not a file.
    """
    try:
        if path.is_dir():
            raise LiveTalkError(f"{path} is a folder. {EXPECTED}. Give the file itself.")
        return path.stat().st_size
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, (FileNotFoundError, ValueError)) else str(error.strerror).lower()
        raise LiveTalkError(
            f"The portrait {path} could not be opened: {reason}. {EXPECTED}. Check its name."
        ) from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    """Pillow image of an array of grey, RGB or RGBA pixels.

    Raises:
        LiveTalkError: other shape or type, or values that are not finite.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)) or 0 in pixels.shape:
        raise LiveTalkError(
            f"A portrait array must be [H, W], [H, W, 3] or [H, W, 4]; this one is {list(pixels.shape)}."
            " Reorder its axes."
        )
    _check_size(pixels.shape[1], pixels.shape[0])
    if np.issubdtype(pixels.dtype, np.floating) and np.isfinite(pixels).all():
        pixels = (pixels.clip(0.0, 1.0) * 255).round().astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise LiveTalkError(
            f"A portrait array must hold uint8, uint16 or finite floats in 0..1, not {pixels.dtype}. Convert it."
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits; what is see-through becomes white."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        largest = float(levels.max(initial=0.0))
        # 16 bits are kept in several modes and byte orders; only the range tells what white is
        white = next((top for top in (1.0, 255.0, 65_535.0) if largest <= top), largest)
        white = 65_535.0 if image.mode.startswith("I;16") else white
        grey = (np.nan_to_num(levels) / white * 255).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")


def _bounded(image: Image.Image, height: int, width: int) -> Image.Image:
    """The same picture, cut and shrunk where the exact fit to ``height`` x ``width`` would need too much memory."""
    longest = LONGEST_SHAPE * min(image.size)
    if max(image.size) > longest:
        image = ImageOps.fit(image, (min(image.width, longest), min(image.height, longest)))
    spare = min(image.height // (2 * height), image.width // (2 * width))
    return image.reduce(spare) if spare >= 2 and image.width * image.height > SHRINK_FIRST_PIXELS else image


def _check_size(width: int, height: int) -> None:
    """Refuse pictures that show nothing, or that would fill the memory.

    Raises:
        LiveTalkError: a side below 32 pixels, or more than 40 megapixels.
    """
    if width * height > LARGEST_PIXELS:
        raise _too_large(width, height)
    if min(width, height) < SMALLEST_SIDE:
        raise LiveTalkError(
            f"The portrait is too small: {width}x{height} pixels. Expected at least {SMALLEST_SIDE} pixels on each"
            " side. Choose a larger picture."
        )


def _too_large(width: int = 0, height: int = 0) -> LiveTalkError:
    found = f"{width}x{height} pixels, " if width else ""
    return LiveTalkError(
        f"The portrait is too large: {found}more than {LARGEST_PIXELS // 1_000_000} megapixels."
        " Make it smaller and try again."
    )


def _called(source: PortraitSource) -> str:
    return f"The portrait {source}" if isinstance(source, (str, Path)) else "The portrait"


def _unreadable(source: PortraitSource, error: Exception) -> LiveTalkError:
    """The sentence for a file that is no picture, or a damaged one."""
    if isinstance(error, Image.DecompressionBombError):
        return _too_large()
    damaged = "" if isinstance(error, UnidentifiedImageError) else " (it is damaged or cut off)"
    return LiveTalkError(
        f"{_called(source)} could not be read as a picture{damaged}. {EXPECTED}. Open it in a viewer and save it again."
    )
