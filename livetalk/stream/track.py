"""The sound of one stream by position: what the network hears and what people hear, side by side.

Position 0 is the beginning of picture 0. Where nothing was said there is silence. A piece of speech starts at the
border of a picture, may come in packets of any length and rate, and may be cut off at any picture. Old sound is
forgotten on request, so a stream of any length costs constant memory.

This module knows nothing of chunks, networks, clocks or files.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from livetalk.media.sound import StreamResampler
from livetalk.model.audio import AudioEncoder, AudioWindow
from livetalk.stream.past import SoundSnapshot
from livetalk.types import (
    MODEL_RATE,
    MODEL_SAMPLES_PER_PICTURE,
    PLAYBACK_RATE,
    PLAYBACK_SAMPLES_PER_PICTURE,
    AudioChunk,
    LiveTalkError,
)

LOWEST_RATE, HIGHEST_RATE = 4_000, 384_000
"""Sample rates in Hz that packets may have."""

FADE_SAMPLES = 3 * MODEL_SAMPLES_PER_PICTURE
"""How long the network still hears speech that was broken off: a mouth needs this to close without a jump."""


class Tape:
    """Samples by absolute position, zeros where nothing was written; grows at its end, forgets at its beginning.

    Args:
        first: everything before was forgotten already.
        samples: what is there from ``first`` on.
    """

    def __init__(self, first: int = 0, samples: np.ndarray | None = None) -> None:
        self._samples = np.zeros(0, np.float32) if samples is None else samples.copy()
        self._first = first
        self.end = first + len(self._samples)
        """Position after the last sample written."""

    def write(self, position: int, samples: np.ndarray) -> None:
        """Put ``samples`` at ``position``.

        Raises:
            ValueError: that place was already forgotten.
        """
        first, stop = position - self._first, position - self._first + len(samples)
        if first < 0:
            raise ValueError(f"position {position} was forgotten; samples are kept from {self._first} on")
        if stop > len(self._samples):
            grown = np.zeros(max(stop, 2 * len(self._samples)), np.float32)
            grown[: len(self._samples)] = self._samples
            self._samples = grown
        self._samples[first:stop] = samples
        self.end = max(self.end, position + len(samples))

    def read(self, first: int, stop: int) -> np.ndarray:
        """A copy of ``[first, stop)``; zeros where nothing was written or all was forgotten."""
        out = np.zeros(stop - first, np.float32)
        begin, end = max(first, self._first), min(stop, self.end)
        if begin < end:
            out[begin - first : end - first] = self._samples[begin - self._first : end - self._first]
        return out

    def cut(self, position: int) -> None:
        """Erase everything from ``position`` on."""
        if self._first <= position < self.end:
            self._samples[position - self._first : self.end - self._first] = 0.0
            self.end = position

    def fade(self, position: int, length: int) -> None:
        """Let what lies behind ``position`` die away within ``length`` samples, and erase the rest."""
        self.cut(position + length)
        begin = max(position, self._first)
        if begin < self.end:
            ramp = np.linspace(1.0, 0.0, length, endpoint=False, dtype=np.float32)
            self._samples[begin - self._first : self.end - self._first] *= ramp[begin - position : self.end - position]

    def forget(self, position: int) -> None:
        """Drop what lies before ``position``; the room is given back when that is worth a copy."""
        useless = position - self._first
        if position >= self.end:
            self._samples, self._first = np.zeros(0, np.float32), max(position, self._first)
        elif 2 * useless >= len(self._samples):
            self._samples = self._samples[useless : self.end - self._first].copy()
            self._first = position

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._samples.nbytes


class SoundTrack:
    """Speech and silence of one stream, for the network at ``MODEL_RATE`` and for people at ``PLAYBACK_RATE``.

    Args:
        encoder: turns the sound around some pictures into feature rows; shared, never changed.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        self._window = AudioWindow(encoder)
        self._model, self._playback = Tape(), Tape()
        self._model_at = self._playback_at = 0
        self._resamplers: tuple[StreamResampler, StreamResampler] | None = None
        self.open = False
        """Whether a piece of speech has begun and not ended: more of it is to come."""

    @property
    def heard_samples(self) -> int:
        """Position after the last sample of speech the network can hear, at ``MODEL_RATE``."""
        return self._model_at

    def covers(self, model_sample: int, picture: int) -> bool:
        """Whether the network's sound before ``model_sample`` and people's before ``picture`` are settled."""
        playback_there = self._playback_at >= picture * PLAYBACK_SAMPLES_PER_PICTURE
        return not self.open or (self._model_at >= model_sample and playback_there)

    @property
    def rate(self) -> int | None:
        """Sample rate of the open piece of speech; None before its first packet."""
        return None if self._resamplers is None else self._resamplers[0].source_rate

    @property
    def next_picture(self) -> int:
        """First picture that no speech touches yet."""
        by_model = -(-self._model_at // MODEL_SAMPLES_PER_PICTURE)
        return max(by_model, -(-self._playback_at // PLAYBACK_SAMPLES_PER_PICTURE))

    @property
    def nbytes(self) -> int:
        """Bytes of sound held."""
        return self._model.nbytes + self._playback.nbytes

    def begin(self, picture: int) -> None:
        """A new piece of speech starts at ``picture``; everything from there on is new."""
        self.cut(picture)
        self._model_at = picture * MODEL_SAMPLES_PER_PICTURE
        self._playback_at = picture * PLAYBACK_SAMPLES_PER_PICTURE
        self.open = True

    def make_room(self, picture: int) -> None:
        """The rest of the open speech came too late for pictures before ``picture``: move it on, by whole pictures."""
        late = max(
            picture - self._model_at // MODEL_SAMPLES_PER_PICTURE,
            picture - self._playback_at // PLAYBACK_SAMPLES_PER_PICTURE,
            0,
        )
        self._model_at += late * MODEL_SAMPLES_PER_PICTURE
        self._playback_at += late * PLAYBACK_SAMPLES_PER_PICTURE

    def append(self, packet: AudioChunk) -> None:
        """More of the open speech; raises as :meth:`check` does."""
        samples = self.check(packet)
        if self._resamplers is None:
            self._resamplers = (
                StreamResampler(packet.sample_rate, MODEL_RATE),
                StreamResampler(packet.sample_rate, PLAYBACK_RATE),
            )
        for_model, for_playback = self._resamplers
        self._write(for_model.push(samples), for_playback.push(samples))

    def finish(self) -> None:
        """The open speech is complete."""
        if self._resamplers is not None:
            for_model, for_playback = self._resamplers
            self._write(for_model.finish(), for_playback.finish())
        self._resamplers = None
        self.open = False

    def cut(self, picture: int) -> None:
        """Nothing is said from ``picture`` on; open speech is over."""
        self._model.cut(picture * MODEL_SAMPLES_PER_PICTURE)
        self._playback.cut(picture * PLAYBACK_SAMPLES_PER_PICTURE)
        self._model_at = min(self._model_at, picture * MODEL_SAMPLES_PER_PICTURE)
        self._playback_at = min(self._playback_at, picture * PLAYBACK_SAMPLES_PER_PICTURE)
        self._resamplers = None
        self.open = False

    def break_off(self, picture: int) -> None:
        """Nothing is heard from ``picture`` on; the network hears it die away: the mouth closes softly."""
        at = picture * MODEL_SAMPLES_PER_PICTURE
        self._model.fade(at, FADE_SAMPLES)
        self._playback.cut(picture * PLAYBACK_SAMPLES_PER_PICTURE)
        self._model_at = min(self._model_at, at + FADE_SAMPLES)
        self._playback_at = min(self._playback_at, picture * PLAYBACK_SAMPLES_PER_PICTURE)
        self._resamplers = None
        self.open = False

    def features(self, first_picture: int, rows: int) -> Tensor:
        """Feature rows ``[1, rows, A]`` of the pictures from ``first_picture`` on."""
        return self._window.features(self._model.read(*self._window.span(first_picture, rows)), rows)

    def playback_sound(self, first_picture: int, stop_picture: int) -> np.ndarray:
        """What people hear during the pictures ``[first_picture, stop_picture)``."""
        return self._playback.read(
            first_picture * PLAYBACK_SAMPLES_PER_PICTURE, stop_picture * PLAYBACK_SAMPLES_PER_PICTURE
        )

    def forget(self, picture: int) -> None:
        """No picture before ``picture`` will be made or played again."""
        self._model.forget(self._window.span(picture, 0)[0])
        self._playback.forget(picture * PLAYBACK_SAMPLES_PER_PICTURE)

    def snapshot(self, made_from: int, played_from: int, stop: int | None) -> SoundSnapshot:
        """What another track needs to go on; speech that is still open ends there with its last whole packet.

        Args:
            made_from: first picture that is still to be made.
            played_from: first picture whose sound is still to be heard.
            stop: nothing is said from this picture on; None = all that is there.
        """
        model_first, playback_first = self._window.span(made_from, 0)[0], played_from * PLAYBACK_SAMPLES_PER_PICTURE
        model_stop, playback_stop = self._model_at, self._playback_at
        if stop is not None:
            model_stop = min(model_stop, stop * MODEL_SAMPLES_PER_PICTURE)
            playback_stop = min(playback_stop, stop * PLAYBACK_SAMPLES_PER_PICTURE)
        return SoundSnapshot(
            model_first=max(0, model_first),
            model=self._model.read(max(0, model_first), max(0, model_first, model_stop)),
            model_stop=model_stop,
            playback_first=playback_first,
            playback=self._playback.read(playback_first, max(playback_first, playback_stop)),
            playback_stop=playback_stop,
        )

    def take_up(self, sound: SoundSnapshot) -> None:
        """Go on where another track stopped, before anything else was said."""
        self._model = Tape(sound.model_first, sound.model)
        self._playback = Tape(sound.playback_first, sound.playback)
        self._model_at, self._playback_at = sound.model_stop, sound.playback_stop

    def check(self, packet: AudioChunk) -> np.ndarray:
        """The samples of a packet that can come next, as float32.

        Raises:
            LiveTalkError: see :func:`checked_samples`; or another rate in the middle of a piece of speech.
        """
        if self.rate not in (None, packet.sample_rate):
            raise LiveTalkError(
                f"A speech packet came at {packet.sample_rate} Hz in the middle of speech at {self.rate} Hz. "
                "Expected one rate for a piece of speech. Send SpeechEnd before changing it."
            )
        return checked_samples(packet.samples, packet.sample_rate)

    def _write(self, for_model: np.ndarray, for_playback: np.ndarray) -> None:
        self._model.write(self._model_at, np.clip(for_model, -1.0, 1.0))
        self._playback.write(self._playback_at, np.clip(for_playback, -1.0, 1.0))
        self._model_at += len(for_model)
        self._playback_at += len(for_playback)


def checked_samples(samples: np.ndarray, rate: int) -> np.ndarray:
    """Sound as float32 ``[n]``.

    Raises:
        LiveTalkError: not mono float samples, not finite, or a sample rate that cannot be.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise LiveTalkError(
            f"The sound has shape {samples.shape} and type {samples.dtype}. Expected mono float samples [n] "
            "between -1 and 1. Mix the channels and divide integers by their range first."
        )
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise LiveTalkError(f"The sound says {rate} Hz. Expected a sample rate of {LOWEST_RATE} to {HIGHEST_RATE} Hz.")
    if not np.isfinite(samples).all():
        raise LiveTalkError("The sound holds numbers that are not finite. Expected samples between -1 and 1.")
    return samples.astype(np.float32, copy=False)
