"""A session: one visitor, one face, everything that changes.

One thread (or several) gives it sound, one thread takes pictures out of ``pictures()``, which keeps the pace: at most a
lead ahead of what is on screen. In "mirror" mode the visitor's own sound drives the face: the microphone with a steady
delay, because a chunk needs its sound before it can be made, or a whole clip at once.

What comes in waits in a bounded line; too much of it is dropped, oldest first, and said so. Interrupting is one number:
whatever belongs to an older generation is never handed out again.

This module knows nothing of pages, encoders of pictures or sound, or how weights are found.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from livetalk.hub import Models
from livetalk.media.packets import Packer
from livetalk.stream.pace import Clock, SystemClock
from livetalk.stream.performer import Performer
from livetalk.stream.snapshot import SessionSnapshot
from livetalk.stream.track import checked_samples
from livetalk.stream.turns import CancelScope
from livetalk.types import (
    PICTURES_PER_LATENT,
    PICTURES_PER_SECOND,
    AudioChunk,
    Fragment,
    Identity,
    LiveTalkError,
    Pictures,
    SpeechEnd,
)

Mode = Literal["mirror", "conversation"]
MODES: tuple[Mode, ...] = ("mirror", "conversation")

MICROPHONE_BACKLOG_S = 2.0
"""Microphone sound that may wait by default; beyond it the oldest is dropped."""

CLIP_LIMIT_S = 300.0
"""Sound of clips that may wait; beyond it a clip is refused."""

SILENT_MICROPHONE_S = 0.5
"""A microphone that sends nothing for so long is taken to be off."""

DELIVERY_S = 0.25
"""Allowance in the mirror's delay for packets under way and for the resampler."""

CLIP_PACKET_S = 1.0
CLIP_AHEAD_S = 4.0
"""Clips are taken in piece by piece, so that a long one neither blocks nor fills the memory."""

SHORTEST_CLIP_S = 1.0 / PICTURES_PER_SECOND


