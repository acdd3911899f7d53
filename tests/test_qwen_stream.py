"""Qwen3-Omni, streamed: the same codes and the same sound as ``generate``, but while it thinks; with random weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import tiny_llms
import torch

from livetalk.stream.talkers.local import NO_SPEECH, UNWRITTEN, Line
from livetalk.stream.talkers.protocol import (
    LONGEST_PIECE_S,
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    VisitorTurn,
)
from livetalk.stream.talkers.qwen_omni import Omni, OmniTalker, _inputs, load_omni, omni_talker
from livetalk.stream.talkers.qwen_stream import (
    FIRST_FRAMES,
    SAMPLE_RATE,
    Manner,
    OmniReply,
    Tokens,
    UpcomingText,
    Waveform,
)
from livetalk.stream.talkers.relay import Relay
from livetalk.types import TextDelta

PATIENCE_S = 60.0
SOUND = np.random.default_rng(0).normal(0, 0.1, 33_333).astype(np.float32)
SPEECH = VisitorTurn(SOUND)
GREEDY = Manner(
    {"max_new_tokens": 12, "do_sample": False, "min_new_tokens": 12},
    {"max_new_tokens": 22, "do_sample": False, "min_new_tokens": 15, "repetition_penalty": 1.05},
)
CONVERSATIONS = {
    "sound": [Line("visitor", "", SOUND)],
    "text": [Line("visitor", "How are you?")],
    "both, several turns": [
        *(Line("visitor", "Hello."), Line("avatar", "Hi!"), Line("visitor", "", SOUND[:20_000])),
        *(Line("avatar", "Sure."), Line("visitor", "", SOUND)),
    ],
}


@pytest.fixture(scope="module")
def omni(tmp_path_factory) -> Omni:
    return load_omni(str(tiny_llms.save_tiny_omni(tmp_path_factory.mktemp("omni"))), device="cpu")


class Script:
    """Makes the thinker write given texts, one after the other, through its own ``generate``; keeps the prompts."""

    def __init__(self, omni: Omni) -> None:
        self.prompts: list[str] = []
        self._tokenizer = omni.tokenizer
        self._texts: list[list[int]] = []
        self._tokens: list[int] = []
        thinker = omni.model.thinker
        self._hooks = [
            thinker.register_forward_pre_hook(self._read, with_kwargs=True),
            thinker.lm_head.register_forward_hook(self._choose),
        ]

    def write(self, *texts: str) -> None:
        self._texts = [[*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id] for text in texts]
        self.prompts.clear()

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _read(self, _, __, inputs) -> None:
        if inputs["input_ids"].shape[1] > 1:
            self.prompts.append(self._tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=False))
            self._tokens = list(self._texts.pop(0))

    def _choose(self, _, __, logits):
        logits[:, -1, self._tokens.pop(0)] += 1e4
        return logits


@pytest.fixture
def script(omni: Omni):
    script = Script(omni)
    yield script
    script.remove()


@pytest.fixture
def talker(omni: Omni, script: Script):
    manner = Manner({"max_new_tokens": 60, "do_sample": False}, GREEDY.talker)
    talker = OmniTalker(lambda: omni, "tiny Qwen3-Omni", manner)
    script.write("Hello.")
    talker.start(Persona())
    yield talker
    talker.close()


def whole(omni: Omni, inputs: Mapping[str, torch.Tensor], manner: Manner, voice: str):
    """What ``generate`` makes: tokens, codes ``[1, codebooks, frames]``, sound."""
    codes: list[torch.Tensor] = []
    hook = omni.model.code2wav.register_forward_pre_hook(lambda _, given: codes.append(given[0]))
    try:
        tokens, sound = omni.model.generate(
            **inputs,
            speaker=voice,
            thinker_eos_token_id=omni.model.config.im_end_token_id,
            **{f"thinker_{name}": value for name, value in manner.thinker.items()},
            **{f"talker_{name}": value for name, value in manner.talker.items()},
        )
    finally:
        hook.remove()
    return tokens[0, inputs["input_ids"].shape[1] :].tolist(), codes[0], sound[0, 0].numpy()


def streamed(omni: Omni, inputs: Mapping[str, torch.Tensor], manner: Manner, voice: str):
    """The same, streamed."""
    relay, tokens = Relay(), []
    reply = OmniReply(omni.model, inputs, omni.model.config.talker_config.speaker_id[voice.lower()], manner, relay)
    relay.run(lambda: reply.think(tokens.append), reply.speak)
    frames = list(relay)
    waveform = Waveform(omni.model.code2wav)
    sound = np.concatenate([*(waveform.push(frame) for frame in frames), waveform.finish()])
    return tokens, torch.stack(frames, dim=2), sound


@pytest.mark.parametrize(("conversation", "voice"), zip(CONVERSATIONS, ("Ethan", "Chelsie", "Aiden"), strict=True))
def test_streamed_is_generate(omni: Omni, conversation: str, voice: str) -> None:
    inputs = _inputs(omni, CONVERSATIONS[conversation], "Be nice.")
    tokens, codes, sound = whole(omni, inputs, GREEDY, voice)
    streamed_tokens, streamed_codes, streamed_sound = streamed(omni, inputs, GREEDY, voice)
    assert streamed_tokens == tokens
    assert codes.shape[2] >= 15 and len(codes.unique()) > 10, "a reply to compare"
    assert torch.equal(streamed_codes, codes)
    assert len(streamed_sound) == len(sound) and np.abs(sound).max() > 0.05
    np.testing.assert_allclose(streamed_sound, sound, atol=3e-4)  # float32; see the test below for the exact sum


def test_voices_and_words_matter(omni: Omni) -> None:
    """What the test above compares would notice a wrong voice, prompt or reply."""
    inputs = _inputs(omni, CONVERSATIONS["sound"], "Be nice.")
    codes = streamed(omni, inputs, GREEDY, "Ethan")[1]
    assert not torch.equal(codes, streamed(omni, inputs, GREEDY, "Aiden")[1])
    other = _inputs(omni, [Line("visitor", "", SOUND[::-1].copy())], "Be nice.")
    assert not torch.equal(codes, streamed(omni, other, GREEDY, "Ethan")[1])


@pytest.mark.parametrize("text", ["H", "Hello, you there!"])
def test_streamed_is_generate_to_the_end_of_the_text(omni: Omni, script: Script, text: str) -> None:
    manner = Manner({"max_new_tokens": 40, "do_sample": False}, GREEDY.talker)
    inputs = _inputs(omni, CONVERSATIONS["sound"], "Be nice.")
    script.write(text, text)
    tokens, codes, _ = whole(omni, inputs, manner, "Ethan")
    assert omni.tokenizer.decode(tokens, skip_special_tokens=True) == text
    streamed_tokens, streamed_codes, _ = streamed(omni, inputs, manner, "Ethan")
    assert streamed_tokens == tokens and torch.equal(streamed_codes, codes)


def test_nothing_to_say_is_no_speech(omni: Omni, script: Script) -> None:
    script.write("")
    relay, tokens = Relay(), []
    manner = Manner({"max_new_tokens": 40, "do_sample": False}, GREEDY.talker)
    reply = OmniReply(omni.model, _inputs(omni, CONVERSATIONS["text"], ""), 0, manner, relay)
    relay.run(lambda: reply.think(tokens.append), reply.speak)
    assert list(relay) == [] and tokens == [omni.tokenizer.eos_token_id]


def test_speech_begins_while_the_reply_is_written(omni: Omni) -> None:
    relay, tokens, spoken = Relay(), [], threading.Event()
    speaker = omni.model.config.talker_config.speaker_id["ethan"]
    inputs = _inputs(omni, CONVERSATIONS["sound"], "Be nice.")
    reply = OmniReply(omni.model, inputs, speaker, GREEDY, relay)
    written_before: list[int] = []

    def take(token: int) -> None:
        tokens.append(token)
        if len(tokens) == 4:
            assert spoken.wait(PATIENCE_S)

    relay.run(lambda: reply.think(take), reply.speak)
    for _ in relay:
        written_before.append(len(tokens))
        spoken.set()
    assert written_before[0] <= 4 and len(tokens) == 12


def test_sound_is_exact_however_it_is_cut(omni: Omni) -> None:
    """Beyond the attention window, in double precision: what is left is not even rounding of the samples."""
    decoder = copy.deepcopy(omni.model.code2wav).double()
    torch.manual_seed(0)
    codes = torch.randint(0, tiny_llms.CODES, (1, tiny_llms.CODEBOOKS, 90))
    assert codes.shape[2] > decoder.config.sliding_window
    with torch.no_grad():
        at_once = decoder(codes)[0, 0].numpy()
    assert at_once.std() > 0.05
    waveform, parts = Waveform(decoder), []
    for number in range(codes.shape[2]):
        parts.append(waveform.push(codes[:, :, number]))
        if number in (1, 2, 50):  # asked for early, beside what comes by itself
            parts.append(waveform.finish())
    parts.append(waveform.finish())
    assert len(waveform.finish()) == 0
    assert max(map(len, parts)) <= LONGEST_PIECE_S * SAMPLE_RATE
    np.testing.assert_allclose(np.concatenate(parts), at_once, atol=1e-7)


def test_the_first_sound_comes_after_few_frames(omni: Omni) -> None:
    waveform = Waveform(omni.model.code2wav)
    frame = torch.zeros(1, tiny_llms.CODEBOOKS, dtype=torch.long)
    lengths = [len(waveform.push(frame)) for _ in range(FIRST_FRAMES)]
    assert lengths[:-1] == [0] * (FIRST_FRAMES - 1) and lengths[-1] > 0.25 * SAMPLE_RATE


def test_tokens_are_awaited_and_the_last_one_is_not_spoken() -> None:
    relay = Relay()
    tokens, end, pad = Tokens(relay, end=9, most=5), torch.tensor([[-1.0]]), torch.tensor([[-2.0]])
    text = UpcomingText(tokens, lambda token: torch.tensor([[float(token)]]), end, pad)
    got: list[float] = []
    reader = threading.Thread(target=lambda: got.extend(text[:, step].item() for step in range(5)))
    reader.start()
    for token in (1, 2, 3, 9):
        tokens.put(token)
    reader.join(PATIENCE_S)
    assert got == [2, 3, -1, -2, -2] and text.shape[1] > 10**9
    cut = Tokens(relay, end=9, most=3)
    for token in (1, 2, 3):
        cut.put(token)
    assert [cut.get(index) for index in range(3)] == [1, 2, None]


def test_calling_off_wakes_whoever_waits_for_words() -> None:
    relay = Relay()
    tokens = Tokens(relay, end=9, most=5)
    got: list[int | None] = []
    reader = threading.Thread(target=lambda: got.append(tokens.get(0)))
    reader.start()
    relay.cancel()
    reader.join(PATIENCE_S)
    assert got == [None]


def test_sound_in_text_and_speech_out(talker: OmniTalker, script: Script) -> None:
    script.write("I am fine.", "How are you?")
    events = list(talker.turn(SPEECH, ()))
    speech = [event for event in events if isinstance(event, SpeechPiece)]
    assert events[0] == Heard(UNWRITTEN) and Heard("How are you?") in events
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "I am fine."
    assert speech and all(piece.sample_rate == SAMPLE_RATE and not piece.text for piece in speech)
    assert max(len(piece.samples) for piece in speech) <= LONGEST_PIECE_S * SAMPLE_RATE
    assert sum(len(piece.samples) for piece in speech) > 15 * 1_900


def test_without_words_nothing_is_said(talker: OmniTalker, script: Script) -> None:
    script.write(f"{NO_SPEECH} Hm.")
    assert list(talker.turn(SPEECH, ())) == [Heard("")]
    script.write("Yes.", "Still there?")
    assert TextDelta("Y") in list(talker.turn(SPEECH, ()))


def test_the_prompt_is_the_conversation(talker: OmniTalker, script: Script) -> None:
    script.write("Aye.", "One?")
    list(talker.turn(SPEECH, ()))
    talker.start(Persona(instructions="You are a pirate.", voice="Chelsie"))
    script.write("Aye.")
    events = list(talker.turn(VisitorTurn(text="Two?"), [Message("visitor", "One?"), Message("avatar", "Aye.")]))
    assert events[0] == Heard("Two?")
    lines = script.prompts[0].split("<|im_start|>")[1:]
    assert lines[0].startswith("system\nYou are a pirate. ")
    assert lines[1] == f"user\n<|audio_start|>{'<|audio_pad|>' * 27}<|audio_end|><|im_end|>\n"
    assert lines[2:] == ["assistant\nAye.<|im_end|>\n", "user\nTwo?<|im_end|>\n", "assistant\n"]


def test_cancel_ends_the_reply_and_the_next_one_works(talker: OmniTalker, script: Script) -> None:
    until: dict[str, Callable] = {
        "the first word": lambda event: isinstance(event, TextDelta),
        "the first sound": lambda event: isinstance(event, SpeechPiece),
    }
    for is_reached in until.values():
        script.write("I am fine, thank you.", "unwanted")
        reply = talker.turn(SPEECH, ())
        while not is_reached(next(reply)):
            pass
        talker.cancel(0.2)
        assert list(reply) == []
    script.write("Yes.", "Still there?")
    events = list(talker.turn(SPEECH, ()))
    assert Heard("Still there?") in events and any(isinstance(event, SpeechPiece) for event in events)


def test_two_conversations_share_a_model_one_after_the_other(talker: OmniTalker, omni: Omni) -> None:
    """A second visitor's turn waits, and can be called off while it does."""
    with omni.reply:
        threading.Timer(0.1, talker.cancel).start()
        assert list(talker.turn(VisitorTurn(text="Hello?"), ())) == [Heard("Hello?")]


