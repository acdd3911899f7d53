"""The promises of streaming: packets do not matter, sessions never meet, chunks can be unmade, nothing grows."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from livetalk.stream.chunks import ChunkMaker
from livetalk.stream.grid import SAFETY_PICTURES
from livetalk.stream.pace import LEAST_MARGIN_S, StageTimes
from livetalk.types import (
    MODEL_RATE,
    MODEL_SAMPLES_PER_PICTURE,
    PLAYBACK_RATE,
    PLAYBACK_SAMPLES_PER_PICTURE,
    AudioChunk,
    LiveTalkError,
    SpeechEnd,
)
from tests.live import HandClock, babble, film, live, performer, sound_of, speak, tiny_identity, tiny_models

LEAD_S = 0.6


@pytest.fixture(scope="module")
def whole() -> tuple[np.ndarray, np.ndarray]:
    """Pictures and sound of 3.3 s of speech pushed as one packet."""
    pieces = speak(performer(), babble(3.3))
    return film(pieces), sound_of(pieces)


@pytest.mark.parametrize("packet", [160, 1001, 12_345])
def test_packets_do_not_matter(whole, packet: int) -> None:
    pieces = speak(performer(), babble(3.3), packet)
    assert np.array_equal(film(pieces), whole[0])
    assert np.array_equal(sound_of(pieces), whole[1])


def test_packets_of_seven_samples() -> None:
    speech = babble(0.9)
    assert np.array_equal(film(speak(performer(), speech, 7)), film(speak(performer(), speech)))


@pytest.mark.parametrize("rate", [8_000, MODEL_RATE, 44_100, 48_000])
def test_any_rate_any_packets(rate: int) -> None:
    speech = babble(1.3, rate)
    one, many = speak(performer(), speech, rate=rate), speak(performer(), speech, 333, rate=rate)
    assert np.array_equal(film(one), film(many))
    assert np.array_equal(sound_of(one), sound_of(many))


def test_pictures_are_as_long_as_the_speech(whole) -> None:
    pictures, sound = whole
    assert len(pictures) == int(np.ceil(3.3 * 16))
    assert len(sound) == len(pictures) * PLAYBACK_SAMPLES_PER_PICTURE
    assert np.array_equal(sound[: len(babble(3.3))], babble(3.3))
    assert not sound[len(babble(3.3)) :].any()


def test_a_chunk_leaves_when_its_sound_and_look_ahead_are_there() -> None:
    player = performer()
    speech = babble(2.0, MODEL_RATE)
    needed = 9 * MODEL_SAMPLES_PER_PICTURE + 1_600
    player.push(AudioChunk(speech[: needed - 1], MODEL_RATE))
    assert list(player.pictures()) == []
    player.push(AudioChunk(speech[needed - 1 : needed], MODEL_RATE))
    (first,) = list(player.pictures())
    assert (first.first_picture, len(first.pictures)) == (0, 9)
    player.push(AudioChunk(speech[needed : needed + 12_000], MODEL_RATE))
    assert [(piece.first_picture, len(piece.pictures)) for piece in player.pictures()] == [(9, 12)]


@pytest.mark.parametrize("packet", [5_000, None])
def test_two_stages_beside_each_other_give_the_same_bits(whole, packet: int | None) -> None:
    beside = performer(overlap=True)
    pieces = speak(beside, babble(3.3), packet)
    beside.close()
    assert np.array_equal(film(pieces), whole[0])


def test_sessions_never_meet(whole) -> None:
    one, other = performer(seed=5), performer(seed=6, identity=1)
    speech, foreign = babble(3.3), babble(2.5, seed=9)
    pieces = []
    for start in range(0, len(speech), 6_000):
        one.push(AudioChunk(speech[start : start + 6_000]))
        other.push(AudioChunk(foreign[start : start + 6_000]))
        pieces += list(one.pictures())
        list(other.pictures())
    one.push(SpeechEnd())
    assert np.array_equal(film(pieces + list(one.pictures())), whole[0])


def test_noise_depends_on_the_seed_alone(whole) -> None:
    assert not np.array_equal(film(speak(performer(seed=6), babble(3.3))), whole[0])
    assert np.array_equal(film(speak(performer(seed=5), babble(3.3))), whole[0])


def test_live_and_offline_are_the_same_bits(whole) -> None:
    clock = HandClock()
    player = performer(clock=clock)
    player.push(AudioChunk(babble(3.3)))
    player.push(SpeechEnd())
    assert np.array_equal(film(live(player, clock, 53))[:53], whole[0])


# ---------------------------------------------------------------- cutting anywhere


def composite(pieces_of_sound: list[tuple[int, np.ndarray]], pictures: int) -> np.ndarray:
    """One stretch of model sound from pieces placed at pictures."""
    sound = np.zeros(pictures * MODEL_SAMPLES_PER_PICTURE, np.float32)
    for picture, samples in pieces_of_sound:
        at = picture * MODEL_SAMPLES_PER_PICTURE
        sound[at:] = 0
        sound[at : at + len(samples)] = samples
    return sound


class Oracle:
    """Makes chunks one after another from given sound, with nothing of the performer's logic."""

    def __init__(self) -> None:
        models = tiny_models()
        self._audio = models.audio
        self._maker = ChunkMaker(models, tiny_identity(), 5, StageTimes(lambda: 0.0), overlap=False)

    def chunk(self, index: int, sound: np.ndarray) -> np.ndarray:
        """Pictures of chunk ``index`` if the stream's model sound is ``sound``."""
        first, stop = (0, 9) if index == 0 else (12 * index - 3, 12 * index + 9)
        padded = np.pad(sound, (self._audio.past_samples, 100_000))
        stop_sample = stop * MODEL_SAMPLES_PER_PICTURE + self._audio.past_samples + self._audio.look_ahead_samples
        heard = torch.from_numpy(padded[first * MODEL_SAMPLES_PER_PICTURE : stop_sample])
        with torch.no_grad():
            rows = self._audio(heard[None], stop - first)
        return self._maker.make(index, rows).pictures(first, stop)


