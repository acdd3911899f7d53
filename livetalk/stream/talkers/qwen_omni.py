"""Qwen3-Omni hears the visitor and speaks itself: thinker, talker and decoder of one model, all streaming.

How they stream is in ``qwen_stream``. The prompt holds the current turn and the last two before it as sound, older ones
as text, and of the avatar's lines what was heard. As with ``gemma``, the answer does not wait for a transcript: the
thinker writes it afterwards, and ``Heard`` comes again with it. Speech is held back until it is clear that there were
words at all, which is before its first piece is ready.

This module knows nothing of turn taking, what was heard, or pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetalk.stream.talkers.local import (
    TRANSCRIBE,
    Line,
    LocalTalker,
    Opening,
    Wording,
    instructions,
    line_of,
    plain,
    write,
)
from livetalk.stream.talkers.machine import bytes_of, check_memory, choose_device, loading, missing, number_format, once
from livetalk.stream.talkers.protocol import (
    Heard,
    Message,
    Persona,
    SpeechPiece,
    TalkerError,
    TalkerEvent,
    VisitorTurn,
)
from livetalk.stream.talkers.qwen_stream import SAMPLE_RATE, Manner, OmniReply, Waveform
from livetalk.stream.talkers.relay import Relay, taking
from livetalk.types import MODEL_RATE, TextDelta

REPOSITORY = "Qwen/Qwen3-Omni-30B-A3B-Instruct"
LICENCES = {REPOSITORY: "Apache-2.0"}
LEAST_BYTES = 70.5e9
"""GPU memory for the published weights in bfloat16."""

TRANSCRIPT_TOKENS = 256
_ROLES = {"visitor": "user", "avatar": "assistant"}


@dataclass(frozen=True)
class Omni:
    """Loaded weights, shared by all conversations of a process.

    Attributes:
        model: ``Qwen3OmniMoeForConditionalGeneration``.
        tokenizer: its tokenizer.
        features: its sound features.
        device: where sound and tokens go.
        reply: taken while a reply is made; the model makes one at a time.
    """

    model: Any
    tokenizer: Any
    features: Any
    device: torch.device
    reply: threading.Lock = field(default_factory=threading.Lock)


@once
def load_omni(repository: str = REPOSITORY, revision: str = "main", device: str = "auto") -> Omni:
    """The model, once for each process: bfloat16 on a GPU, float32 on a CPU.

    Args:
        repository: at the Hugging Face Hub, or a folder.
        revision: branch, tag or commit; a commit pins the weights.
        device: see ``choose_device``.

    Raises:
        TalkerError: it cannot be loaded here.
    """
    place = choose_device(device)
    dtype = number_format(place)
    with loading(repository):
        from transformers import (
            AutoTokenizer,
            Qwen3OmniMoeConfig,
            Qwen3OmniMoeForConditionalGeneration,
            WhisperFeatureExtractor,
        )

        config = Qwen3OmniMoeConfig.from_pretrained(repository, revision=revision)
        if place.type == "cuda":
            with torch.device("meta"):
                empty = Qwen3OmniMoeForConditionalGeneration(config)
            check_memory(repository, bytes_of(empty, dtype), place)
        tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision)
        features = WhisperFeatureExtractor.from_pretrained(repository, revision=revision)
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            repository,
            revision=revision,
            dtype=dtype,
            # Straight to the GPU: few machines have as much memory beside it.
            device_map=None if place.type == "cpu" else {"": place},
        )
    return Omni(model.eval(), tokenizer, features, place)


class OmniTalker(LocalTalker):
    """See the module's docstring; one conversation.

    Args:
        load: gives the model; called at the first ``start``.
        title: what the page calls it.
        manner: how the model generates.
    """

    name = "qwen3-omni"

    def __init__(self, load: Callable[[], Omni], title: str, manner: Manner | None = None) -> None:
        super().__init__(title)
        self._load, self._manner = load, manner or Manner()
        self._omni: Omni | None = None
        self._speaker = 0

    def start(self, persona: Persona) -> None:
        """See ``Talker.start``; voices are those of the model (Ethan, Chelsie, Aiden)."""
        first_time = self._omni is None
        self._omni = self._omni or self._load()
        self._instructions = instructions(persona.instructions)
        speakers = self._omni.model.config.talker_config.speaker_id or {}
        wanted = persona.voice.lower() or next((name for name in ("ethan", *speakers) if name in speakers), "")
        if wanted not in speakers:
            voices = ", ".join(name.capitalize() for name in speakers) or "none"
            raise TalkerError(f"Qwen3-Omni has no voice {persona.voice!r}. Its voices: {voices}.", lasting=False)
        self._speaker = speakers[wanted]
        if first_time:  # first calls are slow on every device; nobody waits for these
            for _ in self.turn(VisitorTurn(text="Say hello."), ()):
                pass

    def _answer(self, relay: Relay, turn: VisitorTurn, history: Sequence[Message]) -> Iterator[TalkerEvent]:
        assert self._omni is not None
        with taking(self._omni.reply, relay.stopping) as taken:
            if not taken:
                return
            inputs = _inputs(self._omni, [*self._recent.attach(history), line_of(turn)], self._instructions)
            reply = OmniReply(self._omni.model, inputs, self._speaker, self._manner, relay)
            relay.run(partial(self._think, relay, self._omni, reply, turn), reply.speak)
            try:
                yield from _in_order(relay, Waveform(self._omni.model.code2wav), listened=turn.text is None)
            finally:
                relay.cancel()
                relay.join()  # the model remembers positions in one place: until the threads are out, hands off

    def _think(self, relay: Relay, omni: Omni, reply: OmniReply, turn: VisitorTurn) -> None:
        """A thread's work: the reply's ``Heard`` and text, then ``Heard`` again with the transcript."""
        opening, wording = Opening(listened=turn.text is None), Wording(omni.tokenizer)

        def hand_on(events: Sequence[Heard | str]) -> None:
            for event in events:
                relay.put(TextDelta(event) if isinstance(event, str) else event)

        reply.think(lambda token: hand_on(opening.push(wording.push(token))))
        hand_on(opening.finish())
        if turn.text is not None or opening.is_nothing or relay.stopping.is_set():
            return
        words = write(
            omni.model.thinker,
            _inputs(omni, [line_of(turn, TRANSCRIBE)], ""),
            omni.tokenizer,
            relay.stopping,
            max_new_tokens=TRANSCRIPT_TOKENS,
            eos_token_id=omni.model.config.im_end_token_id,
            do_sample=False,
        )
        if plain(words) and not relay.stopping.is_set():
            relay.put(Heard(" ".join(plain(words).split())))


def _in_order(relay: Relay, waveform: Waveform, listened: bool) -> Iterator[TalkerEvent]:
    """What the threads give, frames of codes as speech, but none before it is clear that words were heard."""
    held: list[SpeechPiece] | None = [] if listened else None
    for item in relay:
        if isinstance(item, Tensor):
            pieces = _pieces(waveform.push(item))
            if held is None:
                yield from pieces
            else:
                held += pieces
            continue
        yield item
        if item == Heard(""):
            return
        yield from held or ()
        held = None
    if not relay.stopping.is_set():
        yield from _pieces(waveform.finish())


def _pieces(sound: np.ndarray) -> list[SpeechPiece]:
    return [SpeechPiece(sound, SAMPLE_RATE)] if len(sound) else []


def _inputs(omni: Omni, lines: Sequence[Line], system: str) -> dict[str, Tensor]:
    """Arguments of the thinker's ``generate`` for a conversation whose last line is the visitor's.

    Source: the chat template and ``Qwen3OmniMoeProcessor`` of the repository.
    """
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

    tokenizer = omni.tokenizer
    sounds = [line.sound for line in lines if line.sound is not None]
    inputs: dict[str, Tensor] = {}
    counts: Iterator[int] = iter(())
    if sounds:
        made = omni.features(
            sounds,
            sampling_rate=MODEL_RATE,
            padding=True,
            truncation=False,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = made["attention_mask"]
        inputs = {"input_features": made["input_features"], "feature_attention_mask": mask}
        counts = iter(_get_feat_extract_output_lengths(mask.sum(-1)).tolist())
    text = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for line in lines:
        heard = ""
        if line.sound is not None:
            heard = f"{tokenizer.audio_bos_token}{tokenizer.audio_token * next(counts)}{tokenizer.audio_eos_token}"
        text += f"<|im_start|>{_ROLES[line.role]}\n{heard}{line.text}<|im_end|>\n"
    tokens = tokenizer(f"{text}<|im_start|>assistant\n", return_tensors="pt")["input_ids"]
    inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: tensor.to(omni.device) for name, tensor in inputs.items()}


def omni_talker(repository: str = REPOSITORY, revision: str = "main", device: str = "auto") -> OmniTalker:
    """A talker for one conversation; nothing is loaded before its ``start``. For arguments see ``load_omni``."""
    licence = LICENCES.get(repository, "licence: see its page")
    return OmniTalker(partial(load_omni, repository, revision, device), f"Qwen3-Omni ({repository}, {licence})")


def why_not_omni() -> str | None:
    """Why this talker cannot work on this machine, in a sentence; None = it can. Loads nothing."""
    return missing(("transformers", "accelerate"), LEAST_BYTES)
