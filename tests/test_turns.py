"""Turn taking: every rule with scripted probabilities, then the real detector on spoken sentences."""

import functools
import importlib.util
import itertools
import shutil
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from livetalk import voice
from livetalk.stream import vad
from livetalk.stream.turns import (
    LONGEST_TAIL,
    SLICE_SAMPLES,
    TurnEnded,
    TurnRules,
    TurnTaker,
    VoiceDismissed,
    VoiceHeard,
    VoicePaused,
    VoiceStarted,
    VoiceSuspected,
)
from livetalk.stream.vad import SileroDetector
from livetalk.types import LiveTalkError

PROBABILITY = {".": 0.1, "-": 0.4, "x": 0.6, "X": 0.9}
# The defaults in slices of 32 ms.
START, SPEAKING_START, SUSPECT, DISMISS, PAUSE, END, PRE_ROLL = 6, 11, 2, 3, 8, 17, 13


class Script:
    """A detector that reads its probabilities from a text, and then says "quiet" for ever."""

    def __init__(self, marks: str) -> None:
        self.marks = marks
        self.asked = 0
        self.resets = 0

    def __call__(self, samples: np.ndarray) -> float:
        assert samples.shape == (SLICE_SAMPLES,)
        assert samples.dtype == np.float32
        self.asked += 1
        return PROBABILITY[self.marks[self.asked - 1] if self.asked <= len(self.marks) else "."]

    def reset(self) -> None:
        self.resets += 1


def positions(first_slice: int, stop_slice: int) -> np.ndarray:
    """Sound in which every sample is its own position."""
    return np.arange(first_slice * SLICE_SAMPLES, stop_slice * SLICE_SAMPLES, dtype=np.float32)


def hear(marks: str, speaking: str = "", rules: TurnRules | None = None) -> list[Any]:
    """All events of a script; ``speaking`` marks the slices over which the avatar speaks with "A"."""
    taker = TurnTaker(Script(marks), rules)
    events: list[Any] = []
    for index in range(len(marks)):
        events += taker.push(positions(index, index + 1), speaking[index : index + 1] == "A")
    return events


def seen(events: list[Any]) -> list[tuple[str, float]]:
    """Names and slices of the events, without ``VoiceHeard``."""
    return [(type(e).__name__, e.at_sample / SLICE_SAMPLES) for e in events if not isinstance(e, VoiceHeard)]


def joined(events: list[Any]) -> list[tuple]:
    """Events in a form that can be compared, with neighbouring ``VoiceHeard`` as one."""
    found: list[tuple] = []
    for event in events:
        fields = {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in vars(event).items()}
        if isinstance(event, VoiceHeard) and found and found[-1][0] is VoiceHeard:
            fields["samples"] = found.pop()[1]["samples"] + fields["samples"]
        found.append((type(event), fields))
    return found


def test_a_turn_starts_after_200_ms_with_its_pre_roll() -> None:
    assert hear("." * 20 + "X" * (START - 1) + "." * 20) == []
    (started,) = hear("." * 20 + "X" * START)
    assert isinstance(started, VoiceStarted)
    assert started.at_sample == (20 + START) * SLICE_SAMPLES
    assert started.onset_sample == 20 * SLICE_SAMPLES
    assert np.array_equal(started.samples, positions(20 - PRE_ROLL, 20 + START))


def test_a_turn_at_the_very_start_has_the_pre_roll_there_is() -> None:
    (started,) = hear(".." + "X" * START)
    assert np.array_equal(started.samples, positions(0, 2 + START))


def test_silence_after_speech_pauses_and_then_ends_the_turn() -> None:
    events = hear("." * 20 + "X" * 30 + "." * 40)
    stop = 50
    assert seen(events) == [("VoiceStarted", 26), ("VoicePaused", stop + PAUSE), ("TurnEnded", stop + END)]
    paused, ended = events[-2:]
    assert isinstance(paused, VoicePaused) and isinstance(ended, TurnEnded)
    assert np.array_equal(paused.samples, positions(20 - PRE_ROLL, stop + PAUSE))
    assert np.array_equal(ended.samples, positions(20 - PRE_ROLL, stop + END))
    assert not ended.forced
    for event in (paused, ended):
        assert (event.onset_sample, event.speech_stop_sample) == (20 * SLICE_SAMPLES, stop * SLICE_SAMPLES)


