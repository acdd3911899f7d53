"""Turns and replies on a real session with tiny networks: guesses, interruptions, what was heard, talkers that fail."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from livetalk.stream import conversation as conversation_module
from livetalk.stream.conversation import Conversation
from livetalk.stream.reply import Reply
from livetalk.stream.talk import TalkSession
from livetalk.stream.talkers.protocol import Heard, Message, Persona, SpeechPiece, TalkerError, VisitorTurn
from livetalk.stream.turns import TurnTaker
from livetalk.types import MODEL_RATE, PICTURES_PER_SECOND, PLAYBACK_RATE, LiveTalkError, TextDelta
from tests.live import HandClock, sound_of, tiny_identity, tiny_models

WORD_S = 0.4
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class LoudDetector:
    """Voice is whatever is loud."""

    def __call__(self, samples: np.ndarray) -> float:
        return 1.0 if np.abs(samples).max() > 0.02 else 0.0

    def reset(self) -> None:
        pass


class Scripted:
    """A talker that says what a function of the turn says, a word per piece, a tone each."""

    name, title, speculative = "scripted", "Scripted", True

    def __init__(self, answer: Callable[[VisitorTurn, list[Message]], list] | None = None) -> None:
        self.answer = answer or (lambda turn, _: [Heard("hello"), *words(WORDS)])
        self.busy = threading.Event()
        self.cancels: list[float | None] = []
        self.heard_samples = 0
        self.turns: list[VisitorTurn] = []
        self.histories: list[list[Message]] = []
        self.started: list[Persona] = []
        self.closed = False

    def start(self, persona: Persona) -> None:
        self.started.append(persona)

    def hear(self, samples: np.ndarray) -> None:
        self.heard_samples += len(samples)

    def forget(self) -> None:
        self.heard_samples = 0

    def turn(self, turn, history):
        self.turns.append(turn)
        self.histories.append(list(history))
        for event in self.answer(turn, list(history)):
            if isinstance(event, Exception):
                raise event
            yield event

    def cancel(self, heard_s: float | None = None) -> None:
        self.cancels.append(heard_s)

    def close(self) -> None:
        self.closed = True


def words(said: list[str], with_text: bool = True) -> list:
    tone = 0.3 * np.sin(np.arange(int(WORD_S * PLAYBACK_RATE)) * 0.1).astype(np.float32)
    pieces = [SpeechPiece(tone, PLAYBACK_RATE, f"{word} " if with_text else "") for word in said]
    return pieces if with_text else [TextDelta(" ".join(said)), *pieces]


class StageClock(HandClock):
    """A clock that stands still while the talker's thread has something to do."""

    visit: TalkSession

    def wait(self, changed: threading.Condition, timeout_s: float | None) -> None:
        talk = self.visit.conversation
        settled = changed.wait_for(lambda: not talk.is_busy, 20.0)
        assert settled, "the talker never came to rest"
        if self.visit._has_news():
            return
        super().wait(changed, timeout_s)


def conversation(*talkers: Scripted) -> tuple[TalkSession, StageClock]:
    clock = StageClock()
    visit = TalkSession(
        tiny_models(), tiny_identity(), talkers or (Scripted(),), Persona(), TurnTaker(LoudDetector()), clock=clock
    )
    clock.visit = visit
    return visit, clock


def say(clock: StageClock, visit: TalkSession, seconds: float, after_s: float = 0.0, silence_s: float = 2.0) -> float:
    """Plans a microphone that brings a voice and then silence; returns when the voice ends on the clock."""
    packet = 512
    voice = np.full(int(seconds * MODEL_RATE), 0.2)
    sound = np.concatenate([voice, np.zeros(int(silence_s * MODEL_RATE))]).astype(np.float32)
    for start in range(0, len(sound) - packet, packet):
        at = after_s + (start + packet) / MODEL_RATE
        clock.plan(at, lambda here=start: visit.listen(sound[here : here + packet], MODEL_RATE))
    return clock() + after_s + seconds


def take(stream, clock: StageClock, seconds: float) -> list:
    """Pieces until so much time has passed on the clock."""
    until, pieces = clock() + seconds, []
    while clock() < until:
        pieces.append(next(stream))
    return pieces


