"""One visitor's stream: the mirror, clips, interruptions, bounded lines, and facts that are told."""

from __future__ import annotations

import itertools
import threading

import av
import numpy as np
import pytest

import livetalk
from livetalk.media.packets import Packer, unpack
from livetalk.stream.avatar import Avatar
from livetalk.stream.pace import SystemClock
from livetalk.stream.session import MICROPHONE_BACKLOG_S, Session
from livetalk.stream.turns import CancelScope
from livetalk.types import MODEL_RATE, PLAYBACK_RATE, LiveTalkError
from tests.live import HandClock, babble, film, sound_of, tiny_identity, tiny_models
from tests.tiny import TINY


def session(clock: HandClock | None = None, **options) -> Session:
    return Session(tiny_models(), tiny_identity(), clock=clock or HandClock(), **options)


def take(stream, pictures: int) -> list:
    """Pieces of ``Session.pictures()`` until that many pictures have come."""
    pieces = []
    while sum(len(piece.pictures) for piece in pieces) < pictures:
        pieces.append(next(stream))
    return pieces


def microphone(clock: HandClock, target: Session, samples: np.ndarray, rate: int = MODEL_RATE, packet_s: float = 0.08):
    """Plans packets of ``samples`` as a microphone would send them."""
    step = int(packet_s * rate)
    for number, start in enumerate(range(0, len(samples), step)):
        clock.plan((number + 1) * packet_s, lambda at=start: target.listen(samples[at : at + step], rate))


def test_without_sound_the_face_lives() -> None:
    visit = session()
    stream = visit.pictures()
    pieces = take(stream, 40)
    assert visit.state == "idle"
    assert not sound_of(pieces).any()
    changes = np.abs(np.diff(film(pieces).astype(int), axis=0)).reshape(-1, 32 * 32 * 3).max(axis=1)
    assert (changes > 0).all()


def test_the_microphone_is_mirrored_with_a_steady_delay() -> None:
    clock = HandClock()
    visit = session(clock)
    stream = visit.pictures()
    begun = clock()
    take(stream, 20)
    said = babble(6.0, MODEL_RATE)
    spoken_from = clock() - begun
    microphone(clock, visit, said)
    pieces = take(stream, 150)
    whole = np.concatenate([np.zeros(pieces[0].start_sample, np.float32), sound_of(pieces)])
    heard = np.flatnonzero(np.abs(whole) > 1e-3)
    delay_s = heard[0] / PLAYBACK_RATE - spoken_from
    assert 0.8 < delay_s < 1.6
    assert visit.mirror_delay_s == pytest.approx(delay_s, abs=0.2)
    assert heard[-1] - heard[0] == pytest.approx(6.0 * PLAYBACK_RATE, abs=2_000), "no gap, nothing lost"
    assert visit.late_s == 0
    assert visit.dropped_samples == 0
    film(pieces)


def test_a_clip_is_said_whole_and_the_microphone_waits() -> None:
    clock = HandClock()
    visit = session(clock)
    stream = visit.pictures()
    take(stream, 12)
    speech = babble(3.0)
    visit.play(speech, PLAYBACK_RATE)
    microphone(clock, visit, babble(1.0, MODEL_RATE, seed=3))
    pieces = take(stream, 75)
    sound = sound_of(pieces)
    start = np.flatnonzero(sound)[0] // 1500 * 1500
    assert np.array_equal(sound[start : start + len(speech)], speech)
    assert not sound[start + len(speech) : start + len(speech) + 12_000].any()
    assert any(piece.speaking for piece in pieces)


def test_clips_follow_each_other() -> None:
    visit = session()
    stream = visit.pictures()
    take(stream, 12)
    visit.play(babble(1.0), PLAYBACK_RATE)
    visit.play(babble(1.0, 16_000, seed=2), 16_000)
    sound = sound_of(take(stream, 60))
    spoken = np.flatnonzero(np.abs(sound) > 1e-4)
    assert spoken[-1] - spoken[0] == pytest.approx(2.0 * PLAYBACK_RATE, abs=1_600)


