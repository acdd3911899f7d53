"""The performer: speech in, pictures out, in chunks, with the possibility to change one's mind about the future.

Three verbs: push speech, clear what was not shown, iterate pictures. There are two uses and one set of bits:

* **Without a clock** (clips): pictures of a chunk leave as soon as its sound and the look-ahead are there. At the end
  of the speech the chunk is filled up with silence and pictures leave up to the end of the speech.
* **With a clock** (live): pictures leave by the latent frame, at most a lead ahead of playback: little has left when
  somebody interrupts. Where nothing is said the face lives on silence. When speech begins, goes on, ends or is cleared
  inside chunks already made, those are made again from where they began, with the same noise and the new sound.

A chunk never depends on how or when its sound arrived, only on the sound, the seed and the chunks before it.
This module knows nothing of files, pages, threads of the caller, or what is said.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from livetalk.hub import Models
from livetalk.stream.chunks import ChunkMaker, Look, Take
from livetalk.stream.grid import SAFETY_PICTURES, Grid
from livetalk.stream.pace import LEAST_MARGIN_S, FirstPicture, Playback, Speed, StageTimes, Timer
from livetalk.stream.past import StreamSnapshot
from livetalk.stream.track import SoundTrack
from livetalk.types import PICTURES_PER_SECOND, AudioChunk, Identity, Pictures, SpeechEnd

HASTE, CALM, LAST_MOMENT, BUSY = 1.35, 1.6, 1.1, 2.5
"""Allowance on making a chunk: least for a reply; after an interruption; for late sound; while a talker is at work."""
SPEAKING_LEVEL = 0.01
"""Pieces whose sound stays under this amplitude count as silence in what is shown as the state."""


class Performer:
    """Generates one stream of pictures; not thread-safe.

    Args:
        models: networks and preset; shared, never changed.
        identity: whose face, and how it moves.
        seed: same seed, same speech at the same places: same pictures.
        clock: seconds; None = no pacing and no idle motion, pictures leave as soon as they can be known.
        lead_s: at most this much leaves ahead of playback; None = as the preset says.
        overlap: decode one chunk in a thread while the next is denoised; None = where it pays (CUDA).
    """

    def __init__(
        self,
        models: Models,
        identity: Identity,
        seed: int = 0,
        *,
        clock: Timer | None = None,
        lead_s: float | None = None,
        overlap: bool | None = None,
    ) -> None:
        preset = models.preset
        self._grid = Grid(preset.rollout.chunk_frames, preset.audio.look_ahead_samples)
        self._playback = Playback(clock, preset.stream.lead_s if lead_s is None else lead_s) if clock else None
        self.times = StageTimes(clock or time.perf_counter)
        self._speed = Speed(self.times, self._grid.frames)
        self._first = FirstPicture(clock or time.perf_counter, self._making_s, HASTE)
        self.calm = FirstPicture(clock or time.perf_counter, self._making_s, CALM)
        """Live: the first picture after an interruption."""
        self._seed, self._overlap = seed, models.device.type == "cuda" if overlap is None else overlap
        self._maker = ChunkMaker(models, identity, seed, self.times, self._overlap)
        self._track = SoundTrack(models.audio)
        self._takes: deque[Take] = deque()
        self._next_chunk = self._next_picture = 0
        self._held_from: int | None = None
        self._promised: int | None = None
        self._left_before_hold, self._urgent_s = 0, LEAST_MARGIN_S
        self.expects_speech = False
        """Live: speech may come at any moment; silence is made as late as it can be."""
        self.generation, self.ahead_s = 0, 0.0
        """Live: how long before they are due on screen the latest pictures left."""

    def push(self, packet: AudioChunk | SpeechEnd, delay_s: float = 0.0) -> None:
        """Take a packet of speech of any length, or the end of a piece of speech.

        Args:
            packet: speech starts at the first picture that has not left, or directly behind earlier speech.
            delay_s: live, for speech that comes in real time: it starts not before this much after what is on
                screen now, so that its sound is there when it is needed.

        Raises:
            LiveTalkError: not mono, not finite, or another rate in mid-speech; nothing was taken.
        """
        if not self._track.open:
            if isinstance(packet, SpeechEnd):
                return
            self._begin_speech(packet, delay_s)
        self._track.make_room(self._next_picture)
        changed = self._track.heard_samples
        if isinstance(packet, SpeechEnd):
            self._track.finish()
        else:
            self._track.append(packet)
        self._redo_from_sample(changed)
        if self._first.awaited is not None and self._sound_is_there(self._grid.chunk_of(self._first.awaited)):
            self._first.note_sound()

    def clear(self, generation: int | None = None) -> int:
        """Drop all speech that was not shown; the face goes on in silence from where it is.

        Pictures that have left but are not on screen yet are replaced (live), so the first picture that follows may
        have a number that left before; its generation tells it apart.

        Args:
            generation: number of the new generation; None = the next one.

        Returns:
            The first picture of the new generation.
        """
        self.generation = self.generation + 1 if generation is None else generation
        self.withdraw()
        if self._playback is None:
            self._track.cut(self._next_picture)
        else:
            soonest = self._grid.soonest(self._playback, self._speed.making_s, self.calm.allowance.factor)
            self._next_picture = min(self._next_picture, max(self._playback.next_picture + SAFETY_PICTURES, soonest))
            self._track.break_off(self._next_picture)
            self.calm.await_(self._next_picture, is_heard=True)
        self._rewind(self._grid.chunk_of(self._next_picture))
        self._first.await_(None)
        return self._next_picture

    def hold(self, delay_s: float) -> int:
        """Live: keep pictures from ``delay_s`` after what is on screen on from leaving, to make them on a guess.

        Speech pushed now begins at the first of them and is made ahead. ``release`` lets them leave, ``withdraw``
        forgets that speech. Until then the face lives on what has left.

        Args:
            delay_s: until the guess will be confirmed and its first picture can be on screen; longer if making takes
                longer.

        Returns:
            The first picture held.
        """
        assert self._playback is not None
        soonest = self._grid.soonest(self._playback, self._speed.making_s, self._first.allowance.factor)
        first = max(math.ceil((self._playback.position_s + delay_s) * PICTURES_PER_SECOND), soonest)
        first = max(first, self._track.next_picture, self._takes[0].first if self._takes else self._next_picture)
        self._held_from = self._promised = first
        self._left_before_hold = self._next_picture
        self._next_picture = min(self._next_picture, first)
        return first

    def release(self, generation: int) -> int | None:
        """The guess was right: its pictures leave.

        Args:
            generation: number of the new generation, if pictures must be replaced.

        Returns:
            The first picture that is void because it had left already and is made again; None = there is none.
        """
        first, self._held_from = self._held_from, None
        if first is None or self._left_before_hold <= first:
            return None
        self.generation = generation
        return first

    def withdraw(self) -> None:
        """The guess was wrong: its speech was never said, what had left stays as it is."""
        first, self._held_from = self._held_from, None
        if first is None:
            return
        self._track.cut(first)
        self._rewind(self._grid.chunk_of(first))
        self._next_picture = max(self._next_picture, self._left_before_hold)
        self._first.await_(None)

    @property
    def hold_left_s(self) -> float | None:
        """Live: seconds until the first held picture must be on screen; None = nothing is held."""
        if self._held_from is None or self._playback is None:
            return None
        return self._playback.ahead_s(self._held_from)

    @property
    def shown_picture(self) -> int:
        """Live: first picture that is not on screen yet."""
        return self._playback.next_picture if self._playback else self._next_picture

    def look(self, identity: Identity) -> Look:
        """Another face, or the newest one under other words, for ``change_look``; see ``ChunkMaker.look``."""
        return self._maker.look(identity)

    def change_look(self, look: Look) -> None:
        """Another face or other words, from the next chunk on of which nothing has left."""
        left = self._left_before_hold if self._held_from is not None else 0
        first = self._grid.chunk_of(max(self._next_picture, left))
        if first < self._next_chunk and self._grid.span(first)[0] < self._next_picture:
            first += 1
        self._rewind(first)
        self._maker.change_look(first, look)

    def pictures(self) -> Iterator[Pictures]:
        """All pictures that can leave now; call again after more was pushed or time has passed."""
        while (piece := self.next_pictures()) is not None:
            yield piece

    def next_pictures(self) -> Pictures | None:
        """The next pictures that can leave now, making a chunk if need be; None = not without more sound or time."""
        while True:
            take = next((take for take in self._takes if take.stop > self._next_picture), None)
            if take is not None and (self._is_ready(take) or not take.index or not self._may_make(ahead=True)):
                return self._leave(take)
            if take is None and not self._may_make(ahead=False):
                return None
            self._make()

    def wait_s(self) -> float | None:
        """Seconds until ``next_pictures`` can have something without new input; None = only input helps."""
        if self._playback is None:
            return None
        if any(take.stop > self._next_picture for take in self._takes):
            if self._next_picture == self._held_from:
                return max(0.0, self._playback.ahead_s(self._next_picture))
            return max(0.0, self._playback.due_in_s(self._piece_stop()))
        if self._sound_is_there(self._next_chunk):
            return 0.0
        return max(0.0, self._playback.ahead_s(self._next_picture) - self._late_s())

    @property
    def next_picture(self) -> int:
        """First picture that has not left."""
        return self._next_picture

    @property
    def speech_stop(self) -> int:
        """First picture after the speech pushed so far."""
        return self._track.next_picture

    @property
    def open_rate(self) -> int | None:
        """Sample rate of the piece of speech that has begun and not ended; None = there is none."""
        return self._track.rate if self._track.open else None

    @property
    def backlog_s(self) -> float:
        """Live: how long after now the newest sound pushed will be on screen."""
        position_s = self._playback.position_s if self._playback else 0.0
        return self._track.next_picture / PICTURES_PER_SECOND - position_s

    @property
    def late_s(self) -> float:
        """Live: how far playback has slipped in all because pictures came too late."""
        return self._playback.late_s if self._playback else 0.0

    @property
    def margin_s(self) -> float:
        """A chunk whose sound is not there is made with silence when playback comes this close."""
        return self._speed.margin_s(self._playback.lead_s if self._playback else 0.0)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of video per second of work, over the last chunks; None before the first."""
        return self._speed.real_time_factor

    @property
    def first_picture_s(self) -> float | None:
        """From the last sample that the latest speech's first chunk needed to its first picture."""
        return self._first.took_s

    def snapshot(self) -> StreamSnapshot:
        """Where the stream stands and what it goes on from; what is only a guess is left out."""
        first, held = self._grid.chunk_of(self._next_picture), self._held_from
        identity, past = self._maker.past(next((take for take in self._takes if take.index == first), None))
        return StreamSnapshot(
            identity=identity,
            next_identity=None if self._maker.wanted is identity else self._maker.wanted,
            seed=self._seed,
            generation=self.generation,
            next_picture=self._next_picture if held is None else max(self._next_picture, self._left_before_hold),
            next_chunk=first,
            past=past.on_cpu(),
            sound=self._track.snapshot(self._grid.span(first)[0], self._next_picture, held),
        )

    def take_up(self, stream: StreamSnapshot) -> None:
        """Go on where another performer of this face and seed stopped, before anything else was said or made."""
        self._maker.take_up(stream.past)
        self._track.take_up(stream.sound)
        self._next_chunk, self._next_picture = stream.next_chunk, stream.next_picture
        self.generation = stream.generation
        if self._playback is not None:
            self._playback.start_at(stream.next_picture)
        if stream.next_identity is not None:
            self.change_look(self.look(stream.next_identity))

    def held_nbytes(self) -> int:
        """Bytes this stream holds between chunks: cache, chunks that can be unmade, sound."""
        return self._maker.nbytes(self._takes) + self._track.nbytes

    def close(self) -> None:
        """Give back the decoding thread, if there is one."""
        self._maker.close()

    def _late_s(self) -> float:
        """So close to playback a chunk is made with what sound there is; a reply's first waits as long as it can."""
        if self._promised is not None and self._first.awaited == self._promised:
            return min(self._urgent_s, LAST_MOMENT * self._making_s(self._promised))
        return max(self._urgent_s, BUSY * self._making_s(self._next_picture)) if self.expects_speech else self._urgent_s

    def _making_s(self, picture: int) -> float:
        """How long it takes to make a chunk and to decode it up to ``picture``."""
        return self._speed.making_s(self._grid.frame_of(picture) + 1)

    def _is_ready(self, take: Take) -> bool:
        """Whether the next picture to leave does not wait for a decoder."""
        return take.decoded.is_ready(self._grid.frame_of(max(take.first, self._next_picture)))

    def _begin_speech(self, packet: AudioChunk, delay_s: float) -> None:
        self._track.check(packet)
        start = max(self._next_picture, self._track.next_picture, self._held_from or 0)
        if self._playback is not None and delay_s > 0:
            start = max(start, math.ceil((self._playback.position_s + delay_s) * PICTURES_PER_SECOND))
        self._track.begin(start)
        self._urgent_s = self.margin_s  # kept while this speech lasts, or a slow moment would outrun its delay
        self._first.await_(start)

    def _sound_is_there(self, chunk: int) -> bool:
        """Whether all that chunk ``chunk`` hears, and all that is heard with its pictures, is settled."""
        first, stop = self._grid.span(chunk)
        if self.expects_speech and first >= self._track.next_picture:
            return False
        return self._track.covers(self._grid.sound_stop(chunk), stop)

    def _may_make(self, *, ahead: bool) -> bool:
        """Whether the next chunk should be made now; ``ahead``: although pictures of the chunk before still wait."""
        waiting = sum(take.stop > self._next_picture for take in self._takes)
        if waiting > int(ahead) or (ahead and not self._overlap):
            return False
        if self._playback is None:
            first = max(self._grid.span(self._next_chunk)[0], self._next_picture)
            return self._sound_is_there(self._next_chunk) and (self._track.open or first < self._track.next_picture)
        urgent = not self._playback.begun or self._playback.ahead_s(self._next_picture) <= self._late_s()
        return self._sound_is_there(self._next_chunk) or (urgent and not waiting)

    def _make(self) -> None:
        first, stop = self._grid.span(self._next_chunk)
        with self.times.stage("audio"):
            features = self._track.features(first, stop - first)
        self._takes.append(self._maker.make(self._next_chunk, features))
        self._next_chunk += 1

    def _redo_from_sample(self, sample: int) -> None:
        """Sound from ``sample`` on is new: unmake the chunks that heard it, as far as they have not left."""
        open_ = (take.index for take in self._takes if take.stop > self._next_picture)
        self._rewind(next((x for x in open_ if self._grid.sound_stop(x) > sample), self._next_chunk))

    def _rewind(self, chunk: int) -> None:
        """Unmake chunk ``chunk`` and all behind it."""
        while self._takes and self._takes[-1].index >= chunk:
            self._maker.unmake(self._takes.pop())
            self._next_chunk -= 1

    def _piece_stop(self) -> int:
        """Picture before which the next piece ends; the piece is empty if nothing of the take may leave."""
        take = next(take for take in self._takes if take.stop > self._next_picture)
        if self._playback is not None:
            stop = self._grid.frame_stop(self._next_picture)
            return stop if self._held_from is None else min(stop, self._held_from)
        return take.stop if self._track.open else min(take.stop, self._track.next_picture)

    def _leave(self, take: Take) -> Pictures | None:
        first, stop = self._next_picture, self._piece_stop()
        begun = max(stop, first + 1)  # what is next is decoded ahead
        pictures = take.pictures(first, begun)
        for awaited in (self._first, self.calm):
            awaited.note_made(begun)
        if stop <= first or (self._playback is not None and self._playback.due_in_s(stop) > 0):
            return None
        if self._playback is not None:
            self._playback.hand_out(first)
            self.ahead_s = self._playback.ahead_s(first)
        sound = self._track.playback_sound(first, stop)
        self._next_picture = stop
        self._forget()
        return Pictures(
            first_picture=first,
            pictures=pictures[: stop - first],
            sound=sound,
            generation=self.generation,
            speaking=bool(np.abs(sound).max(initial=0.0) > SPEAKING_LEVEL),
        )

    def _forget(self) -> None:
        """Let go of chunks that can no longer change, and of sound nobody will hear again."""
        shown = min(self._next_picture, self.shown_picture)
        while self._takes and self._takes[0].stop <= shown:
            self._takes.popleft()
        self._track.forget(self._takes[0].first if self._takes else self._grid.span(self._next_chunk)[0])