def shown(pieces: list) -> list:
    """Pieces as a player shows them: what is void is replaced."""
    kept: list = []
    for piece in pieces:
        kept = [old for old in kept if old.first_picture < piece.first_picture]
        if kept and kept[-1].first_picture + len(kept[-1].pictures) > piece.first_picture:
            old = kept.pop()
            count = piece.first_picture - old.first_picture
            part = {"pictures": old.pictures[:count], "sound": old.sound[: count * 1500]}
            kept.append(type(old)(**{**vars(old), **part}))
        kept.append(piece)
    return [piece for piece in kept if len(piece.pictures)]


def lines(visit: TalkSession) -> list[tuple[str, str]]:
    return [(line.role, line.text) for line in visit.conversation.transcript.lines]


def test_a_turn_is_answered_soon_after_it_ends() -> None:
    visit, clock = conversation()
    stream = visit.pictures()
    take(stream, clock, 2.0)
    begun = clock()
    ended = say(clock, visit, 1.5, silence_s=8.0)
    pieces = take(stream, clock, 8.0)
    film = shown(pieces)
    for before, after in itertools.pairwise(film):
        assert after.first_picture == before.first_picture + len(before.pictures)
    sound = sound_of(film)
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    spoken_s = (loud[-1] - loud[0]) / PLAYBACK_RATE
    assert spoken_s == pytest.approx(len(WORDS) * WORD_S, abs=0.05), "said once, without a gap"
    assert lines(visit) == [("visitor", "hello"), ("avatar", " ".join(WORDS))]
    assert visit.reply_ms is not None
    assert 550 <= visit.reply_ms < 1000
    first_s = film[0].first_picture / PICTURES_PER_SECOND + loud[0] / PLAYBACK_RATE
    stream_ended_s = visit._performer._playback.position_s - (clock() - ended)
    assert first_s - stream_ended_s == pytest.approx(visit.reply_ms / 1000, abs=0.07)
    assert visit.late_s == 0
    assert begun < ended
    visit.stop()


def test_a_guess_is_never_heard_if_the_visitor_goes_on() -> None:
    talker = Scripted()
    visit, clock = conversation(talker)
    stream = visit.pictures()
    take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=0.38)
    say(clock, visit, 1.0, after_s=1.38, silence_s=1.0)
    pieces = take(stream, clock, 3.0)
    quiet = [piece for piece in pieces if piece.first_picture / PICTURES_PER_SECOND < 2.0 + 1.0 + 0.38 + 1.0 + 0.4]
    assert not sound_of(quiet).any()
    assert len(talker.turns) == 2
    assert len(talker.turns[1].samples) > len(talker.turns[0].samples)
    assert talker.cancels[:1] in ([None], [])
    take(stream, clock, 5.0)
    assert lines(visit) == [("visitor", "hello"), ("avatar", " ".join(WORDS))]
    visit.stop()


@pytest.mark.parametrize("with_text", [True, False], ids=["words with the sound", "text beside the sound"])
def test_an_interruption_is_silent_and_history_keeps_what_was_heard(with_text: bool) -> None:
    answers = iter([[Heard("tell me"), *words(WORDS, with_text)], [Heard("stop it"), *words(["fine"])]])
    talker = Scripted(lambda *_: next(answers))
    visit, clock = conversation(talker)
    stream = visit.pictures()
    take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=3.0)
    say(clock, visit, 1.0, after_s=4.0, silence_s=4.0)
    pieces = take(stream, clock, 9.0)
    film = shown(pieces)
    heard = next(line for line in visit.conversation.transcript.lines if line.role == "avatar")
    assert heard.is_cut
    assert heard.is_final
    count = len(heard.text.split())
    assert heard.text == " ".join(WORDS[:count])
    assert 2 <= count <= 8
    sound = sound_of(film)
    loud = np.abs(sound) > 0.01
    starts = np.flatnonzero(loud)
    gap = np.flatnonzero(np.diff(starts) > 0.3 * PLAYBACK_RATE)
    first_s = (starts[gap[0]] - starts[0]) / PLAYBACK_RATE
    assert count == int(first_s / WORD_S + 0.2), "the words kept are those whose sound was shown"
    assert talker.histories[1] == [Message("visitor", "tell me"), Message("avatar", heard.text)]
    assert [line for line in lines(visit) if line[0] == "visitor"] == [("visitor", "tell me"), ("visitor", "stop it")]
    generations = [piece.generation for piece in pieces]
    assert generations == sorted(generations)
    visit.stop()


