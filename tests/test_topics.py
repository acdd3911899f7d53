"""Topics: well written, found by other words than their own, silent about everything else, mindful of what was said."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from livetalk.eval.topics import Question, evaluate_topics, load_questions
from livetalk.stream.talkers.protocol import Message
from livetalk.stream.talkers.replies import Replies, name_in
from livetalk.stream.talkers.topics import Retrieval, load_topics, plain_words
from livetalk.types import LiveTalkError

QUESTIONS = Path(__file__).parent / "data" / "questions.json"
NOON = datetime(2026, 11, 22, 15, 20)


@pytest.fixture(scope="module")
def replies() -> Replies:
    return Replies(lambda: NOON)


def converse(replies: Replies, *turns: str, **options) -> list[str]:
    history: list[Message] = []
    for text in turns:
        answer = replies.answer(text, history, **options)
        history += [Message("visitor", text), Message("avatar", answer.text)]
    return [message.text for message in history[1::2]]


def test_topics_are_complete_and_short() -> None:
    topics = load_topics().topics
    assert len(topics) >= 40
    assert len({topic.name for topic in topics}) == len(topics)
    for topic in topics:
        assert 4 <= len(topic.questions) <= 10, topic.name
        assert 1 <= len(topic.replies) <= 4, topic.name
        for line in (*topic.replies, *topic.without, *topic.more, *topic.why):
            sentences = re.split(r"(?<=[.?!])\s+", line)
            assert len(sentences) <= 4, line
            assert all(len(sentence.split()) <= 25 for sentence in sentences), line
            assert line.isascii() and " ".join(line.split()) == line, line
        assert topic.follow in ("", "more", "why") and topic.needs in ("", "name", "last_reply", "last_words")
        assert bool(topic.needs) == bool(topic.without), topic.name


def test_no_question_belongs_to_two_topics() -> None:
    asked = [tuple(plain_words(question)) for topic in load_topics().topics for question in topic.questions]
    assert sorted(asked) == sorted(set(asked))


def test_every_question_of_a_topic_finds_it() -> None:
    data = load_topics()
    retrieval = Retrieval(data)
    lost = [
        (question, topic.name, match and match.topic.name)
        for topic in data.topics
        for question in topic.questions
        if (match := retrieval.find(question)) is None or match.topic is not topic
    ]
    assert lost == []


def test_held_out_questions_typed() -> None:
    figures = evaluate_topics(load_questions(QUESTIONS))
    assert figures["in_topic"] >= 60 and figures["out_of_topic"] >= 30
    assert figures["right"] >= 0.9 * figures["in_topic"], figures["failures"]
    assert figures["intruders"] == 0, figures["failures"]


def test_held_out_questions_are_held_out() -> None:
    known = {tuple(plain_words(question)) for topic in load_topics().topics for question in topic.questions}
    assert [q.text for q in load_questions(QUESTIONS) if tuple(plain_words(q.text)) in known] == []
    names = {topic.name for topic in load_topics().topics}
    assert {name for question in load_questions(QUESTIONS) for name in question.topics} <= names


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    for name in ("empty.json", "missing.json"):
        with pytest.raises(LiveTalkError, match="in_topic"):
            load_questions(tmp_path / name)


def test_an_opener_does_not_hide_the_question(replies: Replies) -> None:
    assert replies.answer("Hello, can you hear me?").topic == "hear"
    assert replies.answer("Hello.").topic == "hello"


def test_time_and_date_come_from_the_clock(replies: Replies) -> None:
    assert "3:20 PM" in replies.answer("What time is it?").text
    assert "Sunday, November 22nd, 2026" in replies.answer("What is the date today?").text


def test_replies_take_turns(replies: Replies) -> None:
    jokes = converse(replies, "Tell me a joke.", "Another joke please.", "Tell me a joke.", "One more.")
    assert len(set(jokes)) == 4
    first, second = converse(replies, "What is photosynthesis?", "Who is the king of Spain?")
    assert first != second and {first, second} <= set(load_topics().refusals)


def test_more_and_why_continue_the_last_topic(replies: Replies) -> None:
    topic = next(topic for topic in load_topics().topics if topic.name == "what is livetalk")
    lines = converse(replies, "What is LiveTalk?", "Tell me more.", "Why?", "Tell me more.", "Tell me more.")
    assert lines[0] == topic.replies[0]
    assert [lines[1], lines[3]] == list(topic.more)
    assert lines[2] == topic.why[0]
    assert lines[4].startswith("That is all")


def test_more_of_nothing_is_said_to_be_nothing(replies: Replies) -> None:
    assert converse(replies, "Tell me more.")[0].startswith("That is all")


def test_a_reply_that_was_cut_short_is_continued(replies: Replies) -> None:
    history = [Message("visitor", "What is LiveTalk?"), Message("avatar", "LiveTalk lets a portrait")]
    assert replies.answer("Tell me more.", history).topic == "what is livetalk"
    assert replies.answer("Say that again.", history).text == "LiveTalk lets a portrait"


def test_repeating_needs_something_to_repeat(replies: Replies) -> None:
    assert "not said anything" in converse(replies, "Repeat that.")[0]
    joke, again = converse(replies, "Tell me a joke.", "Repeat that.")
    assert joke == again
    assert converse(replies, "How old are you?", "What did I just say?")[1] == "I understood: How old are you."


def test_a_name_given_by_the_instructions(replies: Replies) -> None:
    assert name_in("You are Ada. You like tea.") == "Ada"
    assert name_in("Be friendly. Your name is Grace.") == "Grace"
    assert name_in("You are a helpful person.") == name_in("You are The Boss") == name_in("") == ""
    assert replies.answer("What is your name?", name="Ada").text == "My name is Ada."
    assert "no name" in replies.answer("What is your name?").text


@pytest.mark.parametrize(
    "text",
    [
        "Wie heißt du und was kannst du?",
        "¿Cómo te llamas?",
        "你叫什么名字?",
        "Erzähl mir einen Witz bitte.",
        "Qui es tu?",
    ],
)
def test_other_languages_get_an_honest_sentence(replies: Replies, text: str) -> None:
    assert replies.answer(text).text in load_topics().english_only


def test_english_is_not_taken_for_another_language(replies: Replies) -> None:
    for question in load_questions(QUESTIONS):
        assert not replies.is_foreign(question.text), question.text


def test_nothing_to_answer_does_not_break(replies: Replies) -> None:
    for text in ("", "?!", "...", "7", "{time}", "x" * 2000):
        assert replies.answer(text).text
    assert replies.answer("What did I say?", [Message("visitor", "{time}")]).text == "I understood: {time}."


def test_the_domain_ear_decides_ties_and_rescues() -> None:
    retrieval = Retrieval(load_topics())
    assert retrieval.find("camp old is a downside") is None
    rescued = retrieval.find("camp old is a downside", "is it cold outside")
    assert rescued is not None and rescued.topic.name == "weather"


def test_figures_count_every_question() -> None:
    questions = [Question("What is LiveTalk?", ("hello",)), Question("xyzzy", ("hello",)), Question("How old are you?")]
    figures = evaluate_topics(questions)
    assert (figures["in_topic"], figures["out_of_topic"]) == (2, 1)
    assert (figures["right"], figures["wrong"], figures["missed"], figures["intruders"]) == (0, 1, 1, 1)
    assert len(figures["failures"]) == 3
