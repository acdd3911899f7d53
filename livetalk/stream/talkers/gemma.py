"""Gemma 4 hears the visitor and writes the answer; a voice says it clause by clause while it is still being written.

The model takes sound directly (25 tokens a second): the current turn and the last two before it as they sounded, older
ones as text. The answer starts without waiting for a transcript, because writing one first would cost as much time as
the whole rest; the same model writes the transcript afterwards, while the voice is still speaking, and ``Heard`` comes
again with it. Whether there were words at all is clear at once: the model is told to answer nothing else with
``NO_SPEECH``.

The processor of the repository is bypassed (it wants packages for video): sound goes through the feature extractor, the
chat is marked up here. This module knows nothing of turn taking, what was heard, or pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from livetalk.stream.talkers.clauses import ClauseSplitter
from livetalk.stream.talkers.local import TRANSCRIBE, Line, LocalTalker, Opening, instructions, line_of, plain, write
from livetalk.stream.talkers.machine import (
    HEADROOM_BYTES,
    as_talker_error,
    bytes_of,
    check_memory,
    choose_device,
    loading,
    missing,
    number_format,
    once,
)
from livetalk.stream.talkers.pocket import LANGUAGE, PocketVoice, Voice, load_pocket
from livetalk.stream.talkers.protocol import Heard, Message, Persona, SpeechPiece, TalkerEvent, VisitorTurn
from livetalk.stream.talkers.relay import Relay
from livetalk.types import TextDelta

SMALL, LARGE = "google/gemma-4-E2B-it", "google/gemma-4-E4B-it"
LICENCES = {SMALL: "Apache-2.0", LARGE: "Apache-2.0"}
LEAST_BYTES = {SMALL: 5.2e9, LARGE: 10.4e9}
"""GPU memory for the weights when the table of per-layer embeddings stays in the machine's memory."""

MOST_TOKENS = 256
FEATURE_STRIDE = 4
"""Spectrogram rows (10 ms each) to one token."""

_ROLES = {"visitor": "user", "avatar": "model"}
_COMPLETE = object()
"""Behind the last word of an answer."""


@dataclass(frozen=True)
class Gemma:
    """Loaded weights, shared by all conversations of a process.

    Attributes:
        model: ``Gemma4ForConditionalGeneration`` without its eyes.
        tokenizer: its tokenizer.
        features: its sound features.
        device: where sound and tokens go.
    """

    model: Any
    tokenizer: Any
    features: Any
    device: torch.device


@once
def load_gemma(
    repository: str = SMALL, revision: str = "main", device: str = "auto", table_on_cpu: bool | None = None
) -> Gemma:
    """The model, once for each process: bfloat16 on a GPU, float32 on a CPU.

    Args:
        repository: at the Hugging Face Hub, or a folder.
        revision: branch, tag or commit; a commit pins the weights.
        device: see ``choose_device``.
        table_on_cpu: keep the table of per-layer embeddings (nearly half of the weights, of which a token needs one
            row) in the machine's memory; None = if the GPU is too small for it.

    Raises:
        TalkerError: it cannot be loaded here.
    """
    place = choose_device(device)
    with loading(repository):
        from transformers import AutoConfig, AutoTokenizer, Gemma4AudioFeatureExtractor, Gemma4ForConditionalGeneration

        config = AutoConfig.from_pretrained(repository, revision=revision)
        dtype = number_format(place)
        on_cpu = plan_table(repository, config, place, dtype, table_on_cpu)
        tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
        features = Gemma4AudioFeatureExtractor.from_pretrained(repository, revision=revision)
        model = Gemma4ForConditionalGeneration.from_pretrained(repository, revision=revision, dtype=dtype)
        place_weights(_without_eyes(model), place, on_cpu)
    return Gemma(model.eval(), tokenizer, features, place)


def plan_table(repository: str, config: Any, place: torch.device, dtype: torch.dtype, wanted: bool | None) -> bool:
    """Whether the table of per-layer embeddings has to stay on the CPU; loads nothing.

    Raises:
        TalkerError: the weights do not fit, or not the way it is ``wanted``.
    """
    if place.type != "cuda":
        return False
    from transformers import Gemma4ForConditionalGeneration

    with torch.device("meta"):
        empty = _without_eyes(Gemma4ForConditionalGeneration(config))
    whole = bytes_of(empty, dtype)
    least = whole - bytes_of(empty.get_per_layer_input_embeddings(), dtype)
    free, _ = torch.cuda.mem_get_info(place)
    on_cpu = free < whole + HEADROOM_BYTES if wanted is None else wanted
    check_memory(repository, least if on_cpu else whole, place)
    return on_cpu


def _without_eyes(model: Any) -> Any:
    model.model.vision_tower = model.model.embed_vision = None
    return model


def place_weights(model: Any, place: torch.device, table_on_cpu: bool) -> None:
    """Move a model to ``place``; its table of per-layer embeddings stays where it is if asked for."""
    if not table_on_cpu:
        model.to(place)
        return
    table = model.get_per_layer_input_embeddings()
    home = table.weight.device
    model.set_per_layer_input_embeddings(torch.nn.Identity())
    model.to(place)
    model.set_per_layer_input_embeddings(table)
    table.register_forward_pre_hook(lambda _, tokens: tuple(each.to(home) for each in tokens))
    table.register_forward_hook(lambda _, __, rows: rows.to(place))