def test_speech_may_begin_inside_a_chunk_already_made() -> None:
    """Idle pictures before the seam stay; those behind it are a fresh run's whose sound was so from the chunk on."""
    clock = HandClock()
    player = performer(clock=clock, lead_s=LEAD_S)
    before = live(player, clock, 25)  # chunk 2 is pictures 21..32; four of them have left
    speech = babble(2.0, MODEL_RATE, seed=3)
    seam = player.next_picture
    assert seam == 25
    player.push(AudioChunk(speech, MODEL_RATE))
    player.push(SpeechEnd())
    after = live(player, clock, 45)
    oracle, silence = Oracle(), np.zeros(0, np.float32)
    heard = composite([(seam, speech)], 100)
    fresh = [oracle.chunk(0, silence), oracle.chunk(1, silence), oracle.chunk(2, heard), oracle.chunk(3, heard)]
    idle = Oracle()
    still = np.concatenate([idle.chunk(index, silence) for index in range(3)])
    assert np.array_equal(film(before), still[:25])
    assert np.array_equal(film(after), np.concatenate(fresh)[25:45])
    assert not np.array_equal(film(after)[:8], still[25:33]), "the new sound must be seen"
    assert np.array_equal(sound_of(before), np.zeros(25 * PLAYBACK_SAMPLES_PER_PICTURE, np.float32))
    assert np.abs(sound_of(after)[:PLAYBACK_SAMPLES_PER_PICTURE]).max() > 0


def test_speech_may_end_inside_a_chunk_and_go_on_later() -> None:
    """Without a clock: the second piece of speech starts at the very next picture, inside the chunk that was padded."""
    player = performer()
    first, second = babble(1.4, MODEL_RATE, seed=1), babble(1.5, MODEL_RATE, seed=2)
    before = speak(player, first, rate=MODEL_RATE)
    seam = player.next_picture
    assert seam == 23
    after = speak(player, second, 700, rate=MODEL_RATE)
    oracle, padded = Oracle(), Oracle()
    early, late = composite([(0, first)], 100), composite([(0, first), (seam, second)], 100)
    fresh = np.concatenate([oracle.chunk(index, early if index < 2 else late) for index in range(5)])
    assert np.array_equal(film(before), np.concatenate([padded.chunk(index, early) for index in range(3)])[:seam])
    assert np.array_equal(film(after), fresh[seam : seam + 24])


def test_interruption_replaces_what_is_not_on_screen_yet() -> None:
    clock = HandClock()
    player = performer(clock=clock, lead_s=LEAD_S)
    speech = babble(5.0, MODEL_RATE, seed=4)
    player.push(AudioChunk(speech, MODEL_RATE))
    before = live(player, clock, 37)  # the last of them leave at most the lead ahead
    seam = player.clear()
    assert 37 - LEAD_S * 16 <= seam <= 37
    after = live(player, clock, seam + 30)
    assert {piece.generation for piece in before} == {0}
    assert {piece.generation for piece in after} == {1}
    assert after[0].first_picture == seam
    assert not sound_of(after).any(), "nothing of the old speech is heard"
    assert not any(piece.speaking for piece in after)
    chunk = (seam + 3) // 12
    dying = speech[seam * 1000 : (seam + 3) * 1000] * np.linspace(1, 0, 3000, endpoint=False, dtype=np.float32)
    oracle, silent = Oracle(), composite([(0, speech), (seam, dying)], 200)
    full = composite([(0, speech)], 200)
    fresh = np.concatenate([oracle.chunk(index, full if index < chunk else silent) for index in range(chunk + 5)])
    assert np.array_equal(film(after), fresh[seam : seam + len(film(after))])


