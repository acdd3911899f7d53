"""A conversation in real time, measured: how soon a question is answered, and how soon an interruption is silent.

Spoken questions are fed as a microphone would, packet by packet on the machine's clock; what the session sends is
played by a model of the page's player, so that times are those at which a visitor would hear and see it. Every second
question interrupts the answer to the one before. What is fast enough is not decided here.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from livetalk.engine import configured_engine
from livetalk.eval import browser_talk
from livetalk.eval.bench import Random, machine, random_models_of
from livetalk.eval.browser import spread_ms
from livetalk.eval.player import Screen
from livetalk.media.packets import Packer, unpack
from livetalk.stream.avatar import Avatar, load
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers import registry
from livetalk.types import MODEL_RATE, LiveTalkError
from livetalk.voice import default_voice, speak

PACKET_S, HASTY_PACKET_S = 0.08, 0.04
"""About what the page sends at once while somebody speaks, and while the avatar does, too, or a turn may be over."""
WORD_S = 0.15
CALM_S = 1.0
"""Quiet before a question that does not interrupt."""
INTO_REPLY_S = 1.2
"""An interruption begins so long after the first sound of the reply."""
PATIENCE_S = 15.0
"""A question not answered by then counts as not answered."""
LOUD = 0.01
TOPICS = Path(registry.__file__).with_name("topics.json")


@dataclass
class Turn:
    """One question; times on the machine's clock.

    Attributes:
        onset_s, stop_s: of the visitor's voice.
        interrupts: it began while the avatar spoke.
        sound_s: first sound of the answer.
        picture_s: first picture of the answer.
        silent_s: last sound of the answer that was interrupted.
        duck_s: when the session said that the avatar should be heard less loudly.
    """

    onset_s: float
    stop_s: float
    interrupts: bool
    sound_s: float | None = None
    picture_s: float | None = None
    silent_s: float | None = None
    duck_s: float | None = None


def run(
    preset: str = "mini",
    device: str = "auto",
    turns: int = 10,
    in_browser: bool = False,
    talker: str = "offline",
    random: Random | None = None,
) -> dict[str, Any]:
    """Converse and measure.

    Args:
        preset: name of a preset, or a folder with a checkpoint.
        device: "auto", "cpu" or "cuda".
        turns: questions; every second one interrupts.
        in_browser: the page in a headless browser, too.
        talker: name of the choice that answers.
        random: random weights of the preset's sizes for the face, not in a browser.

    Returns:
        See :func:`measure`; with ``in_browser`` also ``browser``, see :func:`livetalk.eval.browser_talk.converse`.

    Raises:
        LiveTalkError: no such model, device or talker, one that cannot work here, no voice for the questions, or
            ``turns`` below 1.
    """
    if turns < 1:
        raise LiveTalkError(f"The number of turns is {turns}. Expected at least 1.")
    clips = questions(turns)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # as app.py does: the talker works beside the pictures
    if in_browser and (random is not None or talker != "offline"):
        raise LiveTalkError("In a browser the model has its own weights and the offline talker answers.")
    chain = registry.talker_chain(talker)
    engine = configured_engine()
    avatar = load(preset, device) if random is None else Avatar(random_models_of(preset, device, random, engine))
    figures = measure(avatar, clips, chain)
    if in_browser:
        figures["browser"] = browser_talk.converse(preset, clips, MODEL_RATE)
    return {"preset": preset, "weights": "random" if random else "trained", **figures}


def questions(count: int) -> list[np.ndarray]:
    """Questions about the offline talker's topics, spoken: float32 ``[n]`` at ``MODEL_RATE``."""
    topics = json.loads(TOPICS.read_text(encoding="utf-8"))["topics"]
    asked = [topic["questions"][number % len(topic["questions"])] for number, topic in enumerate(topics)]
    voice = default_voice()
    return [speak(asked[number % len(asked)], voice).samples for number in range(count)]


