"""How well the offline talker finds the topic of a question, typed or spoken.

Questions about its topics should be answered with the right one, all others not at all. Spoken questions are said by
the voices of ``livetalk.voice`` and heard by the talker's own ear, so that the figures hold for clear speech in a quiet
room and for nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from livetalk.stream.talkers.ear import Ear, Words
from livetalk.stream.talkers.replies import Replies
from livetalk.types import MODEL_RATE, LiveTalkError
from livetalk.voice import speak

SILENCE_BEFORE_S = 0.4
SILENCE_AFTER_S = 0.55


@dataclass(frozen=True)
class Question:
    """Something a visitor may say.

    Attributes:
        text: the words.
        topics: names of the topics that answer it; empty = it is about none.
    """

    text: str
    topics: tuple[str, ...] = ()


def load_questions(path: Path | str) -> list[Question]:
    """Questions from a file like ``tests/data/questions.json``.

    Raises:
        LiveTalkError: the file is missing or no such list.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        inside = [Question(entry["question"], tuple(entry["topics"])) for entry in data["in_topic"]]
        return inside + [Question(text) for text in data["out_of_topic"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LiveTalkError(
            f"{path} holds no questions ({error}). Expected JSON with in_topic (question, topics) and out_of_topic."
        ) from error


def evaluate_topics(questions: Sequence[Question], voice: str | None = None) -> dict[str, Any]:
    """Ask everything once.

    Args:
        questions: about the topics or not.
        voice: who says them, as in ``livetalk.voice.speak``; None = they are typed.

    Returns:
        ``in_topic`` and ``out_of_topic`` (how many); of the former ``right`` (found), ``wrong`` (taken for another
        topic) and ``missed`` (for none); of the latter ``intruders`` (answered); and ``failures`` with what was asked,
        heard and answered.

    Raises:
        LiveTalkError: the voice or the ear does not work.
    """
    replies = Replies(datetime.now)
    ear = None if voice is None else Ear(replies.sentences)
    figures: dict[str, Any] = {"voice": voice}
    figures |= dict.fromkeys(("in_topic", "out_of_topic", "right", "wrong", "missed", "intruders"), 0)
    failures = []
    try:
        for question in questions:
            words = Words(question.text) if ear is None else _heard(ear, question.text, voice)
            found = replies.answer(words.general, domain=words.domain, spoken=ear is not None).topic
            figures["in_topic" if question.topics else "out_of_topic"] += 1
            if found in question.topics:
                figures["right"] += 1
            elif found or question.topics:
                kind = "missed" if not found else "wrong" if question.topics else "intruders"
                figures[kind] += 1
                failures.append({"asked": question.text, "heard": words.general, "answered": found})
    finally:
        if ear is not None:
            ear.close()
    return {**figures, "failures": failures}


def said(text: str, voice: str) -> np.ndarray:
    """A question as the microphone would bring it: float32 ``[n]`` at ``MODEL_RATE``, with silence around."""
    before, after = (np.zeros(int(part * MODEL_RATE), np.float32) for part in (SILENCE_BEFORE_S, SILENCE_AFTER_S))
    return np.concatenate([before, speak(text.replace("LiveTalk", "Live Talk"), voice).samples, after])


def _heard(ear: Ear, text: str, voice: str | None) -> Words:
    words = ear.understand(said(text, voice or ""), lambda: False)
    return words or Words("")