def test_nothing_old_after_an_interruption() -> None:
    clock = HandClock()
    visit = session(clock)
    stream = visit.pictures()
    take(stream, 12)
    visit.play(babble(5.0), PLAYBACK_RATE)
    before = take(stream, 30)
    assert visit.state == "speaking"
    assert visit.interrupt() == 1
    void = next(stream)
    assert (len(void.pictures), void.generation) == (0, 1)
    left = before[-1].first_picture + len(before[-1].pictures)
    assert left - 12 <= void.first_picture <= left
    after = take(stream, 40)
    assert after[0].first_picture == void.first_picture
    assert {piece.generation for piece in after} == {1}
    assert not sound_of(after).any()
    assert visit.state == "idle"


def test_the_microphone_line_is_bounded_and_says_so() -> None:
    visit = session()
    for _ in range(40):
        visit.listen(babble(0.1, MODEL_RATE), MODEL_RATE)
    assert visit.dropped_samples == pytest.approx((4.0 - MICROPHONE_BACKLOG_S) * MODEL_RATE, abs=1_700)
    assert "dropped" in visit.notice
    patient = session(backlog_s=30)
    for _ in range(40):
        patient.listen(babble(0.1, MODEL_RATE), MODEL_RATE)
    assert patient.dropped_samples == 0
    assert patient.notice is None


def test_a_burst_after_a_stall_does_not_delay_the_mirror_for_ever() -> None:
    clock = HandClock()
    visit = session(clock)
    stream = visit.pictures()
    take(stream, 12)
    microphone(clock, visit, babble(1.0, MODEL_RATE))
    for _ in range(6):  # packets that were stuck on the way arrive within a moment
        clock.plan(1.2, lambda: visit.listen(babble(1.0, MODEL_RATE), MODEL_RATE))
    take(stream, 48)
    assert visit.dropped_samples > 0
    assert visit.mirror_delay_s < 5


def test_another_rate_or_a_silent_microphone_ends_what_it_said() -> None:
    clock = HandClock()
    visit = session(clock)
    stream = visit.pictures()
    take(stream, 12)
    microphone(clock, visit, babble(0.8, MODEL_RATE))
    take(stream, 60)
    microphone(clock, visit, babble(0.8, 48_000), 48_000)
    sound = sound_of(take(stream, 60))
    assert np.abs(sound).max() > 0.05
    assert not sound[-12_000:].any()


@pytest.mark.parametrize(
    ("samples", "rate"),
    [(np.zeros((4, 2), np.float32), 16_000), (np.zeros(4, np.int16), 16_000), (np.full(4, np.inf), 16_000)]
    + [(np.zeros(4, np.float32), rate) for rate in (0, -1, 3, 10**9)],
)
def test_bad_sound_is_refused_and_the_session_goes_on(samples, rate) -> None:
    visit = session()
    with pytest.raises(LiveTalkError):
        visit.listen(samples, rate)
    with pytest.raises(LiveTalkError):
        visit.play(samples, rate)
    take(visit.pictures(), 12)


def test_too_short_and_too_long_clips_are_refused() -> None:
    visit = session()
    with pytest.raises(LiveTalkError, match="at least"):
        visit.play(np.zeros(80, np.float32), 16_000)
    with pytest.raises(LiveTalkError, match="5 minutes"):
        visit.play(np.zeros(301 * 8_000, np.float32), 8_000)


def test_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(LiveTalkError, match="mirror"):
        session(mode="opera")


def test_stop_ends_the_stream_and_closing_the_stream_stops() -> None:
    visit = session()
    stream = visit.pictures()
    take(stream, 12)
    with pytest.raises(LiveTalkError, match="already"):
        next(visit.pictures())
    visit.stop()
    assert list(stream) == []
    assert visit.state == "stopped"
    other = session()
    stream = other.pictures()
    next(stream)
    stream.close()
    assert other.state == "stopped"


def test_two_sessions_never_meet() -> None:
    def run(visits: list[Session]) -> list[np.ndarray]:
        streams = [visit.pictures() for visit in visits]
        taken: list[list] = [[] for _ in visits]
        for visit, seed in zip(visits, (1, 2), strict=False):
            visit.play(babble(2.0, seed=seed), PLAYBACK_RATE)
        for _ in range(12):
            for stream, pieces in zip(streams, taken, strict=True):
                pieces.append(next(stream))
        return [film(pieces) for pieces in taken]

    def other() -> Session:
        return Session(tiny_models(), tiny_identity(1), seed=8, clock=HandClock())

    together = run([session(), other()])
    assert np.array_equal(together[0], run([session()])[0])
    assert not np.array_equal(together[0], together[1])


