"""When a visitor speaks, pauses and has finished; and one number that tells old work from new.

``TurnTaker`` turns microphone sound into turns: who begins, when a reply may be begun on a guess, when the turn is
over, and when a voice interrupts the avatar. It has no thread and no clock: time is the position in the sound, and
what it says depends on the sound only, never on how it was cut into packets.

``CancelScope``: whoever makes something for a reply (speech, latents, pictures, packets) writes the generation it
works for on it; whoever sends something asks whether that generation is still the current one. Interrupting is then
one call, reaches every queue at once, and needs no thread to be stopped.

This module knows nothing of detector models, microphones, words, networks or pages.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from livetalk.types import MODEL_RATE, LiveTalkError

SLICE_SAMPLES = 512
"""Sound is judged in slices of 32 ms; every decision falls on the end of one."""

AUDIBLE_SHARE = 0.03
LONGEST_TAIL = 4
"""A voice has ended where it last reached this share of its peak (-30 dB). A detector goes on for some slices, which
visitors would wait for; no more than so many are taken back."""


class CancelScope:
    """A generation number that only grows. Safe to use from several threads.

    Args:
        generation: where it begins.
    """

    def __init__(self, generation: int = 0) -> None:
        self._lock = threading.Lock()
        self._generation = generation

    @property
    def generation(self) -> int:
        """The current generation, counted from 0."""
        with self._lock:
            return self._generation

    def cancel(self) -> int:
        """Make everything of the current generation stale; returns the new generation."""
        with self._lock:
            self._generation += 1
            return self._generation

    def is_current(self, generation: int) -> bool:
        """Whether work of ``generation`` may still be sent."""
        return generation == self.generation


class SpeechDetector(Protocol):
    """How likely is it that somebody speaks? Remembers the sound so far; one per microphone."""

    def __call__(self, samples: np.ndarray) -> float:
        """Probability of speech, 0..1, in the next slice: float32 ``[SLICE_SAMPLES]`` at ``MODEL_RATE``."""

    def reset(self) -> None:
        """Forget all sound."""


@dataclass(frozen=True)
class TurnRules:
    """When a turn begins and ends. Durations are rounded to whole slices (32 ms).

    Attributes:
        on: probability from which a slice counts as voice.
        off: voice goes on until the probability falls below this.
        speaking_on, speaking_off: the same while the avatar speaks, when its echo may be in the sound.
        pre_roll_ms: sound before the onset that belongs to a turn, since words begin softly.
        start_ms: voice that confirms a turn.
        speaking_start_ms: the same if the avatar spoke meanwhile.
        suspect_ms: voice that is worth a ``VoiceSuspected`` while the avatar speaks.
        dismiss_ms: quiet after which a voice that was not confirmed was none.
        pause_ms: quiet after which a reply may be begun on a guess.
        end_ms: quiet that ends a turn.
        limit_s: longest turn, pre-roll included; it is ended wherever it is.

    Raises:
        LiveTalkError: the rules contradict each other.
    """

    on: float = 0.5
    off: float = 0.35
    speaking_on: float = 0.7
    speaking_off: float = 0.55
    pre_roll_ms: float = 400.0
    start_ms: float = 200.0
    speaking_start_ms: float = 350.0
    suspect_ms: float = 64.0
    dismiss_ms: float = 96.0
    pause_ms: float = 250.0
    end_ms: float = 550.0
    limit_s: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.off <= self.on <= 1 and 0 < self.speaking_off <= self.speaking_on <= 1):
            raise LiveTalkError("Turn rules: expected 0 < off <= on <= 1, and so while the avatar speaks.")
        waits = (self.start_ms, self.speaking_start_ms, self.suspect_ms, self.dismiss_ms, self.pause_ms, self.end_ms)
        if min(waits) <= 0 or self.pre_roll_ms < 0:
            raise LiveTalkError("Turn rules: every duration must be above 0 (the pre-roll may be 0).")
        shortest_ms = self.pre_roll_ms + 4 * max(self.start_ms, self.speaking_start_ms) + self.end_ms
        if self.limit_s * 1000 < shortest_ms:
            raise LiveTalkError(f"Turn rules: limit_s {self.limit_s} leaves no room; expected {shortest_ms / 1000} up.")


@dataclass(frozen=True)
class VoiceSuspected:
    """While the avatar speaks: this may become an interruption. Lower the avatar's sound.

    Attributes:
        at_sample: position in the sound pushed where this was decided; so in all events.
        onset_sample: where the voice began.
    """

    at_sample: int
    onset_sample: int


@dataclass(frozen=True)
class VoiceDismissed:
    """What was suspected was no voice. The avatar's sound may rise again."""

    at_sample: int


