"""The reference picture of a clip: the one that shows the person best, restored if it is poor and can be.

The paper restores or regenerates references (CodeFormer, Qwen-Image); here a restorer is any function from a picture to
a picture: plain sharpening, or an image model behind an inference client. Without one, poor references are refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from livetalk.distill.curate.faces import SPOTS_IN_BOX, FaceBox, FaceFinder
from livetalk.distill.curate.judge import blur_effect
from livetalk.distill.curate.limits import Limits
from livetalk.rulers import Reading, luminance
from livetalk.types import LiveTalkError

Restorer: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""A better picture of the same person, uint8 ``[H, W, 3]`` to the same size; raises ``LiveTalkError``."""

RESTORATION_PROMPT = (
    "Restore this portrait: sharp eyes and mouth, natural skin, even light. Keep the same person, pose, expression,"
    " hair, clothes, background and framing."
)
_CANDIDATES = 6
_MOUTH_BOX = (0.40, 0.24)
"""Width and height around the mouth, in sides of the face's box."""


@dataclass(frozen=True)
class Reference:
    """The chosen picture.

    Attributes:
        index: which picture of the clip.
        picture: uint8 ``[H, W, 3]``, restored if need be.
        poor: it is not good enough.
        figures: what was measured.
    """

    index: int
    picture: np.ndarray
    poor: bool
    figures: dict[str, float]


def choose_reference(
    pictures: np.ndarray, face: FaceBox, reading: Reading | None, finder: FaceFinder, limits: Limits
) -> Reference:
    """The sharpest picture with the mouth shut, the eyes open and the face to the camera; earlier ones first.

    Args:
        pictures: uint8 ``[T, H, W, 3]``.
        face: where the face is.
        reading: mouth, lids and turn of the head where a probe can tell them. Without one a shut mouth is the one
            with the least darkness in it, compared within the clip, and eyes are open if they are found.
        finder: looks for eyes.
        limits: what is asked of a reference.
    """
    light = luminance(face.of(pictures))
    blur = np.array([blur_effect(one) for one in light])
    cost = 4.0 * (blur - blur.min()) + 0.2 * np.arange(len(blur)) / len(blur)
    if reading is not None:
        cost = cost + 2.0 * reading.open + 2.0 * reading.eyes_shut
        cost = cost + np.hypot(reading.yaw, reading.pitch)
        index = int(cost.argmin())
    else:
        cost = cost + _darkness(luminance(_mouth(face).of(pictures))) + _asymmetry(light)
        best = np.argsort(cost, kind="stable")[:_CANDIDATES]
        index = int(max(best, key=lambda at: (finder.eyes(pictures[at], face), -cost[at])))
    figures = {"reference_blur": float(blur[index])}
    if reading is not None:
        figures["reference_open"] = float(reading.open[index])
        figures["reference_shut"] = float(reading.eyes_shut[index])
    return Reference(index, pictures[index], _poor(figures, limits), figures)


def restored(reference: Reference, face: FaceBox, restorer: Restorer, limits: Limits) -> Reference:
    """The reference after restoration, judged again; what is open or shut stays so.

    Raises:
        LiveTalkError: the restorer failed, or gave a picture of another size.
    """
    better = restorer(reference.picture)
    if better.shape != reference.picture.shape or better.dtype != np.uint8:
        raise LiveTalkError(
            f"The restorer gave {better.dtype} {list(better.shape)}, expected uint8 {list(reference.picture.shape)}."
        )
    blur = blur_effect(luminance(face.of(better[None]))[0])
    figures = {**reference.figures, "reference_blur": blur, "restored": 1.0}
    return Reference(reference.index, better, _poor(figures, limits), figures)


def sharpen(picture: np.ndarray) -> np.ndarray:
    """The plain restorer: unsharp masking. It brings back edges, not detail that was never there."""
    masked = Image.fromarray(picture).filter(ImageFilter.UnsharpMask(radius=2.0, percent=180, threshold=1))
    return np.asarray(masked).copy()


def hosted_restorer(client: Any, model: str) -> Restorer:
    """A restorer that asks an image model.

    Args:
        client: of ``livetalk.hub.inference_client``.
        model: an image-to-image model, such as "Qwen/Qwen-Image-Edit".
    """

    def restore(picture: np.ndarray) -> np.ndarray:
        stored = io.BytesIO()
        Image.fromarray(picture).save(stored, "PNG")
        try:
            answer = client.image_to_image(stored.getvalue(), prompt=RESTORATION_PROMPT, model=model)
        except Exception as error:  # offline, refused, busy, unknown model: many types, one remedy
            raise LiveTalkError(
                f"{model} could not restore a reference ({error}). Try again, or another one."
            ) from error
        size = picture.shape[1], picture.shape[0]
        return np.asarray(answer.convert("RGB").resize(size, Image.Resampling.LANCZOS)).copy()

    return restore


def _poor(figures: dict[str, float], limits: Limits) -> bool:
    return (
        figures["reference_blur"] > limits.reference_blur
        or figures.get("reference_open", 0.0) > limits.reference_open
        or figures.get("reference_shut", 0.0) > limits.reference_shut
    )


def _mouth(face: FaceBox) -> FaceBox:
    across, down = (at - 0.5 for at in SPOTS_IN_BOX[0])
    return FaceBox(face.column + across * face.side, face.row + down * face.side, _MOUTH_BOX[0] * face.side)


def _darkness(mouths: np.ndarray) -> np.ndarray:
    """How dark the darkest tenth around the mouth is ``[T]``, 0 for the lightest picture of the clip to 1."""
    rows = mouths.shape[1]
    high = max(1, round(rows * _MOUTH_BOX[1] / _MOUTH_BOX[0] / 2))
    middle = mouths[:, max(0, rows // 2 - high) : rows // 2 + high]
    darkest = np.percentile(middle, 10, axis=(1, 2))
    return (darkest.max() - darkest) / (darkest.max() - darkest.min() + 8.0)


def _asymmetry(faces: np.ndarray) -> np.ndarray:
    """How unlike its mirror image a face is ``[T]``, in deviations of its light, 0 for the most even of the clip."""
    difference = np.abs(faces - faces[:, :, ::-1]).mean(axis=(1, 2)) / (faces.std(axis=(1, 2)) + 1.0)
    return difference - difference.min()