def test_real_threads_and_the_real_clock() -> None:
    """One thread talks, one takes; every sample said in time is shown, in order."""
    visit = Session(tiny_models(), tiny_identity(), clock=SystemClock())
    said = babble(1.0, MODEL_RATE)

    def talk() -> None:
        clock = SystemClock()
        lock = threading.Condition()
        for start in range(0, len(said), 1_600):
            visit.listen(said[start : start + 1_600], MODEL_RATE)
            with lock:
                clock.wait(lock, 0.05)

    speaker = threading.Thread(target=talk)
    stream = visit.pictures()
    pieces = take(stream, 4)
    speaker.start()
    while not any(piece.speaking for piece in pieces):
        pieces += take(stream, 4)
    threading.Timer(0.2, visit.stop).start()
    pieces += list(stream)
    speaker.join()
    film(pieces)
    facts = visit.facts()
    assert facts["real_time_factor"] > 0
    assert facts["first_picture_ms"] > 0
    assert facts["state"] == "stopped"


def test_late_is_said() -> None:
    clock = HandClock()
    visit = session(clock)
    stream = visit.pictures()
    take(stream, 9)
    clock.now_s += 5
    take(stream, 9)
    assert visit.late_s > 4


def test_fragments_are_what_a_player_needs() -> None:
    visit = session()
    packer = Packer(TINY.height, TINY.width, "jpeg")
    stream = visit.fragments(packer)
    visit.play(babble(2.0), PLAYBACK_RATE)
    fragments = list(itertools.islice(stream, 6))
    visit.interrupt()
    flush = next(stream)
    header, parts, sound = unpack(fragments[-1].payload)
    assert header["facts"]["state"] == "speaking"
    assert len(parts) == fragments[-1].pictures == 4
    assert len(sound) == 4 * 1500 * 2
    assert flush.pictures == 0
    assert flush.generation == 1
    assert unpack(flush.payload)[0]["flush"]


def test_cancel_scope_counts() -> None:
    scope = CancelScope()
    assert scope.is_current(0)
    assert scope.cancel() == 1
    assert not scope.is_current(0)
    assert scope.generation == 1


# ---------------------------------------------------------------- the avatar


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    return Avatar(tiny_models())


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)


def test_render_writes_a_whole_clip(avatar, portrait, tmp_path) -> None:
    told = []
    path = avatar.render(
        portrait,
        (babble(2.2, 44_100), 44_100),
        out=tmp_path / "deep" / "a.mp4",
        progress=lambda done_s, total_s: told.append((done_s, total_s)),
    )
    with av.open(str(path)) as clip:
        pictures = sum(1 for _ in clip.decode(video=0))
        assert clip.streams.video[0].average_rate == 16
        assert clip.streams.video[0].width == TINY.width
    with av.open(str(path)) as clip:
        samples = sum(frame.samples for frame in clip.decode(audio=0))
    assert pictures == 36
    assert samples / PLAYBACK_RATE == pytest.approx(36 / 16, abs=1 / 16)
    assert told[-1] == (pytest.approx(2.25), pytest.approx(2.2))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_nothing_half_written_remains(avatar, portrait, tmp_path) -> None:
    broken = np.concatenate([babble(2.0), np.full(10, np.nan, np.float32)])
    with pytest.raises(LiveTalkError, match="not finite"):
        avatar.render(portrait, (broken, PLAYBACK_RATE), out=tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_render_is_the_performers_pictures(avatar, portrait) -> None:
    speech = babble(1.7)
    clip = film(list(avatar.clip(portrait, (speech, PLAYBACK_RATE), seed=4)))
    again = film(list(avatar.clip(portrait, (speech, PLAYBACK_RATE), seed=4)))
    assert np.array_equal(clip, again)
    assert len(clip) == 28


def test_avatar_opens_sessions_and_warms_up(avatar, portrait) -> None:
    avatar.warm_up()
    visit = avatar.session(portrait, "she smiles", seed=1, clock=HandClock())
    assert len(film(take(visit.pictures(), 20))) >= 20
    assert avatar.preset is TINY


def test_the_front_door_is_light() -> None:
    assert set(dir(livetalk)) == {"Avatar", "LiveTalkError", "Performer", "Session", "__version__", "load"}
    assert livetalk.Session is Session
    with pytest.raises(AttributeError, match="nonsense"):
        _ = livetalk.nonsense
