"""A session that goes on from its snapshot: the same pictures, the same words, a snapshot that does not grow."""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from livetalk.hub import load_models
from livetalk.media.pictures import load_portrait
from livetalk.media.sound import load_speech
from livetalk.stream.avatar import Avatar
from livetalk.stream.performer import Performer
from livetalk.stream.session import Session
from livetalk.stream.talkers.protocol import Heard, Message, Persona
from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND, PLAYBACK_RATE, AudioChunk, Pictures
from tests.live import HandClock, babble, film, live, sound_of, tiny_identity, tiny_models
from tests.test_conversation import Scripted, conversation, lines, shown, words
from tests.test_conversation import take as take_seconds
from tests.test_seams import EXAMPLES, pose_steps
from tests.tiny import TINY

TOLERANCE_LEVELS = 0.05
"""What pictures may differ by in the mean, of 255, when the window's keys were made again; mini is ten times better."""


class PlainUnpickler(pickle.Unpickler):
    """Refuses what must not cross a process border."""

    def find_class(self, module: str, name: str):
        assert module.split(".")[0] not in ("_thread", "threading", "io", "socket"), f"{module}.{name} in a snapshot"
        return super().find_class(module, name)


def travelled(snapshot):
    """The snapshot as another process gets it."""
    return PlainUnpickler(io.BytesIO(pickle.dumps(snapshot))).load()


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [x for item in value for x in tensors(item)] if isinstance(value, list | tuple) else []


def take(stream, pictures: int) -> list[Pictures]:
    pieces: list[Pictures] = []
    while sum(len(piece.pictures) for piece in pieces) < pictures:
        pieces.append(next(stream))
    return pieces


def two_ways(before: int, after: int = 40, said_s: float = 0.0) -> tuple[list[Pictures], list[Pictures]]:
    """What follows the first ``before`` pictures, uninterrupted, and resumed from a snapshot taken there."""
    visit = Session(tiny_models(), tiny_identity(), seed=3, clock=HandClock())
    stream = visit.pictures()
    if said_s:
        visit.play(babble(said_s), PLAYBACK_RATE)
    take(stream, before)
    snapshot = travelled(visit.snapshot())
    resumed = Avatar(tiny_models()).resume(snapshot, clock=HandClock())
    return take(stream, after), take(resumed.pictures(), after)


def differences(one: list[Pictures], other: list[Pictures]) -> np.ndarray:
    """Mean difference of every picture, in levels."""
    assert one[0].first_picture == other[0].first_picture
    ours, theirs = film(one), film(other)
    count = min(len(ours), len(theirs))
    return np.abs(ours[:count].astype(float) - theirs[:count]).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("before", [1, 5, 9, 14, 21, 30])
def test_a_young_stream_goes_on_bit_for_bit(before: int) -> None:
    """Up to where the window (9 latent frames) begins to roll, in the middle of chunks and at their borders."""
    assert not differences(*two_ways(before)).any()


