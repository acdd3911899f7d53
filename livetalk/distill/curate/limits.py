"""What is asked of a clip, and the words for what is wrong with one. Numbers only; nothing is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "unreadable", "no_sound", "short", "black", "dark", "bright", "no_face", "several_faces", "small_face",
    "large_face", "off_centre", "restless", "flat", "blurred", "frozen", "silent", "no_speech", "clipped", "off_sync",
    "poor_reference",
]  # fmt: skip
"""Why a clip is not used, in the order in which it is looked at; the first one that holds is the clip's reason."""


@dataclass(frozen=True)
class Limits:
    """Limits of a usable clip. Light is 0..255 (Rec. 601), places and sizes are in sides of the cut picture.

    Attributes:
        cut_change: mean change of a thumbnail from one picture to the next that is a cut, if it is also
            ``cut_ratio`` times what is usual around it.
        black_light: pictures darker than this are black; one is too many.
        dark_light, bright_light: mean light of a clip, and of its face.
        flat_contrast: least standard deviation of the face's light.
        face_every: pictures from one search for faces to the next.
        found_share: least share of the searches that find a face.
        second_share: most searches with a second face, at least ``second_side`` as large as the first.
        smallest_cut: least height of the cut before scaling, over the height wanted.
        face_share: wanted side of the face's box; drawn portraits have .54 on average, as the cascade measures.
        face_column, face_row: wanted middle of the face's box.
        smallest_share, largest_share: of the face's box in the cut.
        most_off: how far the middle may be off, each way.
        most_travel: how far the face may travel within a clip (10th to 90th percentile), in sides of its box.
        blur: highest re-blur measure of the face (0 sharp .. 1 flat, Crete et al. 2007).
        still_change: mean change of the face's light under which nothing has moved.
        still_pictures: longest run of pictures without movement.
        still_share: largest share of such pictures: slower recordings, stuttering.
        silent_db: least level of the loud parts.
        voiced_share: least share of pictures in which somebody speaks.
        level_spread_db: least deviation of the level from picture to picture: tones and hums hardly have any.
        clipped_share: most samples at full scale.
        sync_r: least correlation of the mouth seen with the mouth heard, within ``sync_pictures`` of shift.
        sync_pictures: largest shift that is mended by moving the sound.
        sync_reach: shifts looked at; a better match out there than near is wrong sound.
        reference_blur: of the reference, which every clip made from it will look like.
        reference_open, reference_shut: how far mouth and lids of the reference may be open and shut, where read.
        most_clips: of one file.
    """

    cut_change: float = 10.0
    cut_ratio: float = 4.0
    black_light: float = 12.0
    dark_light: float = 40.0
    bright_light: float = 235.0
    flat_contrast: float = 12.0
    face_every: int = 4
    found_share: float = 0.4
    second_share: float = 0.3
    second_side: float = 0.6
    smallest_cut: float = 0.6
    face_share: float = 0.54
    face_column: float = 0.5
    face_row: float = 0.54
    smallest_share: float = 0.36
    largest_share: float = 0.75
    most_off: float = 0.12
    most_travel: float = 0.35
    blur: float = 0.5
    still_change: float = 0.05
    still_pictures: int = 12
    still_share: float = 0.6
    silent_db: float = -45.0
    voiced_share: float = 0.15
    level_spread_db: float = 3.0
    clipped_share: float = 0.01
    sync_r: float = 0.65
    sync_pictures: int = 3
    sync_reach: int = 12
    reference_blur: float = 0.45
    reference_open: float = 0.3
    reference_shut: float = 0.4
    most_clips: int = 16


SENTENCES: dict[Reason, str] = {
    "unreadable": "The file cannot be read.",
    "no_sound": "The file has no sound track.",
    "short": "The shot is shorter than a clip.",
    "black": "Black pictures.",
    "dark": "Too dark.",
    "bright": "Too bright.",
    "no_face": "No face, or not often enough.",
    "several_faces": "Several faces of about the same size.",
    "small_face": "The face is too small.",
    "large_face": "The face is too large.",
    "off_centre": "The face is too close to the edge of the picture.",
    "restless": "The face travels through the picture.",
    "flat": "The face has hardly any contrast.",
    "blurred": "The face is blurred.",
    "frozen": "The pictures stand still or stutter.",
    "silent": "The sound is too quiet.",
    "no_speech": "The sound is not like speech.",
    "clipped": "The sound is overdriven.",
    "off_sync": "The mouth does not move with the sound.",
    "poor_reference": "No picture is good enough to be the reference.",
}