@dataclass(frozen=True)
class VoiceStarted:
    """A turn began; while the avatar speaks, it is interrupted.

    Attributes:
        at_sample: where this was decided.
        onset_sample: where the voice began.
        samples: float32, the pre-roll and everything up to ``at_sample``.
    """

    at_sample: int
    onset_sample: int
    samples: np.ndarray


@dataclass(frozen=True)
class VoiceHeard:
    """Further sound of the turn, up to ``at_sample``; none comes while the visitor pauses."""

    at_sample: int
    samples: np.ndarray


@dataclass(frozen=True)
class VoicePaused:
    """The visitor may have finished: a reply may be begun on a guess.

    If the turn ends without a ``VoiceResumed`` the guess was right: only silence has come since.

    Attributes:
        at_sample: where this was decided.
        onset_sample: where the voice began.
        speech_stop_sample: where the voice ended.
        samples: float32, the whole turn up to ``at_sample``.
    """

    at_sample: int
    onset_sample: int
    speech_stop_sample: int
    samples: np.ndarray


@dataclass(frozen=True)
class VoiceResumed:
    """The visitor goes on: drop the guess. The sound since the pause follows as ``VoiceHeard``."""

    at_sample: int


@dataclass(frozen=True)
class TurnEnded:
    """The visitor has finished.

    Attributes:
        at_sample: where this was decided.
        onset_sample: where the voice began.
        speech_stop_sample: where the voice ended.
        samples: float32, the whole turn up to ``at_sample``, silence at its end included.
        forced: the turn reached the limit; if the visitor speaks on, the rest is another turn.
    """

    at_sample: int
    onset_sample: int
    speech_stop_sample: int
    samples: np.ndarray
    forced: bool


TurnEvent = VoiceSuspected | VoiceDismissed | VoiceStarted | VoiceHeard | VoicePaused | VoiceResumed | TurnEnded


def _slices(duration_ms: float) -> int:
    """Whole slices nearest to a duration; at least one, but none for 0."""
    return max(int(duration_ms > 0), int(duration_ms * MODEL_RATE / 1000 / SLICE_SAMPLES + 0.5))


@dataclass
class _Voice:
    """A voice that is heard, or seems to be.

    Attributes:
        onset_sample: where it began.
        stop_sample: where it was last heard so far.
        peak: its greatest amplitude so far.
        slices: slices with voice, until it is confirmed.
        quiet: slices without voice since the last with.
        over_avatar: the avatar spoke meanwhile.
        suspected, confirmed, paused: what was said about it.
    """

    onset_sample: int
    stop_sample: int
    peak: float = 0.0
    slices: int = 0
    quiet: int = 0
    over_avatar: bool = False
    suspected: bool = False
    confirmed: bool = False
    paused: bool = False


