"""Captions that say how a person moves: measured, and rewritten by a language model where there is one.

The paper rewrites captions towards motion and expression with Qwen2.5-VL-72B. Here a rewriter is any function from a
caption and a few pictures to a caption; ``hosted_rewriter`` asks a model behind an inference client or a local server
of the same protocol. Without a rewriter the caption says what was measured, in the words drawn clips use.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from livetalk.distill.curate.faces import FaceBox
from livetalk.distill.curate.judge import head_travel
from livetalk.distill.portraits import caption
from livetalk.distill.portraits.motion import MOTION_WORDS
from livetalk.rulers import Reading, mood, motion_amount
from livetalk.types import LiveTalkError

Rewriter: TypeAlias = Callable[[str, Sequence[np.ndarray]], str]
"""Caption and pictures uint8 ``[H, W, 3]`` of a clip to a better caption; raises ``LiveTalkError``."""

READ_MOTION = (0.54, 1.7)
"""Motion amounts of the probe between still, gentle and lively: 11 drawn clips gave .31-.51, .57-1.2 and 2.4-2.5."""

SEEN_MOTION = (4.5, 12.0)
"""The same for ``head_travel``: 13 drawn clips gave 2.3-3.8 still, 5.2-11.8 gentle, 12-17 lively."""

LONGEST_CAPTION = 600
INSTRUCTION = (
    "You write captions for a model that animates portraits. Rewrite the caption so that it stresses how the person"
    " moves and what the face expresses: head motion, gestures, gaze, brows, mood and its strength, as they can be seen"
    " in the pictures, if there are any. Invent nothing that contradicts the caption. Leave out names, clothes and"
    " background. Answer with the new caption alone: one or two plain English sentences, at most 40 words."
)


def measured_caption(
    pictures: np.ndarray, face: FaceBox, reading: Reading | None, seed: int
) -> tuple[str, dict[str, float | str]]:
    """A sentence with what was measured: motion, and the mood if a probe can read it; and the figures."""
    if reading is not None:
        amount, found = motion_amount(reading), mood(reading)
        motion = _motion(amount, READ_MOTION)
        return caption(motion, found, seed), {"motion_amount": amount, "motion": motion, "mood": found}
    amount = head_travel(pictures, face)
    motion = _motion(amount, SEEN_MOTION)
    rng = np.random.default_rng([seed, 0xCA97])
    # no word for the mood: a wrong one would teach that words mean nothing
    sentence = f"{rng.choice(['A person', 'Someone', 'A speaker'])} speaks, {rng.choice(MOTION_WORDS[motion])}."
    return sentence, {"head_travel": amount, "motion": motion}


def hosted_rewriter(client: Any, model: str, see: bool = False) -> Rewriter:
    """A rewriter that asks a language model.

    Args:
        client: of ``livetalk.hub.inference_client``.
        model: a chat model.
        see: show it the pictures, too; it must be able to take them.
    """

    def rewrite(text: str, pictures: Sequence[np.ndarray]) -> str:
        shown = [{"type": "image_url", "image_url": {"url": _data_url(one)}} for one in pictures] if see else []
        content: Any = [{"type": "text", "text": f"Caption: {text}"}, *shown] if see else f"Caption: {text}"
        messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]
        try:
            answer = client.chat_completion(messages, model=model, max_tokens=200, temperature=0.0, seed=0)
            said = answer.choices[0].message.content
        except Exception as error:  # offline, refused, busy, unknown model: many types, one remedy
            raise LiveTalkError(f"{model} could not rewrite a caption ({error}). Try again, or another one.") from error
        return _one_line(said, model)

    return rewrite


def _one_line(said: Any, model: str) -> str:
    """The answer as one line without quotation marks.

    Raises:
        LiveTalkError: it is empty, or far longer than a caption.
    """
    line = " ".join(str(said or "").split()).strip("\"'` ").removeprefix("Caption:").strip()
    if not 0 < len(line) <= LONGEST_CAPTION:
        raise LiveTalkError(f"{model} answered with {len(line)} characters instead of a caption. Try another model.")
    return line


def _motion(amount: float, borders: tuple[float, float]) -> str:
    return "still" if amount < borders[0] else "gentle" if amount < borders[1] else "lively"


def _data_url(picture: np.ndarray) -> str:
    stored = io.BytesIO()
    Image.fromarray(picture).save(stored, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()