@pytest.mark.parametrize("overlap", [False, True])
def test_many_cuts_never_break_the_order(overlap: bool) -> None:
    """Interrupt and speak again at many places: positions run on, generations only grow, the picture always moves."""
    clock, random = HandClock(), np.random.default_rng(0)
    player = performer(clock=clock, overlap=overlap)
    generation, expected = 0, 0
    for turn in range(12):
        for piece in live(player, clock, player.next_picture + int(random.integers(3, 20))):
            assert (piece.generation, piece.first_picture) == (generation, expected)
            assert len(piece.sound) == len(piece.pictures) * PLAYBACK_SAMPLES_PER_PICTURE
            expected += len(piece.pictures)
        if turn % 3 == 2:
            seam = player.clear()
            generation += 1
            assert expected - 16 <= seam <= expected
            expected = seam
        else:
            player.push(AudioChunk(babble(float(random.uniform(0.1, 1.5)), seed=turn)))
            if turn % 3 == 1:
                player.push(SpeechEnd())
    player.close()


def test_cleared_speech_never_comes_back_without_a_clock() -> None:
    player = performer()
    player.push(AudioChunk(babble(2.0)))
    before = list(player.pictures())
    assert player.clear() == player.next_picture
    assert list(player.pictures()) == []
    after = speak(player, babble(1.0, seed=8))
    assert {piece.generation for piece in after} == {1}
    assert after[0].first_picture == before[-1].first_picture + len(before[-1].pictures)
    assert np.array_equal(sound_of(after)[:24_000], babble(1.0, seed=8))


# ---------------------------------------------------------------- living in time


def test_pictures_leave_at_most_the_lead_ahead() -> None:
    clock = HandClock()
    player = performer(clock=clock, lead_s=LEAD_S)
    player.push(AudioChunk(babble(4.0)))
    begun_s = clock()
    for _ in range(20):
        live(player, clock, player.next_picture + 1)
        ahead_s = player.next_picture / 16 - (clock() - begun_s)
        assert ahead_s <= LEAD_S + 1e-6
    assert player.late_s == 0
    assert ahead_s > LEAD_S - 0.26, "and not much less, or there is no safety"


def test_idle_is_alive_and_silent() -> None:
    clock = HandClock()
    pieces = live(performer(clock=clock), clock, 60)
    pictures = film(pieces).astype(int)
    assert not sound_of(pieces).any()
    changes = np.abs(np.diff(pictures, axis=0)).reshape(len(pictures) - 1, -1).max(axis=1)
    assert (changes > 0).all(), "never a frozen picture"


def test_a_reply_is_made_once_although_its_speech_comes_piece_by_piece() -> None:
    clock = HandClock()
    player = performer(clock=clock, lead_s=LEAD_S)
    live(player, clock, 30)
    made, make = [], player._maker.make
    player._maker.make = lambda index, rows: made.append(index) or make(index, rows)
    first = player.hold(0.04)
    for _ in range(6):
        player.push(AudioChunk(babble(0.25)))
        while player.next_pictures() is not None:
            pass
    player.release(1)
    pieces = live(player, clock, first + 8)
    assert made.count(player._grid.chunk_of(first)) == 1
    assert sound_of(pieces).any()
    assert player.late_s == 0


def test_late_pictures_move_the_clock_and_are_counted() -> None:
    clock = HandClock()
    player = performer(clock=clock, lead_s=LEAD_S)
    live(player, clock, 21)
    clock.now_s += 3.0  # the machine slept
    pieces = live(player, clock, 40)
    assert pieces[0].first_picture == 21, "nothing is skipped"
    assert 1.5 < player.late_s < 3.0
    late_s = player.late_s
    live(player, clock, 80)
    assert player.late_s == late_s, "it slips once"


def test_speech_that_comes_too_slowly_is_continued_not_lost() -> None:
    """Packets of 100 ms every 150 ms: the face never stops, every sample is said, in order."""
    clock = HandClock()
    player = performer(clock=clock, lead_s=LEAD_S)
    live(player, clock, 9)
    speech = babble(1.5, MODEL_RATE, seed=7)
    pieces = []
    for start in range(0, len(speech), 1_600):
        player.push(AudioChunk(speech[start : start + 1_600], MODEL_RATE))
        until = clock() + 0.15
        while clock() < until:
            piece = player.next_pictures()
            if piece is None:
                clock.now_s += min(0.05, max(0.001, player.wait_s()))
            else:
                pieces.append(piece)
    player.push(SpeechEnd())
    pieces += live(player, clock, player.next_picture + 40)
    film(pieces)
    said = sound_of(pieces)
    quiet_removed = said[np.abs(said) > 0]
    assert len(quiet_removed) > 0.98 * 1.5 * PLAYBACK_RATE
    assert player.late_s == 0