@pytest.mark.parametrize(("faint", "taken_back"), [(2, 2), (3, 3), (9, LONGEST_TAIL)])
def test_a_voice_ends_where_it_was_last_heard_not_where_the_detector_lets_go(faint: int, taken_back: int) -> None:
    loud = 20
    taker = TurnTaker(Script("X" * (loud + faint)))
    events: list[Any] = []
    for index in range(loud + faint + END):
        level = 0.5 if index < loud else 0.01
        events += taker.push(np.full(SLICE_SAMPLES, level, np.float32))
    stop = loud + faint - taken_back
    assert seen(events) == [("VoiceStarted", START), ("VoicePaused", stop + PAUSE), ("TurnEnded", stop + END)]
    ended = events[-1]
    assert ended.speech_stop_sample == stop * SLICE_SAMPLES
    assert len(ended.samples) == (stop + END) * SLICE_SAMPLES, "nothing of it is lost"


def test_what_was_heard_is_the_turn_up_to_the_pause() -> None:
    events = hear("." * 20 + "X" * 30 + "." * 12 + "X" * 9 + "." * 40)
    told = np.zeros(0)
    pauses = 0
    for event in events:
        if isinstance(event, (VoiceStarted, VoiceHeard)):
            told = np.concatenate([told, event.samples])
            assert told[-1] == event.at_sample - 1
        if isinstance(event, VoicePaused):
            assert np.array_equal(told, event.samples)
            pauses += 1
    assert pauses == 2
    assert isinstance(events[-1], TurnEnded)
    assert np.array_equal(told, events[-1].samples[: len(told)])
    assert len(events[-1].samples) - len(told) == (END - PAUSE) * SLICE_SAMPLES


def test_speech_after_a_pause_takes_the_guess_back() -> None:
    events = hear("X" * 10 + "." * (END - 1) + "X" * 4 + "." * 20)
    resumed_at = 10 + END
    stop = 10 + END - 1 + 4
    assert seen(events) == [
        ("VoiceStarted", START),
        ("VoicePaused", 10 + PAUSE),
        ("VoiceResumed", resumed_at),
        ("VoicePaused", stop + PAUSE),
        ("TurnEnded", stop + END),
    ]
    between = [e for e in events if 10 + PAUSE < e.at_sample / SLICE_SAMPLES < resumed_at]
    assert between == [], "nothing is heard while the visitor pauses"


def test_a_short_quiet_is_no_pause() -> None:
    events = hear("X" * 10 + "." * (PAUSE - 1) + "X" * 10)
    assert seen(events) == [("VoiceStarted", START)]


def test_between_the_thresholds_things_stay_as_they_are() -> None:
    assert hear("-" * 60) == []
    assert seen(hear("x" + "-" * (START - 1))) == [("VoiceStarted", START)]
    events = hear("x" * 10 + "-" * 10 + "." * 2 + "-" * 40)  # below "off" once: "on" is needed again
    assert seen(events)[1:] == [("VoicePaused", 20 + PAUSE), ("TurnEnded", 20 + END)]


def test_gaps_inside_a_short_word_are_bridged_longer_ones_are_not() -> None:
    word = "XXX" + "." * (DISMISS - 1) + "XXX"
    assert seen(hear(word)) == [("VoiceStarted", len(word))]
    assert hear("XXX" + "." * DISMISS + "XXX" + "." * 20) == []


def test_two_turns_share_no_words() -> None:
    events = hear("X" * 10 + "." * 30 + "X" * 10 + "." * 30)
    assert [name for name, _ in seen(events)] == ["VoiceStarted", "VoicePaused", "TurnEnded"] * 2
    second = [e for e in events if isinstance(e, VoiceStarted)][1]
    assert np.array_equal(second.samples, positions(40 - PRE_ROLL, 40 + START))


def test_the_limit_ends_a_turn_in_mid_speech_and_the_rest_is_another_turn() -> None:
    limit = 30 * 16_000 // SLICE_SAMPLES
    events = hear("." * 20 + "X" * (limit + 40) + "." * 20)
    cut = 20 - PRE_ROLL + limit
    assert seen(events)[:3] == [("VoiceStarted", 26), ("TurnEnded", cut), ("VoiceStarted", cut + START)]
    first, second = (e for e in events if isinstance(e, TurnEnded))
    assert first.forced and not second.forced
    assert len(first.samples) <= 30 * 16_000
    assert first.speech_stop_sample == first.at_sample == second.onset_sample
    assert np.array_equal(np.concatenate([first.samples, second.samples]), positions(7, 20 + limit + 40 + END))