def measure(avatar: Avatar, clips: Sequence[np.ndarray], talkers: Sequence[Any] | None = None) -> dict[str, Any]:
    """Converse once and measure.

    Args:
        avatar: loaded models.
        clips: questions, float32 ``[n]`` at ``MODEL_RATE``.
        talkers: who answers; None = the offline talker.

    Returns:
        ``end_of_speech_to_first_sound_ms``, ``end_of_speech_to_first_picture_ms`` (end of the visitor's voice -> heard,
        seen), ``interrupt_to_silence_ms`` (onset of the interrupting voice -> last sound), ``duck_ms`` (onset -> told
        to be less loud), each with p50, p95 and n; ``answered`` questions, ``real_time_factor``, ``late_s``,
        ``stalls``, ``slipped_s`` and ``held_s`` (silence made shorter, and longer), ``talker`` at the end, its
        ``notice``, ``gpu_used_mb`` (most of the whole GPU that was in use, the talker's process and everybody else's
        included; None without a GPU), and what the machine was like.
    """
    chain = registry.talker_chain("offline") if talkers is None else talkers
    session = avatar.conversation(_portrait(avatar), talkers=chain)
    preset = avatar.preset
    packer, script = Packer(preset.height, preset.width), Script(session, clips)
    microphone, used = Microphone(session), UsedMemory(avatar.models.device)
    microphone.start()
    try:
        for fragment in session.fragments(packer):
            now_s = time.monotonic()
            header, _, pcm = unpack(fragment.payload)
            script.screen.push(header, np.frombuffer(pcm, "<i2").astype(np.float32) / 32767, now_s)
            used.look()
            if script.step(microphone, now_s):
                break
    finally:
        microphone.stop()
        session.stop()
    return {
        "turns": len(clips),
        **_figures(script.turns),
        "real_time_factor": round(session.real_time_factor or 0.0, 2),
        "late_s": round(session.late_s, 3),
        "stalls": script.screen.stalls,
        "slipped_s": round(script.screen.slipped_s, 3),
        "held_s": round(script.screen.held_s, 3),
        "longest_held_s": round(script.screen.longest_held_s, 3),
        "talker": session.conversation.talker.title,
        "notice": session.conversation.notice,
        "gpu_used_mb": used.most_mb,
        **machine(avatar.models.device),
    }