def test_a_noise_without_words_lets_the_reply_go_on() -> None:
    answers = iter([[Heard("count"), *words(WORDS)], [Heard("")]])
    visit, clock = conversation(Scripted(lambda *_: next(answers)))
    stream = visit.pictures()
    take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=3.0)
    say(clock, visit, 0.6, after_s=4.0, silence_s=8.0)
    take(stream, clock, 12.0)
    spoken = " ".join(text for role, text in lines(visit) if role == "avatar").split()
    assert sorted(set(spoken), key=WORDS.index) == WORDS, "every word was said"
    assert len(spoken) <= len(WORDS) + 1
    assert [text for role, text in lines(visit) if role == "visitor"] == ["count", ""]
    visit.stop()


def test_its_own_echo_is_no_turn() -> None:
    answers = iter([[Heard("count"), *words(WORDS)], [Heard("three four five"), *words(["what"])]])
    visit, clock = conversation(Scripted(lambda *_: next(answers)))
    stream = visit.pictures()
    take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=3.0)
    say(clock, visit, 0.6, after_s=4.0, silence_s=8.0)
    take(stream, clock, 12.0)
    assert "what" not in " ".join(text for _, text in lines(visit))
    assert lines(visit)[-1][1].endswith("ten")
    visit.stop()


def test_typed_words_are_a_turn_and_interrupt() -> None:
    talker = Scripted(lambda turn, _: words(WORDS) if turn.text == "first" else words(["second"]))
    visit, clock = conversation(talker)
    stream = visit.pictures()
    take(stream, clock, 2.0)
    visit.write("  first ")
    take(stream, clock, 2.5)
    visit.write("and now?")
    take(stream, clock, 3.0)
    said = lines(visit)
    assert said[0] == ("visitor", "first")
    assert said[1][1].split() == WORDS[: len(said[1][1].split())]
    assert len(said[1][1].split()) < len(WORDS)
    assert said[2:] == [("visitor", "and now?"), ("avatar", "second")]
    with pytest.raises(LiveTalkError, match="characters"):
        visit.write("   ")
    visit.stop()


def test_a_talker_that_fails_hands_its_turn_to_the_next() -> None:
    first = Scripted(lambda *_: [TalkerError("No credits are left.")])
    second = Scripted()
    second.title = "The other one"
    visit, clock = conversation(first, second)
    stream = visit.pictures()
    take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=4.0)
    take(stream, clock, 8.0)
    assert visit.notice == "No credits are left. The other one answers instead."
    assert lines(visit) == [("visitor", "hello"), ("avatar", " ".join(WORDS))]
    assert first.closed
    assert visit.facts()["talker"] == "The other one"
    visit.stop()


def test_the_last_talker_that_breaks_down_leaves_a_listening_face() -> None:
    visit, clock = conversation(Scripted(lambda *_: [Heard("hello"), ValueError("secret detail")]))
    stream = visit.pictures()
    take(stream, clock, 2.0)
    say(clock, visit, 1.0, silence_s=4.0)
    take(stream, clock, 4.0)
    assert visit.notice == "Scripted broke down (ValueError)."
    assert visit.state == "listening"
    assert lines(visit) == [("visitor", "hello")]
    visit.stop()


def test_news_of_the_transcript_are_told_once() -> None:
    visit, clock = conversation()
    stream = visit.pictures()
    take(stream, clock, 2.0)
    visit.write("hello")
    take(stream, clock, 6.0)
    news = visit.facts()["lines"]
    assert [(line["role"], line["is_final"]) for line in news] == [("visitor", True), ("avatar", True)]
    assert visit.facts()["lines"] == []
    assert visit.conversation.transcript.as_text().count("\n") == 2
    visit.stop()