class GemmaTalker(LocalTalker):
    """See the module's docstring; one conversation.

    Args:
        load: gives the model; called at the first ``start``.
        load_voice: gives the voice, after the model.
        title: what the page calls it.
    """

    name = "gemma"

    def __init__(self, load: Callable[[], Gemma], load_voice: Callable[[], Voice], title: str) -> None:
        super().__init__(title)
        self._load, self._load_voice = load, load_voice
        self._loaded: tuple[Gemma, Voice] | None = None

    def start(self, persona: Persona) -> None:
        """See ``Talker.start``; voices are those of the voice."""
        first_time = self._loaded is None
        if self._loaded is None:
            self._loaded = self._load(), self._load_voice()
        self._instructions = instructions(persona.instructions)
        self._loaded[1].use(persona.voice)
        if first_time:
            self._warm_up(*self._loaded)

    def _answer(self, relay: Relay, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        """Text to clauses to speech, as it comes."""
        assert self._loaded is not None
        gemma, voice = self._loaded
        lines = [*self._recent.attach(history), line_of(turn)]
        relay.run(partial(self._think, relay, gemma, turn, lines))
        splitter, first = ClauseSplitter(), True
        for item in relay:
            if isinstance(item, Heard):
                yield item
                if not item.text:
                    return
                continue
            for clause in splitter.finish() if item is _COMPLETE else splitter.push(item):
                words = clause if first else f" {clause}"
                yield TextDelta(words)
                yield from _speak(voice, words, relay.stopping)
                first = False

    def _think(self, relay: Relay, gemma: Gemma, turn: VisitorTurn, lines: Sequence[Line]) -> None:
        """A thread's work: the answer's ``Heard`` and text, ``_COMPLETE``, then ``Heard`` with the transcript."""
        opening = Opening(listened=turn.text is None)

        def take(text: str) -> None:
            for event in opening.push(text):
                relay.put(event)

        _write(gemma, lines, self._instructions, relay.stopping, take)
        for event in opening.finish():
            relay.put(event)
        relay.put(_COMPLETE)
        if turn.text is not None or opening.is_nothing or relay.stopping.is_set():
            return
        words = plain(_write(gemma, [line_of(turn, TRANSCRIBE)], "", relay.stopping, do_sample=False))
        if words and not relay.stopping.is_set():
            relay.put(Heard(" ".join(words.split())))

    def _warm_up(self, gemma: Gemma, voice: Voice) -> None:
        """First calls are slow on every device; nobody waits for these."""
        stop = threading.Event()
        try:
            _write(gemma, [line_of(VisitorTurn())], self._instructions, stop, max_new_tokens=2)
            for _ in voice.speak("Hello.", stop):
                pass
        except Exception as error:
            raise as_talker_error(error, self.title) from error


def _speak(voice: Voice, words: str, stop: threading.Event) -> Iterator[SpeechPiece]:
    for piece in voice.speak(words, stop):
        if stop.is_set():
            return
        yield piece


def _write(
    gemma: Gemma,
    lines: Sequence[Line],
    system: str,
    stop: threading.Event,
    take: Callable[[str], object] | None = None,
    **options: Any,
) -> str:
    """What the model writes next; plain text only: neither control tokens nor thoughts."""
    tokenizer = gemma.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(tokenizer.eot_token)]
    options = {
        "max_new_tokens": MOST_TOKENS,
        "eos_token_id": ends,
        "suppress_tokens": [token for token in tokenizer.all_special_ids if token not in ends],
        **options,
    }
    return write(gemma.model, _inputs(gemma, lines, system), tokenizer, stop, take, **options)


def _inputs(gemma: Gemma, lines: Sequence[Line], system: str) -> dict[str, torch.Tensor]:
    """Arguments of ``generate`` for a conversation whose last line is the visitor's.

    Source: the chat template and ``Gemma4Processor`` of the repositories.
    """
    tokenizer = gemma.tokenizer
    sounds = [line.sound for line in lines if line.sound is not None]
    inputs: dict[str, torch.Tensor] = {}
    counts: Iterator[int] = iter(())
    if sounds:
        inputs = dict(gemma.features(sounds, return_tensors="pt"))
        counts = iter(inputs["input_features_mask"][:, ::FEATURE_STRIDE].sum(-1).tolist())
    start, end = tokenizer.sot_token, tokenizer.eot_token
    text = tokenizer.bos_token + (f"{start}system\n{system}{end}\n" if system else "")
    for line in lines:
        heard = ""
        if line.sound is not None:
            heard = f"{tokenizer.boa_token}{tokenizer.audio_token * next(counts)}{tokenizer.eoa_token}"
        text += f"{start}{_ROLES[line.role]}\n{heard}{line.text}{end}\n"
    tokens = tokenizer(f"{text}{start}model\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
    inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: tensor.to(gemma.device) for name, tensor in inputs.items()}


def gemma_talker(
    repository: str = SMALL,
    revision: str = "main",
    device: str = "auto",
    table_on_cpu: bool | None = None,
    language: str = LANGUAGE,
) -> GemmaTalker:
    """A talker for one conversation; nothing is loaded before its ``start``. For arguments see the loaders."""
    load = partial(load_gemma, repository, revision, device, table_on_cpu)
    licence = LICENCES.get(repository, "licence: see its page")
    title = f"Gemma 4 ({repository}, {licence}), {PocketVoice.title}"
    return GemmaTalker(load, lambda: PocketVoice(load_pocket(language)), title)


def why_not_gemma(repository: str = SMALL) -> str | None:
    """Why this talker cannot work on this machine, in a sentence; None = it can. Loads nothing."""
    return missing(("transformers", "pocket_tts"), LEAST_BYTES.get(repository, 0.0))