def test_first_picture_time_is_measured() -> None:
    ticks = iter(range(10_000))
    player = performer(clock=lambda: next(ticks) * 0.01)
    player.push(AudioChunk(babble(2.0)))
    while player.first_picture_s is None:
        player.next_pictures()
    assert 0 < player.first_picture_s < 1
    assert player.real_time_factor > 0


# ---------------------------------------------------------------- nothing grows


def live_tensor_bytes() -> int:
    gc.collect()
    storages = {
        item.untyped_storage().data_ptr(): item.untyped_storage().nbytes()
        for item in gc.get_objects()
        # packed weights and what a compiler was shown have no storage to look at
        if type(item) in (torch.Tensor, torch.nn.Parameter) and not item.is_mkldnn
    }
    return sum(storages.values())


@pytest.mark.parametrize("mode", ["clip", "live"])
def test_memory_is_constant_over_a_hundred_chunks(mode: str) -> None:
    clock = HandClock()
    player = performer(clock=clock if mode == "live" else None)
    speech = babble(0.75, seed=11)
    sizes = []
    for turn in range(110):
        player.push(AudioChunk(speech))
        if mode == "live":
            live(player, clock, player.next_picture + 12)
            if turn % 7 == 3:
                player.push(SpeechEnd())
            if turn % 11 == 5:
                player.clear()
        else:
            list(player.pictures())
        if turn % 20 == 19 and turn > 20:
            live(player, clock, player.next_picture + 40) if mode == "live" else None
            sizes.append((live_tensor_bytes(), player.held_nbytes()))
    tensors, held = zip(*sizes, strict=True)
    assert max(tensors) == min(tensors) or mode == "live", tensors
    assert max(tensors) - min(tensors) < 200_000, tensors
    assert max(held) < 2_000_000, held


def test_hours_of_silence_cost_nothing() -> None:
    clock = HandClock()
    player = performer(clock=clock)
    live(player, clock, 9)
    held = player.held_nbytes()
    player._track.forget(10_000_000)
    player._track.begin(10_000_000)
    player._track.append(AudioChunk(babble(0.5)))
    assert player.held_nbytes() < held + 1_000_000


# ---------------------------------------------------------------- bad packets


@pytest.mark.parametrize(
    ("samples", "rate", "words"),
    [
        (np.zeros((10, 2), np.float32), 16_000, "mono"),
        (np.zeros(10, np.int16), 16_000, "float"),
        (np.full(10, np.nan, np.float32), 16_000, "finite"),
        (np.zeros(10, np.float32), 0, "sample rate"),
    ],
)
def test_bad_packets_are_refused_and_the_stream_goes_on(samples, rate: int, words: str) -> None:
    player = performer()
    with pytest.raises(LiveTalkError, match=words):
        player.push(AudioChunk(samples, rate))
    assert len(film(speak(player, babble(1.0)))) == 16


def test_another_rate_in_mid_speech_is_refused() -> None:
    player = performer()
    player.push(AudioChunk(babble(0.2)))
    with pytest.raises(LiveTalkError, match="one rate"):
        player.push(AudioChunk(babble(0.2), 48_000))


def test_safety_leaves_time_for_delivery() -> None:
    assert SAFETY_PICTURES >= 1


def test_silence_is_made_late_where_speech_is_expected() -> None:
    """A chunk of silence nobody will see must not be in the way of a reply that is about to come."""
    ahead_s = {}
    for expected in (False, True):
        clock = HandClock()
        player = performer(clock=clock)
        live(player, clock, 21)
        player.expects_speech, chunks = expected, player._next_chunk
        while player._next_chunk == chunks:
            clock.now_s += 0.01
            ahead_s[expected] = player._playback.ahead_s(player.next_picture)
            list(player.pictures())
    assert ahead_s[True] < LEAST_MARGIN_S + 0.02 < ahead_s[False]


def test_speech_that_is_expected_is_made_at_once() -> None:
    clock = HandClock()
    player = performer(clock=clock)
    live(player, clock, 21)
    silence = player._takes[-1]
    player.expects_speech = True
    player.push(AudioChunk(babble(3.0)))
    clock.now_s += 0.1
    list(player.pictures())
    assert player._takes[-1].index >= silence.index and player._takes[-1] is not silence