@pytest.mark.parametrize("before", [34, 45, 70])
def test_an_old_stream_goes_on_within_the_tolerance(before: int) -> None:
    one, other = two_ways(before)
    assert differences(one, other).max() < TOLERANCE_LEVELS
    steps = np.abs(np.diff(film(one).astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert steps.mean() > 4 * TOLERANCE_LEVELS, "the tolerance would hide a face that stands still"


@pytest.mark.parametrize("before", [14, 50])
def test_speech_that_was_handed_on_is_said_to_its_end(before: int) -> None:
    one, other = two_ways(before, said_s=3.0)
    count = min(len(sound_of(one)), len(sound_of(other)))
    handed_on = 16 * 1500  # at least so much was there: a clip is taken in seconds ahead
    assert np.array_equal(sound_of(one)[: min(count, handed_on)], sound_of(other)[: min(count, handed_on)])
    assert sound_of(other).any() or before == 50


def test_a_guess_does_not_travel() -> None:
    clock = HandClock()
    performer = Performer(tiny_models(), tiny_identity(), 5, clock=clock)
    live(performer, clock, 21)
    left = performer.next_picture
    performer.hold(0.1)
    performer.push(AudioChunk(babble(1.0)))
    snapshot = performer.snapshot()
    performer.withdraw()
    assert snapshot.next_picture == left
    assert not snapshot.sound.playback.any()
    resumed = Performer(tiny_models(), tiny_identity(), 5, clock=HandClock())
    resumed.take_up(travelled(snapshot))
    ours, theirs = film(live(performer, clock, left + 20)), film(live(resumed, HandClock(), left + 1))
    assert np.array_equal(ours[: len(theirs)], theirs)


def test_numbers_go_on() -> None:
    clock = HandClock()
    visit = Session(tiny_models(), tiny_identity(), seed=3, clock=clock)
    stream = visit.pictures()
    take(stream, 20)
    visit.interrupt()
    pieces = take(stream, 20)
    elapsed_s = clock() - 100.0
    resumed = Avatar(tiny_models()).resume(travelled(visit.snapshot()), clock=HandClock())
    again = resumed.pictures()
    following = next(again)
    assert following.first_picture == pieces[-1].first_picture + len(pieces[-1].pictures)
    assert (following.generation, resumed.generation, resumed.seed) == (1, 1, 3)
    assert resumed.snapshot().elapsed_s == pytest.approx(elapsed_s, abs=1.0)
    assert resumed.interrupt() == 2


def test_size_does_not_depend_on_length_and_all_tensors_are_on_the_cpu() -> None:
    visit = Session(tiny_models(), tiny_identity(), clock=HandClock())
    stream = visit.pictures()
    sizes = []
    for _ in range(8):
        take(stream, 48)
        snapshot = visit.snapshot()
        sizes.append(len(pickle.dumps(snapshot)))
        assert all(tensor.device.type == "cpu" for tensor in tensors(snapshot))
        assert all(
            tensor.numel() == tensor.untyped_storage().nbytes() / tensor.itemsize for tensor in tensors(snapshot)
        )
    assert max(sizes) - min(sizes) < 4096, sizes  # the sound around the next chunk begins on a sample of its own
    assert max(sizes) < 100_000


def test_no_open_files_travel_with_it() -> None:
    visit = Session(tiny_models(), tiny_identity(), clock=HandClock())
    take(visit.pictures(), 30)
    through_a_queue = bytes(ForkingPickler.dumps(visit.snapshot()))
    assert b"rebuild_storage" not in through_a_queue
    assert b"_rebuild_tensor" in through_a_queue


def test_another_face_that_was_asked_for_is_drawn_by_the_next_process() -> None:
    visit, _ = conversation()
    stream = visit.pictures()
    take(stream, 30)
    visit.change(tiny_identity(1))
    resumed = Avatar(tiny_models()).resume(travelled(visit.snapshot()), [Scripted()], clock=HandClock())
    assert torch.equal(resumed.identity.portrait_latent, tiny_identity(1).portrait_latent)
    changed = film(take(resumed.pictures(), 40))[-1]
    stills = [tiny_models().vae.decode(tiny_identity(face).portrait_latent)[0, :, 0] for face in (0, 1)]
    old, new = (np.abs(changed - (still.permute(1, 2, 0).numpy() + 1) * 127.5).mean() for still in stills)
    assert new < old
    resumed.stop()
    visit.stop()


# ---------------------------------------------------------------- the conversation


def counting(turn, history: list[Message]) -> list:
    return [Heard(turn.text), *words([f"reply{len(history)}"])]


def test_the_conversation_goes_on_with_its_history_and_persona() -> None:
    visit, clock = conversation(Scripted(counting))
    stream = visit.pictures()
    take_seconds(stream, clock, 1.0)
    visit.conversation.change_persona(Persona("a pirate", "low"))
    visit.write("first question")
    take_seconds(stream, clock, 3.0)
    snapshot = travelled(visit.snapshot())
    assert lines(visit) == [("visitor", "first question"), ("avatar", "reply0")]

    talker = Scripted(counting)
    resumed = Avatar(tiny_models()).resume(snapshot, [talker])
    assert [(line.role, line.text) for line in resumed.conversation.transcript.lines] == lines(visit)
    following = resumed.pictures()
    next(following)
    resumed.write("second question")
    until = resumed.generation
    while not (talker.histories and resumed.conversation.transcript.lines[-1].text == "reply2"):
        next(following)
    assert talker.started == [Persona("a pirate", "low")]
    assert talker.histories == [[Message("visitor", "first question"), Message("avatar", "reply0")]]
    assert [line.number for line in resumed.conversation.transcript.lines] == [0, 1, 2, 3]
    assert resumed.conversation.transcript.lines[2].start_s >= visit.conversation.transcript.lines[0].start_s
    assert resumed.generation >= until
    resumed.stop()
    visit.stop()


def test_a_reply_that_is_being_said_ends_with_what_was_handed_on() -> None:
    visit, clock = conversation(Scripted(lambda *_: [Heard("go"), *words([f"w{n}" for n in range(30)])]))
    stream = visit.pictures()
    take_seconds(stream, clock, 1.0)
    visit.write("go")
    take_seconds(stream, clock, 2.0)
    snapshot = visit.snapshot()
    assert snapshot.conversation is not None
    line = snapshot.conversation.lines[-1]
    assert line.role == "avatar" and line.is_final and line.is_cut
    assert not visit.conversation.transcript.lines[-1].is_final, "a snapshot changes nothing"
    spoken = line.text.split()
    assert 4 < len(spoken) < 30
    resumed = Avatar(tiny_models()).resume(travelled(snapshot), [Scripted()], clock=HandClock())
    rest = sound_of(shown(take(resumed.pictures(), 140)))
    said_s = snapshot.stream.sound.playback_stop / PLAYBACK_RATE - snapshot.stream.next_picture / PICTURES_PER_SECOND
    assert np.flatnonzero(rest)[-1] / PLAYBACK_RATE == pytest.approx(said_s, abs=0.01)
    assert said_s < 5.0
    resumed.stop()
    visit.stop()


# ---------------------------------------------------------------- the embedded model


@functools.cache
def mini_films() -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Uninterrupted and resumed films that share a beginning, and its last picture; a face and a place each."""
    models = load_models("mini", device="cpu", dtype="float32")
    speech = load_speech(Path(EXAMPLES) / "speech" / "welcome.ogg", MODEL_RATE)
    loud = int(np.argmax(np.abs(speech) > 0.05))
    films = []
    for number, (cut, face) in enumerate([(70, "felix"), (97, "nora"), (110, "omar")]):
        portrait = load_portrait(EXAMPLES / "portraits" / f"{face}.png", models.preset.height, models.preset.width)
        clock, other_clock = HandClock(), HandClock()
        performer = Performer(models, models.identity(portrait.image, ""), number, clock=clock)
        idle = live(performer, clock, 20)
        performer.push(AudioChunk(speech[loud : loud + 3 * MODEL_RATE], MODEL_RATE))
        before = film(idle + live(performer, clock, cut))
        snapshot = travelled(performer.snapshot())
        resumed = Performer(models, snapshot.identity, snapshot.seed, clock=other_clock)
        resumed.take_up(snapshot)
        ours, theirs = (film(live(p, c, cut + 24)) for p, c in ((performer, clock), (resumed, other_clock)))
        films.append((np.concatenate([before, ours]), np.concatenate([before, theirs]), len(before) - 1))
    return films


def test_mini_goes_on_with_nearly_the_same_pictures() -> None:
    for ours, theirs, seam in mini_films():
        count = min(len(ours), len(theirs))
        difference = np.abs(ours[:count].astype(float) - theirs[:count]).mean(axis=(1, 2, 3))
        assert difference.max() < TOLERANCE_LEVELS
        assert count > seam + 20


def test_minis_face_does_not_jump_at_the_seam() -> None:
    at_seams = [pose_steps(theirs)[seam] for _, theirs, seam in mini_films()]
    usual = np.concatenate([pose_steps(theirs) for _, theirs, _ in mini_films()])
    assert np.median(at_seams) <= 2 * np.median(usual), (at_seams, np.median(usual))


def test_tiny_window_is_what_these_tests_think() -> None:
    assert (TINY.rollout.window_frames, TINY.rollout.sink_frames) == (9, 3)
