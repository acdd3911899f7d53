"""Makes the example portraits and prompts that ship with the project: faces that training never sees.

It knows which seeds were chosen and what they are called; drawing is `livetalk.distill.portraits`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from livetalk.distill.portraits import Face, animate, draw

HELD_OUT_SEED = 9_000_000  # training uses only smaller seeds
PORTRAITS = {  # name -> seed beyond HELD_OUT_SEED
    "amara": 16,
    "elena": 18,
    "felix": 58,
    "freya": 12,
    "grace": 3,
    "henrik": 42,
    "joseph": 55,
    "mateo": 26,
    "nora": 33,
    "omar": 15,
    "priya": 20,
    "zuri": 29,
}
PROMPTS = (
    "A person speaks calmly, moving gently.",
    "A person talks happily, nodding along.",
    "Someone speaks brightly, with lively nods.",
    "A speaker talks quietly, holding still.",
    "The person speaks sadly, swaying softly.",
    "Someone talks surprised, moving lively.",
    "A speaker talks angrily, with lively nods.",
    "The person speaks cheerfully, swaying gently.",
)
SIDE = 512


def write_examples(folder: Path) -> list[Path]:
    """Draw the example portraits (512 x 512 PNG) and write the example prompts, one a line.

    Args:
        folder: where `portraits/*.png` and `prompts.txt` go; made when missing.

    Returns:
        The files written, prompts last.
    """
    pictures = folder / "portraits"
    pictures.mkdir(parents=True, exist_ok=True)
    written = []
    for name, offset in PORTRAITS.items():
        seed = HELD_OUT_SEED + offset
        rest = animate(np.zeros((1, 3), np.float32), seed, "gentle", "happy")[0]
        path = pictures / f"{name}.png"
        Image.fromarray(draw(Face.sample(seed), rest, SIDE)).save(path, optimize=True)
        written.append(path)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    return [*written, prompts]