def test_the_limit_inside_a_pause_leaves_the_guess_right() -> None:
    rules = TurnRules(limit_s=3.2)  # 100 slices
    events = hear("X" * 90 + "." * 20, rules=rules)
    assert seen(events) == [("VoiceStarted", START), ("VoicePaused", 90 + PAUSE), ("TurnEnded", 100)]
    assert events[-1].forced
    assert events[-1].speech_stop_sample == 90 * SLICE_SAMPLES


def test_while_the_avatar_speaks_a_turn_takes_a_surer_and_longer_voice() -> None:
    assert hear("x" * 40, "A" * 40) == []
    short = hear("X" * (SPEAKING_START - 1) + "." * 20, "A" * 40)
    assert seen(short) == [("VoiceSuspected", SUSPECT), ("VoiceDismissed", SPEAKING_START - 1 + DISMISS)]
    marks = "." * 20 + "X" * SPEAKING_START
    suspected, started = hear(marks, "A" * 40)
    assert isinstance(suspected, VoiceSuspected)
    assert isinstance(started, VoiceStarted)
    assert suspected.at_sample == (20 + SUSPECT) * SLICE_SAMPLES
    assert started.at_sample == (20 + SPEAKING_START) * SLICE_SAMPLES
    assert suspected.onset_sample == started.onset_sample == 20 * SLICE_SAMPLES
    assert np.array_equal(started.samples, positions(20 - PRE_ROLL, 20 + SPEAKING_START))


def test_one_slice_is_no_suspicion_and_leaves_no_trace() -> None:
    assert hear(("X" + "." * DISMISS) * 10, "A" * 50) == []


def test_a_suspicion_can_come_again() -> None:
    events = hear("XXX" + "." * 10 + "XXX" + "." * 10, "A" * 30)
    assert [type(e) for e in events] == [VoiceSuspected, VoiceDismissed] * 2


def test_a_suspicion_is_dismissed_although_the_avatar_is_silent_by_then() -> None:
    assert [type(e) for e in hear("XXX" + "." * 10, "AAA")] == [VoiceSuspected, VoiceDismissed]


def test_a_voice_counts_as_spoken_over_if_the_avatar_spoke_at_any_moment_of_it() -> None:
    for speaking in ("." * 3 + "A" * 20, "A" * 3, "." * 4 + "A"):  # begins, stops, one slice
        events = hear("X" * 20, speaking)
        assert seen(events)[-1] == ("VoiceStarted", SPEAKING_START), speaking
        assert type(events[0]) is VoiceSuspected
    assert seen(hear("X" * 20, "." * START + "A" * 20)) == [("VoiceStarted", START)]


def test_a_slice_is_spoken_over_if_a_part_of_it_was() -> None:
    taker = TurnTaker(Script("X" * 20))
    events = taker.push(np.zeros(100, np.float32), True) + taker.push(positions(0, 20))
    assert seen(events)[-1] == ("VoiceStarted", SPEAKING_START)


def test_what_the_avatar_said_before_a_voice_does_not_matter() -> None:
    assert seen(hear("." * 5 + "X" * 20, "A" * 5)) == [("VoiceStarted", 5 + START)]


def test_a_faint_voice_over_the_avatar_does_not_resume_a_turn() -> None:
    marks = "X" * 20 + "." + "x" * 40
    assert seen(hear(marks, "." * 20 + "A" * 41))[-1] == ("TurnEnded", 20 + END)
    assert seen(hear(marks)) == [("VoiceStarted", START)]


