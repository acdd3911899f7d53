"""Draws the faces behind "Surprise me": more held-out portraits than fit a page, small enough to ship.

    python -c "from pathlib import Path; from livetalk.distill.gallery import write_gallery as w; w(Path('examples'))"

It knows which seeds are shown; drawing is `livetalk.distill.portraits`, the portraits with names `examples`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from livetalk.distill.examples import HELD_OUT_SEED
from livetalk.distill.portraits import Face, animate, draw

FACES = range(100, 164)
"""Seeds beyond `HELD_OUT_SEED`; the named examples have smaller ones, evaluation larger ones."""

SIDE = 384
QUALITY = 86


def write_gallery(folder: Path) -> list[Path]:
    """Draw the faces (384 x 384 WebP, about 8 KB each).

    Args:
        folder: the examples; the files go to `portraits/more`, which is made when missing.

    Returns:
        The files written.
    """
    pictures = folder / "portraits" / "more"
    pictures.mkdir(parents=True, exist_ok=True)
    written = []
    for offset in FACES:
        seed = HELD_OUT_SEED + offset
        rest = animate(np.zeros((1, 3), np.float32), seed, "gentle", "happy")[0]
        path = pictures / f"face-{offset}.webp"
        Image.fromarray(draw(Face.sample(seed), rest, SIDE)).save(path, "WEBP", quality=QUALITY, method=6)
        written.append(path)
    return written