class TurnTaker:
    """Microphone sound in, turns out. One microphone each; not thread-safe, no threads, no clock.

    Memory is bounded by the longest turn. Joined, the samples of ``VoiceStarted`` and of every ``VoiceHeard`` are
    those of the ``VoicePaused`` that follows, and all but the silence at the end of ``TurnEnded``.

    Args:
        detector: asked once per slice.
        rules: thresholds and durations; None = the defaults.
    """

    def __init__(self, detector: SpeechDetector, rules: TurnRules | None = None) -> None:
        self._detector = detector
        self._rules = rules or TurnRules()
        self._slice = np.zeros(SLICE_SAMPLES, np.float32)
        self._filled = 0
        self._over_avatar = False
        self._position = 0
        self._above = False
        self._sound: list[np.ndarray] = []
        self._told = 0
        self._voice: _Voice | None = None

    @property
    def confirmation_s(self) -> float:
        """From ``VoicePaused`` to the end of the turn that nobody contradicts, in seconds."""
        return (self._rules.end_ms - self._rules.pause_ms) / 1000

    @property
    def position(self) -> int:
        """Samples pushed so far, in all."""
        return self._position + self._filled

    @property
    def in_turn(self) -> bool:
        """Whether the visitor's turn has begun and not ended."""
        return self._voice is not None and self._voice.confirmed

    def push(self, samples: np.ndarray, speaking: bool = False) -> list[TurnEvent]:
        """Take the next sound of the microphone.

        Args:
            samples: float32 mono at ``MODEL_RATE``, in -1..1, any length.
            speaking: whether the avatar can be heard during this sound. A slice of which a part was pushed with
                True counts as spoken over.

        Returns:
            What happened, in order.

        Raises:
            LiveTalkError: not mono, not floating point or not finite; nothing was taken.
        """
        if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
            raise LiveTalkError(
                f"Microphone sound of type {samples.dtype} and shape {samples.shape} cannot be used: expected finite "
                "float32 [samples], mono, in -1..1. Divide int16 sound by 32768."
            )
        events: list[TurnEvent] = []
        first = 0
        while first < len(samples):
            part = samples[first : first + SLICE_SAMPLES - self._filled]
            self._slice[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self._over_avatar |= speaking
            first += len(part)
            if self._filled == SLICE_SAMPLES:
                events += self._judge()
        return events + self._tell_heard()

    def reset(self) -> None:
        """Drop the turn and all sound; no event follows for it. Positions count on."""
        self._position += self._filled
        self._filled, self._over_avatar, self._above = 0, False, False
        self._sound, self._told, self._voice = [], 0, None
        self._detector.reset()

    def _judge(self) -> list[TurnEvent]:
        """The slice is full: is it voice, and what follows?"""
        probability = self._detector(self._slice)
        rules, over_avatar = self._rules, self._over_avatar
        on, off = (rules.speaking_on, rules.speaking_off) if over_avatar else (rules.on, rules.off)
        self._above = probability >= (off if self._above else on)
        self._sound.append(self._slice.copy())
        self._position += SLICE_SAMPLES
        self._filled, self._over_avatar = 0, False
        if self._voice is None and self._above:
            self._voice = _Voice(self._position - SLICE_SAMPLES, self._position)
        if self._voice is None:
            self._trim()
            return []
        if self._above:
            self._voice.quiet = 0
            self._note_stop(self._voice)
        else:
            self._voice.quiet += 1
        return self._follow(self._voice) if self._voice.confirmed else self._confirm(self._voice, over_avatar)

    def _note_stop(self, voice: _Voice) -> None:
        """The slice has voice in it: where is it last heard?"""
        loudness = np.abs(self._slice)
        voice.peak = max(voice.peak, float(loudness.max()))
        heard = np.flatnonzero(loudness >= AUDIBLE_SHARE * voice.peak)
        stop = self._position - SLICE_SAMPLES + int(heard[-1]) + 1 if len(heard) else voice.stop_sample
        voice.stop_sample = max(stop, self._position - LONGEST_TAIL * SLICE_SAMPLES)

    def _is_quiet(self, voice: _Voice, duration_ms: float) -> bool:
        """Whether nothing was heard of a voice for so long, to the nearest slice."""
        return voice.quiet > 0 and self._position - voice.stop_sample >= (_slices(duration_ms) - 0.5) * SLICE_SAMPLES

    def _confirm(self, voice: _Voice, over_avatar: bool) -> list[TurnEvent]:
        """A voice that is no turn yet: is it one, is it none, or does it interrupt?"""
        rules = self._rules
        voice.over_avatar |= over_avatar
        voice.slices += self._above
        if voice.slices >= _slices(rules.speaking_start_ms if voice.over_avatar else rules.start_ms):
            voice.confirmed = True
            self._told = len(self._sound)
            return [VoiceStarted(self._position, voice.onset_sample, np.concatenate(self._sound))]
        if voice.quiet >= _slices(rules.dismiss_ms):
            self._voice = None
            self._trim()
            return [VoiceDismissed(self._position)] if voice.suspected else []
        if voice.over_avatar and not voice.suspected and voice.slices >= _slices(rules.suspect_ms):
            voice.suspected = True
            return [VoiceSuspected(self._position, voice.onset_sample)]
        return []

    def _follow(self, voice: _Voice) -> list[TurnEvent]:
        """A slice of a turn: does it pause, resume or end?"""
        rules = self._rules
        events: list[TurnEvent] = []
        if voice.paused and self._above:
            voice.paused = False
            events.append(VoiceResumed(self._position))
        at_limit = len(self._sound) >= int(rules.limit_s * MODEL_RATE) // SLICE_SAMPLES
        if (is_over := self._is_quiet(voice, rules.end_ms)) or at_limit:
            return events + self._tell_heard() + [self._end(voice, not is_over)]
        if not voice.paused and self._is_quiet(voice, rules.pause_ms):
            events += self._tell_heard()
            voice.paused = True
            whole = np.concatenate(self._sound)
            events.append(VoicePaused(self._position, voice.onset_sample, voice.stop_sample, whole))
        return events

    def _tell_heard(self) -> list[TurnEvent]:
        """The sound of the turn that was not told yet."""
        voice = self._voice
        if voice is None or not voice.confirmed or voice.paused or self._told == len(self._sound):
            return []
        heard = VoiceHeard(self._position, np.concatenate(self._sound[self._told :]))
        self._told = len(self._sound)
        return [heard]

    def _end(self, voice: _Voice, forced: bool) -> TurnEnded:
        ended = TurnEnded(self._position, voice.onset_sample, voice.stop_sample, np.concatenate(self._sound), forced)
        self._voice = None
        if forced:
            self._sound = []  # the words in it must not come again at the start of the next turn
        self._trim()
        return ended

    def _trim(self) -> None:
        """Keep the pre-roll of a turn that may come."""
        del self._sound[: max(0, len(self._sound) - _slices(self._rules.pre_roll_ms))]
