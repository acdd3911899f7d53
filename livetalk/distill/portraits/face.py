"""Who is drawn: one frozen record of everything that makes an illustrated face, sampled from a seed.

It knows colours and proportions, not how they are drawn (see `features` and `surroundings`) nor how they move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

SKINS = (
    "f8dcc8",
    "f3cdb0",
    "edbe9c",
    "e5b08a",
    "d9a077",
    "cb8d62",
    "b67a50",
    "a06840",
    "875536",
    "70452c",
    "673f2a",
    "56351f",
    "f0c6b4",
    "dba888",
)
HAIRS = (
    "1c1614",
    "2b1d17",
    "402819",
    "5b3a22",
    "7a4f2b",
    "a06d35",
    "c9964a",
    "e3bf78",
    "8e3b1e",
    "b5532a",
    "c9c5c0",
    "8d8a89",
    "e8e2d8",
    "37415e",
    "6b3350",
)
GREYS = ("c9c5c0", "8d8a89", "e8e2d8", "a5a09b")
EYES = ("4a2f1d", "6b4423", "3a2718", "8a6a35", "5d7a4a", "4e8577", "4f7fa8", "6f9fc4", "6c7683")
CLOTHES = (
    "2f4858",
    "33658a",
    "86bbd8",
    "758e4f",
    "f6ae2d",
    "f26419",
    "7b2d43",
    "b5446e",
    "9d8df1",
    "5b5f97",
    "e8e4da",
    "3d405b",
    "81b29a",
    "e07a5f",
    "f2cc8f",
    "26282d",
    "6d6875",
    "4f772d",
    "ad2831",
    "2a9d8f",
)
BACKDROPS = (
    ("cfe3e8", "7fa9b8"),
    ("f6e3cf", "d9a98a"),
    ("d7dcf0", "8b90c0"),
    ("dfe9d3", "8fae86"),
    ("f3d6d8", "c58a97"),
    ("3e5c76", "1d2d44"),
    ("5c4d7d", "2e294e"),
    ("f7e7b6", "d9b262"),
    ("e6e6e6", "a9adb4"),
    ("4b6858", "233d34"),
    ("c9b8d8", "8a6fa5"),
    ("b9e2d8", "4f9d95"),
    ("7a4b4b", "3b2430"),
    ("fbe0c3", "e59a72"),
    ("c4d7f2", "6f95cf"),
    ("e9d8c4", "a68a70"),
)
STYLES = (
    "short",
    "parted",
    "bun",
    "long",
    "bob",
    "curly",
    "wavy",
    "spiky",
    "buzz",
    "bald",
    "ponytail",
    "fringe",
    "swept",
    "afro",
)
FEMALE = (0.03, 0.06, 0.12, 0.15, 0.13, 0.09, 0.13, 0.01, 0.01, 0.01, 0.10, 0.09, 0.03, 0.04)
MALE = (0.20, 0.17, 0.02, 0.03, 0.0, 0.08, 0.03, 0.10, 0.10, 0.09, 0.01, 0.0, 0.13, 0.04)


def colour(text: str) -> RGB:
    """`"rrggbb"` as three numbers 0..1."""
    return (int(text[0:2], 16) / 255, int(text[2:4], 16) / 255, int(text[4:6], 16) / 255)


@dataclass(frozen=True)
class Face:
    """Everything that identifies one illustrated person and the picture around them.

    Lengths are in units of the picture's side or factors around 1; colours are RGB 0..1.
    """

    seed: int
    skin: RGB
    hair: RGB
    eye: RGB
    lip: RGB
    cloth: RGB
    trim: RGB
    back_near: RGB
    back_far: RGB
    style: str
    collar: str
    backdrop: str
    glasses: str
    beard: str
    frame: RGB
    feminine: float
    age: float
    light: float
    width: float
    length: float
    jaw: float
    chin: float
    cheek: float
    ears: float
    eye_size: float
    eye_gap: float
    eye_tall: float
    eye_tilt: float
    brow_thick: float
    brow_arch: float
    brow_lift: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_full: float
    blush: float
    freckles: bool
    earrings: bool
    parting: float
    scale: float
    offset_x: float
    offset_y: float

    @classmethod
    def sample(cls, seed: int) -> Face:
        """The face of `seed`; the same seed always gives the same face."""
        rng = np.random.default_rng([seed, 0xFACE])

        def near(mean: float, spread: float) -> float:
            return float(mean + spread * np.clip(rng.normal(), -2.0, 2.0) / 2)

        def pick(options: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
            chance = None if weights is None else np.asarray(weights) / np.sum(weights)
            return str(rng.choice(np.asarray(options), p=chance))

        feminine = float(np.clip(rng.choice([0.12, 0.88]) + 0.1 * rng.normal(), 0.0, 1.0))
        woman = feminine > 0.5
        age = float(rng.beta(1.4, 2.2))
        tone = int(rng.integers(len(SKINS)))
        skin = colour(SKINS[tone])
        dark_skin = sum(skin) < 1.75
        hair_names = (
            GREYS
            if age > 0.70
            else (HAIRS[:4] * 6 + HAIRS[4:6] + HAIRS[13:])
            if dark_skin
            else HAIRS[:10] * 3 + HAIRS[10:]
        )
        hair = colour(pick(hair_names))
        style = pick(STYLES, FEMALE if woman else MALE)
        near_far = BACKDROPS[int(rng.integers(len(BACKDROPS)))]
        cloth = colour(pick(CLOTHES))
        rose = colour(pick(("c4626a", "b8555a", "cc7a74", "a8434f", "d1706f"))) if woman else colour("b9706a")
        lip = tuple(
            float(0.58 * r + 0.42 * s * (0.84, 0.60, 0.58)[i]) for i, (r, s) in enumerate(zip(rose, skin, strict=True))
        )
        beard = (
            "none" if woman else pick(("none", "stubble", "full", "goatee", "moustache"), (0.46, 0.16, 0.2, 0.1, 0.08))
        )
        return cls(
            seed=seed,
            skin=skin,
            hair=hair,
            lip=(lip[0], lip[1], lip[2]),
            cloth=cloth,
            eye=colour(pick(EYES[:4] if dark_skin else EYES)),
            trim=colour(pick(CLOTHES + ("f7f4ee",) * 8)),
            back_near=colour(near_far[0]),
            back_far=colour(near_far[1]),
            style=style,
            collar=pick(("crew", "vneck", "shirt", "turtle", "hoodie", "blazer", "scoop")),
            backdrop=pick(("soft", "plain", "bokeh", "window", "sun", "hills"), (0.25, 0.15, 0.2, 0.15, 0.15, 0.1)),
            glasses=pick(("none", "round", "square", "cat" if woman else "square"), (0.72, 0.12, 0.1, 0.06)),
            beard=beard,
            frame=colour(pick(("22242a", "4a2b1d", "7b2d43", "33415c", "8c6d3f"))),
            feminine=feminine,
            age=age,
            light=float(rng.choice([-1.0, 1.0])),
            width=near(0.236 - 0.008 * feminine, 0.014),
            length=near(0.300, 0.016),
            jaw=near(0.80 - 0.10 * feminine, 0.09),
            chin=near(0.37 - 0.08 * feminine, 0.09),
            cheek=near(1.0, 0.03),
            ears=near(1.0, 0.2),
            eye_size=near(1.05 + 0.06 * feminine, 0.09),
            eye_gap=near(0.099, 0.007),
            eye_tall=near(1.0, 0.18),
            eye_tilt=near(0.003, 0.007),
            brow_thick=near(1.15 - 0.38 * feminine, 0.25),
            brow_arch=near(0.9 + 0.2 * feminine, 0.5),
            brow_lift=near(0.0, 0.008),
            nose_width=near(1.02 - 0.10 * feminine, 0.22),
            nose_length=near(1.0, 0.12),
            mouth_width=near(0.086, 0.008),
            lip_full=near(0.86 + 0.30 * feminine, 0.24),
            blush=float(np.clip(near(0.10 + 0.14 * feminine, 0.12), 0.03, 0.4)),
            freckles=bool(rng.random() < (0.0 if dark_skin else 0.14)),
            earrings=bool(rng.random() < (0.55 if woman else 0.06)),
            parting=float(rng.choice([-1.0, 1.0])),
            scale=near(1.09, 0.05),
            offset_x=near(0.0, 0.026),
            offset_y=near(0.0, 0.016),
        )