class Session:
    """One visitor's stream. Give sound from any thread, take pictures in one.

    Args:
        models: networks and preset; shared, never changed.
        identity: whose face, and how it moves.
        seed: same seed and same sound at the same places: same pictures.
        mode: name of what drives the face, for people who look; a conversation is a ``TalkSession``.
        lead_s: at most this much leaves ahead of what is on screen; None = as the preset says.
        backlog_s: sound given to ``listen`` that may wait; more is dropped.
        clock: time to read and to wait for; None = the machine's.

    Raises:
        LiveTalkError: there is no such mode.
    """

    def __init__(
        self,
        models: Models,
        identity: Identity,
        *,
        seed: int = 0,
        mode: str = "mirror",
        lead_s: float | None = None,
        backlog_s: float = MICROPHONE_BACKLOG_S,
        clock: Clock | None = None,
    ) -> None:
        if mode not in MODES:
            raise LiveTalkError(f"There is no session mode {mode!r}. Known modes: {', '.join(MODES)}.")
        self.identity, self.seed, self.mode = identity, seed, mode
        self._backlog_s = backlog_s
        self._clock: Clock = clock or SystemClock()
        self._performer = Performer(models, identity, seed, clock=self._clock, lead_s=lead_s)
        preset = models.preset
        chunk_s = preset.rollout.chunk_frames * PICTURES_PER_LATENT / PICTURES_PER_SECOND
        self._sound_wait_s = chunk_s + preset.audio.look_ahead_samples / 16_000
        self._picture_size = preset.height, preset.width
        self._scope = CancelScope()
        self._changed = threading.Condition()  # its lock may be taken again by who holds it
        self._making = threading.Lock()
        """Held while the performer's stream moves on; taken before ``_changed``."""
        self._clips: deque[AudioChunk | SpeechEnd] = deque()
        self._microphone: deque[AudioChunk] = deque()
        self._microphone_at_s: float | None = None
        self._clip_stop: int | None = None
        self._cleared: int | None = None
        self._stopped = False
        self._running = False
        self._speaking = False
        self._opened_at_s = self._clock()
        self._open_s: float | None = None
        self._dropped_s = 0.0
        self.dropped_samples = 0
        """Microphone samples thrown away, at the rate they came in."""
        self.mirror_delay_s: float | None = None
        """From the newest microphone sound to the same sound on screen; None before there was any."""

    def listen(self, samples: np.ndarray, rate: int) -> None:
        """Microphone sound (mono float ``[n]`` in -1..1 at ``rate`` Hz) that just happened; never waits.

        While a clip is played the microphone is not used.

        Raises:
            LiveTalkError: not mono float samples, not finite, or no sample rate.
        """
        packet = _packet(samples, rate)
        with self._changed:
            if self._stopped or not len(packet.samples):
                return
            self._microphone.append(packet)
            self._microphone_at_s = self._clock()
            while sum(_length_s(waiting) for waiting in self._microphone) > self._backlog_s:
                self._drop(self._microphone.popleft())
            self._changed.notify_all()

    def play(self, samples: np.ndarray, rate: int) -> None:
        """A clip (mono float ``[n]`` in -1..1 at ``rate`` Hz) the face says as soon as it can; never waits.

        Raises:
            LiveTalkError: unusable samples, too short, or more than five minutes of clips are waiting.
        """
        packet = _packet(samples, rate)
        if _length_s(packet) < SHORTEST_CLIP_S:
            raise LiveTalkError(
                f"The clip is {1000 * _length_s(packet):.0f} ms long. Expected at least "
                f"{1000 * SHORTEST_CLIP_S:.0f} ms, the length of one picture. Give a longer clip."
            )
        with self._changed:
            waiting_s = sum(_length_s(clip) for clip in self._clips if isinstance(clip, AudioChunk))
            if waiting_s + _length_s(packet) > CLIP_LIMIT_S:
                raise LiveTalkError(
                    f"The clip would make {(waiting_s + _length_s(packet)) / 60:.1f} minutes of waiting speech; the "
                    f"limit is {CLIP_LIMIT_S / 60:g} minutes. Give shorter clips, or render the long one to a file."
                )
            step = round(CLIP_PACKET_S * rate)
            pieces = range(0, len(packet.samples), step)
            self._clips += [AudioChunk(packet.samples[at : at + step], rate) for at in pieces] + [SpeechEnd()]
            self._changed.notify_all()

    def interrupt(self) -> int:
        """Be silent now: nothing said so far is handed out any more, the face goes on from where it is.

        Returns:
            The new generation. The next item of ``pictures()`` has it, is empty, and says from which picture on
            everything that was handed out before is void.
        """
        with self._changed:
            self._cleared = self._scope.cancel()
            self._clips.clear()
            self._microphone.clear()
            self._changed.notify_all()
            return self._cleared

    def stop(self) -> None:
        """End the session: ``pictures()`` ends within the chunk it is making."""
        with self._changed:
            self._stopped = True
            self._scope.cancel()
            self._changed.notify_all()

    def pictures(self) -> Iterator[Pictures]:
        """The stream, in small pieces, each at most the lead before it is on screen; ends after ``stop()``.

        A piece without pictures says: what was handed out from ``first_picture`` on is void (after ``interrupt()``).

        Raises:
            LiveTalkError: somebody is taking pictures already.
        """
        with self._changed:
            if self._running:
                raise LiveTalkError("The pictures of this session are being taken already. Open another session.")
            self._running = True
        try:
            while not self._stopped:
                with self._making:
                    void = self._take_in()
                if void is not None:
                    yield void
                with self._making:
                    piece = self._performer.next_pictures()
                if piece is None:
                    self._wait()
                elif self._scope.is_current(piece.generation):
                    self._note(piece)
                    yield piece
        finally:
            self.stop()
            self._performer.close()

    def fragments(self, packer: Packer | None = None) -> Iterator[Fragment]:
        """The stream as messages for a player; ``packer`` (one per viewer) makes them."""
        packer = packer or Packer(*self._picture_size)
        for piece in self.pictures():
            if not len(piece.pictures):
                yield packer.flush(piece.generation, piece.first_picture, self.state)
                continue
            with self._performer.times.stage("encode"):
                fragment = packer.pack(piece, self.state, self.facts())
            yield fragment

    @property
    def state(self) -> str:
        """What the face is doing: "idle", "speaking" or "stopped"."""
        if self._stopped:
            return "stopped"
        return "speaking" if self._speaking else "idle"

    @property
    def is_busy(self) -> bool:
        """Whether something is being said, or is still to be said."""
        return self._speaking or bool(self._clips) or self._clip_stop is not None

    @property
    def generation(self) -> int:
        """Number of interruptions so far."""
        return self._scope.generation

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of video made per second of work; under 1 = this machine is too slow. None before the first."""
        return self._performer.real_time_factor

    @property
    def first_picture_ms(self) -> float | None:
        """From the last sample the latest speech's first chunk needed to its pictures; at first: from the start."""
        spoken_s = self._performer.first_picture_s
        latest_s = self._open_s if spoken_s is None else spoken_s
        return None if latest_s is None else 1000 * latest_s

    @property
    def late_s(self) -> float:
        """How far the stream has slipped in all because pictures came too late."""
        return self._performer.late_s

    @property
    def notice(self) -> str | None:
        """What the visitor should know, in a sentence; None = all is well."""
        factor = self.real_time_factor
        if factor is not None and factor < 1.0:
            return f"This machine makes {factor:.2f} s of video a second: the face lags, sound and picture together."
        if self._dropped_s >= 0.1:
            return f"{self._dropped_s:.1f} s of microphone sound came too fast and were dropped."
        return None

    def facts(self) -> dict[str, Any]:
        """Figures for a status line; plain data."""
        return {
            "state": self.state,
            "generation": self.generation,
            "real_time_factor": self.real_time_factor,
            "first_picture_ms": self.first_picture_ms,
            "mirror_delay_s": self.mirror_delay_s,
            "late_s": self.late_s,
            "ahead_s": self._performer.ahead_s,
            "dropped_samples": self.dropped_samples,
            "notice": self.notice,
        }

    def snapshot(self) -> SessionSnapshot:
        """What another process needs to go on with this visitor, see ``livetalk.stream.snapshot``.

        Any thread; waits for the chunk that is being made. Where it goes on: ``Avatar.resume``. The stream goes on
        with the first picture that was not handed out. Speech that was handed to the pictures is heard to its end (some
        seconds at most); clips and replies of which nothing was, and sound that waits, are left behind.
        """
        with self._making, self._changed:
            return SessionSnapshot(self.mode, self._clock() - self._opened_at_s, self._performer.snapshot())

    def take_up(self, snapshot: SessionSnapshot) -> None:
        """Go on where another session of this mode, face and seed stopped, before anything else happened."""
        with self._making, self._changed:
            self._performer.take_up(snapshot.stream)
            self.identity = snapshot.stream.wanted
            self._scope = CancelScope(snapshot.stream.generation)
            self._opened_at_s -= snapshot.elapsed_s

    def _take_in(self) -> Pictures | None:
        """Give the performer what has come; returns the word that older pictures are void, if so."""
        with self._changed:
            void = self._clear() if self._cleared is not None else None
            while self._clip_is_wanted():
                self._say(self._clips.popleft())
            playing = bool(self._clips) or self._performer.next_picture < (self._clip_stop or 0)
            if not playing:
                self._clip_stop = None
            while self._microphone:
                self._hear(self._microphone.popleft())
            self._close_silent_microphone()
            return void

    def _clear(self) -> Pictures:
        generation, self._cleared = self._cleared, None
        first = self._performer.clear(generation)
        self._clip_stop, self._speaking = None, False
        nothing = np.zeros((0, *self._picture_size, 3), np.uint8)
        return Pictures(first, nothing, np.zeros(0, np.float32), self._performer.generation, speaking=False)

    def _clip_is_wanted(self) -> bool:
        """Whether the next piece of a clip should be taken in."""
        return bool(self._clips) and self._performer.backlog_s < CLIP_AHEAD_S

    def _say(self, piece: AudioChunk | SpeechEnd) -> None:
        """One piece of a clip; a clip ends what the microphone said."""
        if self._clip_stop is None:
            self._performer.push(SpeechEnd())
        self._performer.push(piece)
        self._clip_stop = self._performer.speech_stop

    def _hear(self, packet: AudioChunk) -> None:
        """One packet of the microphone: placed behind what came before, or after the mirror's delay."""
        if self._clip_stop is not None:  # a clip is playing
            return
        delay_s = self._sound_wait_s + self._performer.margin_s + DELIVERY_S
        if self._performer.backlog_s > delay_s + self._backlog_s:
            self._drop(packet)
            return
        if self._performer.open_rate not in (None, packet.sample_rate):
            self._performer.push(SpeechEnd())
        self._performer.push(packet, delay_s=delay_s)
        self.mirror_delay_s = self._performer.backlog_s

    def _close_silent_microphone(self) -> None:
        at_s = self._microphone_at_s
        if at_s is not None and self._clock() - at_s > SILENT_MICROPHONE_S:
            self._microphone_at_s = None
            if self._clip_stop is None:
                self._performer.push(SpeechEnd())

    def _wait(self) -> None:
        """Until there is something to make or to hand out, or something came in."""
        with self._changed:
            if self._stopped or self._cleared is not None or self._has_news():
                return
            self._clock.wait(self._changed, self._performer.wait_s())

    def _has_news(self) -> bool:
        """Whether something came in that was not taken in yet."""
        return bool(self._microphone) or self._clip_is_wanted()

    def _note(self, piece: Pictures) -> None:
        self._speaking = piece.speaking
        if self._open_s is None:
            self._open_s = self._clock() - self._opened_at_s

    def _drop(self, packet: AudioChunk) -> None:
        self.dropped_samples += len(packet.samples)
        self._dropped_s += _length_s(packet)


def _length_s(packet: AudioChunk) -> float:
    return len(packet.samples) / packet.sample_rate


def _packet(samples: np.ndarray, rate: int) -> AudioChunk:
    """A packet that the performer will take; raises as ``checked_samples`` does."""
    return AudioChunk(np.clip(checked_samples(samples, rate), -1.0, 1.0), int(rate))