def test_reset_in_mid_turn_drops_it_without_a_word() -> None:
    script = Script("X" * 10 + "." * 20 + "X" * 10 + "." * 30)
    taker = TurnTaker(script)
    taker.push(positions(0, 10))
    assert taker.in_turn
    taker.push(np.zeros(100, np.float32))
    taker.reset()
    assert (taker.in_turn, script.resets, taker.position) == (False, 1, 10 * SLICE_SAMPLES + 100)
    rest = np.arange(taker.position, taker.position + 70 * SLICE_SAMPLES, dtype=np.float32)
    events: list[Any] = taker.push(rest)
    assert [name for name, _ in seen(events)] == ["VoiceStarted", "VoicePaused", "TurnEnded"]
    start = taker.position - 70 * SLICE_SAMPLES
    assert events[0].onset_sample == start + 20 * SLICE_SAMPLES
    assert np.array_equal(events[0].samples, rest[(20 - PRE_ROLL) * SLICE_SAMPLES : (20 + START) * SLICE_SAMPLES])


def test_reset_forgets_the_sound_before_it() -> None:
    taker = TurnTaker(Script("." * 19 + "X" + "-" * 10 + "X" * 10))
    taker.push(positions(0, 20))
    taker.reset()
    assert taker.push(positions(10, 20)) == []
    taker.reset()
    (started, _) = taker.push(positions(20, 30))
    assert isinstance(started, VoiceStarted)
    assert np.array_equal(started.samples, positions(20, 30)[: START * SLICE_SAMPLES])


def test_reset_in_a_suspicion_leaves_no_dismissal() -> None:
    taker = TurnTaker(Script("XXX" + "." * 20))
    assert [type(e) for e in taker.push(positions(0, 3), True)] == [VoiceSuspected]
    taker.reset()
    assert taker.push(positions(3, 23), True) == []


def test_silence_says_nothing_and_memory_is_bounded() -> None:
    taker = TurnTaker(Script("." * 4000 + "X" * 4000))
    quiet = np.zeros(1000 * SLICE_SAMPLES, np.float32)
    assert taker.push(quiet) == []
    tracemalloc.start()
    for _ in range(3):
        assert taker.push(quiet) == []
    assert tracemalloc.get_traced_memory()[0] < 100_000
    held = []
    for _ in range(40):
        taker.push(quiet[: 100 * SLICE_SAMPLES])
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(held) < 1.3 * 4 * 30 * 16_000


