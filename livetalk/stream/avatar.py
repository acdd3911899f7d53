"""An avatar: a loaded model that renders clips and opens sessions. The door for people who write Python.

    from livetalk import load

    avatar = load("mini")
    avatar.render("face.png", "speech.wav", out="a.mp4")

This module does not know pages, command lines or how networks compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from livetalk.config import Preset
from livetalk.hub import Models, load_models
from livetalk.media.clips import ClipWriter
from livetalk.media.pictures import PortraitSource, load_portrait
from livetalk.media.sound import SpeechSource, duration_s, speech_blocks
from livetalk.model.conditions import Conditions, image_condition
from livetalk.model.gathering import Gathered
from livetalk.rollout import new_cache
from livetalk.stream.pace import Clock
from livetalk.stream.performer import Performer
from livetalk.stream.session import MICROPHONE_BACKLOG_S, Session
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers.protocol import Persona, Talker
from livetalk.stream.talkers.registry import talker_chain
from livetalk.stream.turns import TurnTaker
from livetalk.stream.vad import SileroDetector
from livetalk.types import PICTURES_PER_SECOND, PLAYBACK_RATE, AudioChunk, Identity, Pictures, SpeechEnd

Progress = Callable[[float, float | None], None]
"""Called with the seconds done and the seconds in all (None where the file does not say)."""

WARM_UP_PICTURES = 24


def load(preset: str | Path = "mini", device: str = "auto") -> Avatar:
    """An avatar, ready to talk.

    Args:
        preset: "mini", "livetalk-1.3b", or a folder with a checkpoint.
        device: "auto" (CUDA if there is any), "cpu" or "cuda".

    Raises:
        LiveTalkError: no such model or device, or files are missing or damaged.
    """
    avatar = Avatar(load_models(preset, device))
    avatar.warm_up()
    return avatar


class Avatar:
    """A model that gives any number of faces a voice. Holds weights only; what changes belongs to sessions.

    Args:
        models: networks and preset.
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    @property
    def preset(self) -> Preset:
        """Sizes and choices of the model."""
        return self.models.preset

    def warm_up(self) -> None:
        """Run two chunks, so that the first visitor does not wait for what happens once."""
        preset = self.preset
        identity = self.identity(np.zeros((preset.height, preset.width, 3), np.uint8))
        performer = Performer(self.models, identity, overlap=False)
        performer.push(AudioChunk(np.zeros(WARM_UP_PICTURES * PLAYBACK_RATE // PICTURES_PER_SECOND, np.float32)))
        deque(performer.pictures(), maxlen=0)

    def warm_up_together(self) -> None:
        """For who opens several sessions at once: where they share passes of the network, run passes of every size."""
        network, preset, device = self.models.network, self.preset, self.models.device
        if not isinstance(network, Gathered):
            return
        shape = preset.latent_shape(preset.rollout.chunk_frames)
        identity = self.identity(np.zeros((preset.height, preset.width, 3), np.uint8))
        image = image_condition(identity.portrait_latent.to(device), shape.frames, first_frame=1)
        cond = Conditions(image, None, identity.text.to(device))
        network.warm_up(cond.portrait, cond, new_cache(network, preset.rollout, shape))

    def identity(self, portrait: PortraitSource, prompt: str | None = None) -> Identity:
        """Who is drawn.

        Args:
            portrait: path, bytes, PIL image, or uint8 array ``[H, W, 3]``; cut and scaled to the model's size.
            prompt: how the person moves and feels; None or empty = the preset's words.

        Raises:
            LiveTalkError: the portrait cannot be read or used.
        """
        preset = self.preset
        loaded = load_portrait(portrait, preset.height, preset.width)
        return self.models.identity(loaded.image, prompt or preset.stream.default_prompt)

    def performer(self, portrait: PortraitSource, prompt: str | None = None, seed: int = 0) -> Performer:
        """A stream to feed by hand: push packets of speech, take the pictures that can be known.

        Args:
            portrait: see :meth:`identity`.
            prompt: how the person moves and feels.
            seed: same seed and same speech: same pictures.

        Raises:
            LiveTalkError: the portrait cannot be used.
        """
        return Performer(self.models, self.identity(portrait, prompt), seed)

    def clip(
        self,
        portrait: PortraitSource,
        speech: SpeechSource,
        prompt: str | None = None,
        seed: int = 0,
        limit_s: float | None = None,
    ) -> Iterator[Pictures]:
        """The pictures of a whole clip with their sound, chunk by chunk as they are made, in constant memory.

        Args:
            portrait: see :meth:`identity`.
            speech: path, bytes of a file, or ``(samples, rate)``.
            prompt: how the person moves and feels.
            seed: same seed, same clip.
            limit_s: longest speech accepted; None = any length.

        Raises:
            LiveTalkError: portrait or speech cannot be used.
        """
        return _perform(self.performer(portrait, prompt, seed), speech, limit_s)

    def render(
        self,
        portrait: PortraitSource,
        speech: SpeechSource,
        out: str | Path = "livetalk.mp4",
        prompt: str | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        limit_s: float | None = None,
    ) -> Path:
        """A portrait says a speech: an mp4 (16 pictures/s H.264, AAC), as long as the speech within one picture.

        The file appears under its name only when it is whole.

        Args:
            portrait: path, bytes, PIL image, or uint8 array ``[H, W, 3]``.
            speech: path, bytes of a file, or ``(samples, rate)``; any length, in constant memory.
            out: file to write.
            prompt: how the person moves and feels.
            seed: same seed, same clip.
            progress: called after every chunk.
            limit_s: longest speech accepted; None = any length.

        Returns:
            The path of the file.

        Raises:
            LiveTalkError: portrait or speech cannot be used, or the file cannot be written.
        """
        preset = self.preset
        total_s = duration_s(speech)
        pieces = self.clip(portrait, speech, prompt, seed, limit_s)
        with ClipWriter(out, preset.height, preset.width) as writer:
            for piece in pieces:
                writer.write(piece.pictures, piece.sound)
                if progress is not None:
                    progress((piece.first_picture + len(piece.pictures)) / PICTURES_PER_SECOND, total_s)
        return Path(out)

    def session(
        self,
        portrait: PortraitSource,
        prompt: str | None = None,
        seed: int = 0,
        mode: str = "mirror",
        backlog_s: float = MICROPHONE_BACKLOG_S,
        clock: Clock | None = None,
    ) -> Session:
        """A live session with one visitor.

        Args:
            portrait: see :meth:`identity`.
            prompt: how the person moves and feels.
            seed: of everything random.
            mode: "mirror": the visitor's own sound drives the face.
            backlog_s: sound given to ``listen`` that may wait; more is dropped. Raise it for a client that sends files.
            clock: for tests; None = the machine's.

        Raises:
            LiveTalkError: the portrait cannot be used, or there is no such mode.
        """
        identity = self.identity(portrait, prompt)
        return Session(self.models, identity, seed=seed, mode=mode, backlog_s=backlog_s, clock=clock)

    def resume(
        self,
        snapshot: SessionSnapshot,
        talkers: Sequence[Talker] | None = None,
        backlog_s: float = MICROPHONE_BACKLOG_S,
        clock: Clock | None = None,
    ) -> Session:
        """Go on with a session of this model that was begun in another process (``Session.snapshot``).

        Face, seed, clock, generation and what was said go on. Pictures are those that the uninterrupted session would
        have made, bit for bit (CPU, same thread count), until the stream is longer than the window (15 latent frames,
        3.6 s, by default): from then on the window's keys are made again from its latents and do not know what those
        had seen before. Mini's pictures then differ by .003 of 255 levels in the mean (float32; docs/LOG.md).

        Args:
            snapshot: of a session on an avatar with the same weights.
            talkers: of a conversation: who answers; None = the best this machine can run.
            backlog_s: of a mirror, see :meth:`session`.
            clock: for tests; None = the machine's.

        Returns:
            A ``TalkSession`` if the snapshot is of a conversation.

        Raises:
            LiveTalkError: no talker can work.
        """
        stream, talk = snapshot.stream, snapshot.conversation
        session: Session
        if talk is None:
            session = Session(
                self.models, stream.identity, seed=stream.seed, mode=snapshot.mode, backlog_s=backlog_s, clock=clock
            )
        else:
            chain = talker_chain() if talkers is None else talkers
            turns = TurnTaker(SileroDetector())
            session = TalkSession(
                self.models, stream.identity, chain, talk.persona, turns, seed=stream.seed, clock=clock
            )
        session.take_up(snapshot)
        return session

    def conversation(
        self,
        portrait: PortraitSource,
        prompt: str | None = None,
        seed: int = 0,
        talkers: Sequence[Talker] | None = None,
        persona: Persona | None = None,
        clock: Clock | None = None,
    ) -> TalkSession:
        """A live conversation with one visitor: speak with ``listen``, write with ``write``, watch ``pictures()``.

        Args:
            portrait: see :meth:`identity`.
            prompt: how the person moves and feels.
            seed: of everything random about the pictures.
            talkers: who answers, in the order of preference; None = the best this machine can run.
            persona: who the avatar is.
            clock: for tests; None = the machine's.

        Raises:
            LiveTalkError: the portrait cannot be used, or no talker can work.
        """
        return TalkSession(
            self.models,
            self.identity(portrait, prompt),
            talker_chain() if talkers is None else talkers,
            persona or Persona(),
            TurnTaker(SileroDetector()),
            seed=seed,
            clock=clock,
        )


def _perform(performer: Performer, speech: SpeechSource, limit_s: float | None) -> Iterator[Pictures]:
    """Feed a performer a whole speech, a second at a time."""
    try:
        for block in speech_blocks(speech, PLAYBACK_RATE, limit_s):
            performer.push(AudioChunk(block, PLAYBACK_RATE))
            yield from performer.pictures()
        performer.push(SpeechEnd())
        yield from performer.pictures()
    finally:
        performer.close()