class UsedMemory:
    """Memory of a GPU that is in use, by whatever process.

    Args:
        device: the GPU; on another device there is nothing to see.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.most_mb: float | None = None
        """The most that was seen, in MiB."""

    def look(self) -> None:
        """See how much it is now."""
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            self.most_mb = max(self.most_mb or 0.0, round((total - free) / 2**20, 1))


class Microphone(threading.Thread):
    """Feeds a session in real time: a voice when there is one to say, silence otherwise.

    Args:
        session: what listens.
    """

    def __init__(self, session: TalkSession) -> None:
        super().__init__(name="livetalk-microphone", daemon=True)
        self._session = session
        self._clips: deque[tuple[np.ndarray, Turn]] = deque()
        self._stopped = threading.Event()

    def say(self, clip: np.ndarray, *, interrupts: bool) -> Turn:
        """Speak a clip, from the next packet on; its times are filled in as it is said."""
        turn = Turn(float("inf"), float("inf"), interrupts)
        self._clips.append((clip, turn))
        return turn

    def stop(self) -> None:
        """Be silent, and end."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """One packet after the other, each when its last sample has happened."""
        begun_s, sent = time.monotonic(), 0
        rest, turn = np.zeros(0, np.float32), None
        while not self._stopped.is_set():
            if not len(rest) and self._clips:
                rest, turn = self._clips.popleft()
                loud = np.flatnonzero(np.abs(rest) > LOUD)
                clip_s = begun_s + sent / MODEL_RATE
                turn.onset_s, turn.stop_s = (clip_s + at / MODEL_RATE for at in (loud[0], loud[-1]))
            over_s = time.monotonic() - turn.stop_s if turn is not None else 0.0
            hasty = self._session.state == "speaking" or WORD_S < over_s < CALM_S
            size = round((HASTY_PACKET_S if hasty else PACKET_S) * MODEL_RATE)
            packet, rest = rest[:size], rest[size:]
            sent += size
            self._stopped.wait(max(0.0, begun_s + sent / MODEL_RATE - time.monotonic()))
            self._session.listen(np.pad(packet, (0, size - len(packet))), MODEL_RATE)
            talk = self._session.conversation
            if turn is not None and turn.duck_s is None and (talk.is_suspected or talk.is_voice_on):
                turn.duck_s = time.monotonic()


@dataclass
class Script:
    """Who asks when; looks at the screen after every fragment.

    Attributes:
        session: the conversation.
        clips: questions.
        screen: what the visitor hears and sees.
        turns: questions asked so far.
    """

    session: TalkSession
    clips: Sequence[np.ndarray]
    screen: Screen = field(default_factory=Screen)
    turns: list[Turn] = field(default_factory=list)
    _replies: int = 0

    def step(self, microphone: Microphone, now_s: float) -> bool:
        """Ask if it is time to; whether all is over."""
        turn = self.turns[-1] if self.turns else None
        if turn is not None and turn.sound_s is None:
            self._look(turn, now_s)
            if turn.sound_s is None and now_s < turn.stop_s + PATIENCE_S:
                return False
        if len(self.turns) == len(self.clips):
            return self._is_calm(now_s)
        interrupts = len(self.turns) % 2 == 1
        if turn is not None and interrupts and turn.sound_s is not None:
            if now_s < turn.sound_s + INTO_REPLY_S:
                return False
            interrupts = self.session.state == "speaking"
        if interrupts or (self.session.conversation.is_ready and self._is_calm(now_s)):
            self._replies = self._replies_begun()
            self.turns.append(microphone.say(self.clips[len(self.turns)], interrupts=interrupts))
        return False

    def _look(self, turn: Turn, now_s: float) -> None:
        """Note when the answer to ``turn`` began, and when the one before ended."""
        heard_s = self.screen.first_loud_s(turn.stop_s)
        if heard_s is None or heard_s > now_s or self._replies_begun() == self._replies:
            return
        turn.sound_s, turn.picture_s = heard_s, self.screen.picture_s(heard_s)
        if turn.interrupts:
            turn.silent_s = self.screen.last_loud_s(turn.stop_s)

    def _replies_begun(self) -> int:
        return sum(line.role == "avatar" for line in list(self.session.conversation.transcript.lines))

    def _is_calm(self, now_s: float) -> bool:
        last_s = self.screen.last_loud_s(now_s + PATIENCE_S)
        busy = self.session.state != "listening" or self.session.conversation.reply is not None
        return not busy and (last_s is None or now_s > last_s + CALM_S)


def _figures(turns: Sequence[Turn]) -> dict[str, Any]:
    answered = [turn for turn in turns if turn.sound_s is not None]
    cuts = [turn for turn in turns if turn.interrupts]
    return {
        "answered": len(answered),
        "end_of_speech_to_first_sound_ms": spread_ms([(turn.stop_s, turn.sound_s) for turn in answered]),
        "end_of_speech_to_first_picture_ms": spread_ms([(turn.stop_s, turn.picture_s) for turn in answered]),
        "interrupt_to_silence_ms": spread_ms([(turn.onset_s, turn.silent_s) for turn in cuts]),
        "duck_ms": spread_ms([(turn.onset_s, turn.duck_s) for turn in cuts]),
    }


def _portrait(avatar: Avatar) -> np.ndarray:
    """A made-up portrait; speed does not depend on what it shows."""
    height, width = avatar.preset.height, avatar.preset.width
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = 255 * np.exp(-3 * (rows**2 + columns**2))
    return np.repeat(light[..., None], 3, axis=2).astype(np.uint8)