def test_a_model_that_fails_is_a_sentence(talker: OmniTalker, omni: Omni, script: Script) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    hook = omni.model.talker.register_forward_pre_hook(fail)
    script.write("I am fine.", "unwanted")
    with pytest.raises(TalkerError, match=r"tiny Qwen3-Omni ran out of memory") as caught:
        list(talker.turn(SPEECH, ()))
    hook.remove()
    assert caught.value.lasting
    script.write("Yes.")
    assert any(isinstance(event, SpeechPiece) for event in talker.turn(VisitorTurn(text="Still there?"), ()))


def test_voices_are_those_of_the_model(talker: OmniTalker) -> None:
    talker.start(Persona(voice="Chelsie"))
    with pytest.raises(TalkerError, match=r"no voice 'Nobody'.*Aiden, Chelsie, Ethan") as caught:
        talker.start(Persona(voice="Nobody"))
    assert not caught.value.lasting


def test_what_cannot_be_loaded_is_a_sentence(tmp_path) -> None:
    with pytest.raises(TalkerError, match=r"could not be loaded: .* downloaded once: check the network"):
        load_omni(str(tmp_path / "nothing"), device="cpu")


def test_name_and_licence_are_in_the_title() -> None:
    assert "Qwen/Qwen3-Omni-30B-A3B-Instruct" in omni_talker().title and "Apache-2.0" in omni_talker().title