def test_text_beside_the_sound_is_spread_over_it() -> None:
    reply = Reply(1, VisitorTurn(text="x"), 0, is_sure=True, text="a few words that take a while to say")
    pieces = [SpeechPiece(np.zeros(8_000, np.float32), 16_000) for _ in range(5)]
    for number, piece in enumerate(pieces):
        reply.note_said(piece, 8 * (number + 1))
    reply.is_finished = True
    assert reply.spoken_text == reply.text
    assert reply.heard_before(24) == "a few words that take"
    assert reply.rest(2, 24).text == " a while to say"
    assert reply.heard_s(24) == pytest.approx(1.5)


def test_another_mood_and_another_face_in_mid_conversation() -> None:
    visit, clock = conversation()
    stream = visit.pictures()
    before = take(stream, clock, 3.0)
    visit.write("hello")
    avatar = visit._performer._maker._models
    other_words = avatar.identity(_portrait(0), "a person laughs happily")
    visit.change(other_words)
    pieces = take(stream, clock, 2.0)
    visit.change(tiny_identity(7))
    pieces += take(stream, clock, 6.0)
    film = shown(before + pieces)
    for one, after in itertools.pairwise(film):
        assert after.first_picture == one.first_picture + len(one.pictures)
    assert visit.late_s == 0
    assert lines(visit)[-1] == ("avatar", " ".join(WORDS)), "nothing said was lost"
    own, other = (tiny_models().vae.decode(tiny_identity(number).portrait_latent) for number in (0, 7))
    last = torch.from_numpy(film[-1].pictures[-1]).permute(2, 0, 1) / 127.5 - 1
    assert (last - other[0, :, 0]).abs().mean() < (last - own[0, :, 0]).abs().mean()
    visit.stop()


def _portrait(seed: int) -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_talker_waits_until_the_first_pictures_of_its_reply_have_left(monkeypatch) -> None:
    monkeypatch.setattr(conversation_module, "BEGINNING_S", 60.0)
    changed = threading.Condition()
    talk = Conversation([Scripted()], Persona(), TurnTaker(LoudDetector()), changed, lambda: 0.0, lambda: 0)
    with changed:
        talk.write("hello")
        reply = talk.reply
        assert changed.wait_for(lambda: reply.is_enough, 20.0)
        assert not changed.wait_for(lambda: len(reply.waiting) > 3, 0.2), "three words are enough to begin with"
        reply.has_left = True
        changed.notify_all()
        assert changed.wait_for(lambda: reply.is_finished, 20.0)
        assert len(reply.waiting) == len(WORDS)
        talk.write("and now")
        assert changed.wait_for(lambda: talk.reply is not reply and talk.reply.is_enough, 20.0)
        talk.close()
    talk.join()
    assert not talk._thread.is_alive(), "nor is the end waited for"


def test_pictures_that_leave_let_the_talker_go_on(monkeypatch) -> None:
    monkeypatch.setattr(conversation_module, "BEGINNING_S", 60.0)
    visit, clock = conversation()
    clock.wait = lambda changed, timeout_s: HandClock.wait(clock, changed, timeout_s)  # it never comes to rest
    stream = visit.pictures()
    next(stream)
    visit.write("hello")
    while not next(stream).speaking:
        pass
    reply = visit.conversation.reply
    while not reply.has_left:
        next(stream)
    stream.close()
    visit.stop()


def test_a_talker_listens_on_when_the_first_pictures_after_an_interruption_are_made(monkeypatch) -> None:
    monkeypatch.setattr(conversation_module, "CALMING_S", 60.0)
    visit, clock = conversation()
    talker = visit.conversation.talker
    stream = visit.pictures()
    next(stream)
    visit.write("hello")
    while not next(stream).speaking:
        pass
    take(stream, clock, 1.0)
    with visit._changed:
        heard, voice = talker.heard_samples, np.full(MODEL_RATE, 0.2, np.float32)
        visit.listen(voice, MODEL_RATE)
        assert not visit.conversation.is_calm, "that was an interruption"
        assert not visit._changed.wait_for(lambda: talker.heard_samples > heard, 0.2), "a machine may have few cores"
    while not visit.conversation.is_calm:
        next(stream)
    with visit._changed:
        assert visit._changed.wait_for(lambda: talker.heard_samples > heard, 20.0)
    visit.stop()