def test_packets_of_any_size_give_the_same_events() -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        marks = "".join(c * int(n) for c, n in zip(rng.choice([*".-xX"], 24), rng.integers(1, 30, 24), strict=True))
        sound = positions(0, len(marks))
        speaking = np.repeat(rng.random(len(sound) // 4000 + 1) < 0.4, 4000)[: len(sound)]
        results = []
        for longest in (60_000, 3000, 700):
            cuts = np.cumsum(rng.integers(0, longest, 2 * len(sound) // longest + 2))
            cuts = np.unique(np.concatenate([cuts, np.flatnonzero(np.diff(speaking)) + 1, [0, len(sound)]]))
            cuts = cuts[cuts <= len(sound)]
            taker, events = TurnTaker(Script(marks), TurnRules(limit_s=4)), []
            for first, stop in itertools.pairwise(cuts):
                events += taker.push(sound[first:stop], bool(speaking[first]))
            results.append(joined(events))
        assert results[0] == results[1] == results[2]


def test_packets_of_one_sample() -> None:
    marks = "XX" + "." * 4 + "X" * 8 + "." * 20
    sound = positions(0, len(marks))
    single, whole = TurnTaker(Script(marks)), TurnTaker(Script(marks))
    events = [event for sample in sound for event in single.push(np.array([sample]))]
    assert joined(events) == joined(whole.push(sound))
    assert single.push(np.zeros(0, np.float32), True) == []
    assert single.position == len(sound)


def test_an_empty_packet_makes_no_slice_spoken_over() -> None:
    taker = TurnTaker(Script("X" * START))
    taker.push(np.zeros(0, np.float32), True)
    assert [type(e) for e in taker.push(positions(0, START))] == [VoiceStarted]


def test_events_own_their_sound() -> None:
    buffer = np.full(START * SLICE_SAMPLES, 0.5, np.float32)
    (started,) = TurnTaker(Script("X" * START)).push(buffer)
    assert isinstance(started, VoiceStarted)
    buffer[:] = 0
    assert (started.samples == 0.5).all()
    assert started.samples.dtype == np.float32


@pytest.mark.parametrize(
    "samples",
    [np.zeros((2, 512), np.float32), np.zeros(512, np.int16), np.full(600, np.nan, np.float32)],
    ids=["stereo", "int16", "not finite"],
)
def test_unusable_sound_is_refused_and_nothing_taken(samples: np.ndarray) -> None:
    taker = TurnTaker(Script(""))
    with pytest.raises(LiveTalkError, match=r"expected finite float32 \[samples\]"):
        taker.push(samples)
    assert taker.position == 0


@pytest.mark.parametrize("rules", [{"off": 0.6}, {"speaking_on": 1.5}, {"end_ms": 0}, {"limit_s": 1.0}])
def test_rules_that_contradict_each_other_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(LiveTalkError, match="Turn rules"):
        TurnRules(**rules)


def test_rules_can_be_changed() -> None:
    rules = TurnRules(pre_roll_ms=0, start_ms=64, pause_ms=1000, end_ms=320)
    events = hear("..XX" + "." * 20, rules=rules)
    assert seen(events) == [("VoiceStarted", 4), ("TurnEnded", 14)], "no pause is told that is longer than the end"
    assert np.array_equal(events[0].samples, positions(2, 4))


# --- silero ---------------------------------------------------------------------------------------

SENTENCES = (
    "Hello, how are you?",
    "What is your name?",
    "Can you hear me?",
    "Where do you come from?",
    "Tell me a story, please.",
    "How old are you?",
    "What can you do for me?",
    "I would like to know more about you.",
    "Who made you?",
    "Is it cold outside today?",
    "Do you like music?",
    "What do you see?",
    "My name is Alice.",
    "That is very interesting.",
    "Could you say that again?",
    "I do not understand.",
    "How does this work?",
    "Are you real?",
    "Thank you very much.",
    "Good bye, see you tomorrow.",
)


def _has_espeak() -> bool:
    return any(name.startswith("espeak") for name in voice.available_voices())


VOICES = [
    pytest.param(
        "flite:slt",
        marks=pytest.mark.skipif(shutil.which("flite") is None, reason="needs the Debian package flite"),
    ),
    pytest.param(
        "espeak:en-us+m3", marks=pytest.mark.skipif(not _has_espeak(), reason="needs the Debian package espeak-ng")
    ),
]


@dataclass(frozen=True)
class Talk:
    """Sentences with gaps between them.

    Attributes:
        sound: float32 at 16 kHz.
        spans: first and last sample of each sentence's voice, from its phonemes.
        level: root mean square of the voice.
    """

    sound: np.ndarray
    spans: list[tuple[int, int]]
    level: float

    def with_noise(self, snr_db: float | None) -> np.ndarray:
        """The sound in pink noise, ``snr_db`` below the voice."""
        if snr_db is None:
            return self.sound
        spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(len(self.sound)))
        spectrum /= np.sqrt(np.maximum(1, np.arange(len(spectrum))))
        noise = np.fft.irfft(spectrum, len(self.sound))
        scale = self.level * 10 ** (-snr_db / 20) / np.sqrt(np.square(noise).mean())
        return (self.sound + scale * noise).astype(np.float32)


@functools.lru_cache
def talk(name: str) -> Talk:
    rng = np.random.default_rng(0)
    parts, spans, position = [np.zeros(16_000, np.float32)], [], 16_000
    for text in SENTENCES:
        said = voice.speak(text, name)
        spoken = [mark for mark in said.phonemes if mark[2] not in ("pau", "")]
        spans.append((position + int(16_000 * spoken[0][0]), position + int(16_000 * spoken[-1][1])))
        tail = position + len(said.samples) - spans[-1][1]
        gap = np.zeros(int(16_000 * rng.uniform(1.2, 2.0)) - tail, np.float32)
        parts += [said.samples, gap]
        position += len(said.samples) + len(gap)
    sound = np.concatenate(parts)
    voiced = np.concatenate([sound[first:stop] for first, stop in spans])
    return Talk(sound, spans, float(np.sqrt(np.square(voiced).mean())))


@pytest.mark.parametrize("snr_db", [None, 20.0, 10.0], ids=["clean", "20 dB", "10 dB"])
@pytest.mark.parametrize("name", VOICES)
def test_twenty_sentences_are_twenty_turns(name: str, snr_db: float | None) -> None:
    said = talk(name)
    events = TurnTaker(SileroDetector()).push(said.with_noise(snr_db))
    started = [e for e in events if isinstance(e, VoiceStarted)]
    ended = [e for e in events if isinstance(e, TurnEnded)]
    assert len(started) == len(ended) == 20
    assert not any(isinstance(e, (VoiceSuspected, VoiceDismissed)) for e in events)
    starts = [(e.at_sample - first) / 16 for e, (first, _) in zip(started, said.spans, strict=True)]
    ends = [(e.at_sample - stop) / 16 for e, (_, stop) in zip(ended, said.spans, strict=True)]
    assert min(starts) > 100 and max(starts) < 520 and np.median(starts) < 270
    assert min(ends) > 380 and max(ends) < 760 and np.median(ends) < 690
    for event, (first, stop) in zip(ended, said.spans, strict=True):
        assert event.at_sample - len(event.samples) < first < stop < event.at_sample


@pytest.mark.parametrize("name", VOICES)
def test_every_sentence_interrupts_a_speaking_avatar_after_it_was_suspected(name: str) -> None:
    said = talk(name)
    events = TurnTaker(SileroDetector()).push(said.with_noise(20.0), speaking=True)
    started = [e for e in events if isinstance(e, VoiceStarted)]
    assert len(started) == 20
    starts = [(e.at_sample - first) / 16 for e, (first, _) in zip(started, said.spans, strict=True)]
    assert min(starts) > 300 and np.median(starts) < 420
    onsets = {e.onset_sample: e.at_sample for e in events if isinstance(e, VoiceSuspected)}
    suspicions = [(onsets[e.onset_sample] - first) / 16 for e, (first, _) in zip(started, said.spans, strict=True)]
    assert np.median(suspicions) < 130


@pytest.mark.parametrize("name", VOICES)
def test_packets_from_a_microphone_give_the_turns_of_the_whole_sound(name: str) -> None:
    sound = talk(name).sound[: 12 * 16_000]
    taker, events = TurnTaker(SileroDetector()), []
    for first in range(0, len(sound), 320):
        events += taker.push(sound[first : first + 320])
    assert len(events) > 6
    assert joined(events) == joined(TurnTaker(SileroDetector()).push(sound))


def test_noise_hum_and_clicks_are_no_voice() -> None:
    rng = np.random.default_rng(0)
    count = 6 * 16_000
    clicks = np.zeros(count)
    for first in range(0, count - 400, 2000):
        clicks[first : first + 400] = 0.4 * rng.standard_normal(400) * np.exp(-np.arange(400) / 60)
    hum = 0.1 * np.sin(2 * np.pi * 50 * np.arange(count) / 16_000)
    for sound in (0.02 * rng.standard_normal(count), clicks, hum):
        for speaking in (False, True):
            assert TurnTaker(SileroDetector()).push(sound.astype(np.float32), speaking) == []


def speechlike(slices: int) -> np.ndarray:
    """Something the detector does not find boring: a buzz through two moving resonances."""
    t = np.arange(slices * SLICE_SAMPLES) / 16_000
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 25))
    return (0.2 * buzz * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def test_the_detector_agrees_with_the_package_it_comes_from() -> None:
    threads = torch.get_num_threads()
    mine = SileroDetector()
    assert torch.get_num_threads() == threads
    import silero_vad  # sets the threads of the whole process to one

    theirs = silero_vad.load_silero_vad(onnx=True)
    torch.set_num_threads(threads)
    slices = np.split(speechlike(30), 30)
    expected = [theirs(torch.from_numpy(part), 16_000).item() for part in slices]
    assert [mine(part) for part in slices] == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 0.02


def test_detectors_share_no_memory_and_reset_forgets() -> None:
    slices = np.split(speechlike(20), 20)
    one, other = SileroDetector(), SileroDetector()
    alone = [one(part) for part in slices]
    one.reset()
    mixed = []
    for part in slices:
        mixed.append(one(part))
        other(1 - part)
    assert mixed == alone


def test_a_detector_takes_slices_only() -> None:
    with pytest.raises(LiveTalkError, match=r"expected \(512,\)"):
        SileroDetector()(np.zeros(480, np.float32))


def test_a_missing_detector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(vad, "_model", vad._model.__wrapped__)
    with pytest.raises(LiveTalkError, match="pip install silero-vad"):
        SileroDetector()
