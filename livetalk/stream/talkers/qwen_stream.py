"""Qwen3-Omni while it thinks: its speech starts after the first word of its text.

As published the model streams nothing: the thinker writes the whole reply, then the talker makes all of its codes, then
the decoder all of the sound. Here the three run side by side and give the same codes and the same sound:

* The **thinker** generates in one thread. The talker needs its hidden states only where the visitor's sound lies, so
  everything it needs is there after the prompt has been read; of the reply it takes nothing but the tokens.
* The **talker** generates in another thread. Each of its steps takes in the next token of the reply, or waits for it.
* The **decoder** turns frames of codes into sound as they come: its transformer keeps a cache, its convolutions get
  the frames they look back on, and sound is handed out by its absolute position, because every call makes a little
  less than its frames span (its convolutions look 23 ms ahead).

Source: ``Qwen3OmniMoeForConditionalGeneration.generate`` of transformers, whose two ``_get_talker_*`` methods are used.
This module knows nothing of conversations, tokenizers or voices' names.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from livetalk.stream.talkers.relay import Relay, TokenFeed, stop_when

SAMPLE_RATE = 24_000
SPECIAL_CODES = 1024
"""The last codes of the talker's vocabulary; of these it may only say the one that ends the speech."""

FIRST_FRAMES, NEXT_FRAMES = 4, 6
"""Frames of codes (80 ms each) to one piece of sound: little to begin with, then less than ``LONGEST_PIECE_S``."""

CONTEXT_FRAMES = 12
"""Frames that the decoder's convolutions get again; they look back 9.4 (kernels of 7 at 2 and at 4 samples a frame make
4.5 and 1.5, the first decoder block another 2.7, the rest 0.7)."""

_THINKER = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
_TALKER = {"max_new_tokens": 900, "do_sample": True, "temperature": 0.9, "top_k": 50, "repetition_penalty": 1.05}


@dataclass(frozen=True)
class Manner:
    """How the model generates.

    Attributes:
        thinker: arguments of its ``generate``; ``max_new_tokens`` must be among them.
        talker: arguments of its ``generate``.
    """

    thinker: Mapping[str, Any] = field(default_factory=lambda: _THINKER)
    talker: Mapping[str, Any] = field(default_factory=lambda: _TALKER)


class Tokens:
    """The reply's tokens, written by one thread and awaited by another.

    Args:
        relay: what can call the reply off.
        end: the token that ends a reply.
        most: a reply that gets this long is cut; like ``end``, its last token is not spoken.
    """

    def __init__(self, relay: Relay, end: int, most: int) -> None:
        self._relay, self._end, self._most = relay, end, most
        self._tokens: list[int] = []
        self._complete = False

    def put(self, token: int) -> None:
        """The next token."""
        with self._relay.changed:
            if token == self._end or len(self._tokens) == self._most - 1:
                self._complete = True
            elif not self._complete:
                self._tokens.append(token)
            self._relay.changed.notify_all()

    def finish(self) -> None:
        """No more tokens will come."""
        with self._relay.changed:
            self._complete = True
            self._relay.changed.notify_all()

    def get(self, index: int) -> int | None:
        """Token ``index`` of what is to be spoken; waits for it. None = the reply is shorter, or was called off."""
        relay = self._relay
        with relay.changed:
            relay.changed.wait_for(lambda: len(self._tokens) > index or self._complete or relay.stopping.is_set())
            return self._tokens[index] if len(self._tokens) > index else None

    def __len__(self) -> int:
        return len(self._tokens)


class UpcomingText:
    """Stands where the talker expects the rest of the reply as a tensor ``[1, tokens, D]``, and waits for each token.

    The talker only asks for ``shape[1]`` and, once in each step, for ``[:, step]``.

    Args:
        tokens: the reply; its first token is in the talker's prompt already.
        embed: token to ``[1, D]``.
        end: what follows the last token, ``[1, D]``.
        pad: what follows that, ``[1, D]``.
    """

    shape = (1, sys.maxsize)

    def __init__(self, tokens: Tokens, embed: Callable[[int], Tensor], end: Tensor, pad: Tensor) -> None:
        self._tokens, self._embed, self._end, self._pad = tokens, embed, end, pad

    def __getitem__(self, key: tuple[slice, int]) -> Tensor:
        index = key[1] + 1
        token = self._tokens.get(index)
        if token is not None:
            return self._embed(token)
        return self._end if index == len(self._tokens) else self._pad


class OmniReply:
    """One reply; ``think`` and ``speak`` are the work of two threads. One at a time for each model.

    Args:
        model: ``Qwen3OmniMoeForConditionalGeneration``.
        inputs: tokens and sound for the thinker, one sequence.
        speaker: number of the voice.
        manner: how to generate.
        relay: gets the frames of codes, ``[1, codebooks]`` each, and can call the reply off.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor], speaker: int, manner: Manner, relay: Relay) -> None:
        self._model, self._inputs, self._speaker, self._manner, self._relay = model, inputs, speaker, manner, relay
        self._tokens = Tokens(relay, model.config.im_end_token_id, manner.thinker["max_new_tokens"])
        self._read: dict[str, Tensor] = {}

    def think(self, take: Callable[[int], None]) -> None:
        """Write the reply; ``take`` gets each token."""
        language = self._model.thinker.model.language_model
        layer = language.layers[self._model.config.talker_config.accept_hidden_layer - 1]

        def push(token: int) -> None:
            self._tokens.put(token)
            take(token)

        hooks = [
            language.register_forward_pre_hook(
                lambda _, __, given: self._keep("embeds", given["inputs_embeds"]), with_kwargs=True
            ),
            layer.register_forward_hook(lambda _, __, output: self._keep("hidden", output)),
        ]
        try:
            self._model.thinker.generate(
                **self._inputs,
                **self._manner.thinker,
                eos_token_id=self._model.config.im_end_token_id,
                streamer=TokenFeed(push),
                stopping_criteria=stop_when(self._relay.stopping),
            )
        finally:
            self._tokens.finish()
            for hook in hooks:
                hook.remove()

    def speak(self) -> None:
        """Make the frames of codes, beginning after the first token."""
        first = self._tokens.get(0)
        if first is None:
            return
        talker, config = self._model.talker, self._model.config.talker_config
        vocabulary = config.text_config.vocab_size
        special = range(vocabulary - SPECIAL_CODES, vocabulary)
        hook = talker.register_forward_hook(lambda _, __, output: self._give(output.hidden_states[1]))
        try:
            talker.generate(
                **self._talker_inputs(first),
                **self._manner.talker,
                eos_token_id=config.codec_eos_token_id,
                suppress_tokens=[code for code in special if code != config.codec_eos_token_id],
                output_hidden_states=True,
                return_dict_in_generate=True,
                stopping_criteria=stop_when(self._relay.stopping),
            )
        finally:
            hook.remove()

    def _keep(self, name: str, tensor: Tensor) -> None:
        """The first of each kind belongs to the prompt."""
        self._read.setdefault(name, tensor)

    def _give(self, codes: Tensor | None) -> None:
        if codes is not None:
            self._relay.put(codes)

    def _embed(self, token: int) -> Tensor:
        """A token of the thinker as the thinker takes it in, ``[1, 1, D]``."""
        ids = self._inputs["input_ids"]
        return self._model.thinker.get_input_embeddings()(ids.new_tensor([[token]]))

    @torch.no_grad()
    def _talker_inputs(self, first: int) -> dict[str, Any]:
        """Arguments of the talker's ``generate``: the visitor's turns, and the reply as far as its first token."""
        model, config, ids = self._model, self._model.config, self._inputs["input_ids"]
        project = model.talker.text_projection
        bos, eos, pad = (
            project(self._embed(token))
            for token in (config.tts_bos_token_id, config.tts_eos_token_id, config.tts_pad_token_id)
        )
        length = ids.shape[1]
        starts = (ids[0] == config.im_start_token_id).nonzero().flatten().tolist()
        by_visitor = torch.zeros(length, dtype=torch.bool, device=ids.device)
        for start, stop in zip(starts, [*starts[1:], length], strict=True):
            by_visitor[start:stop] = ids[0, start + 1] == config.user_token_id
        sound = ids == config.thinker_config.audio_token_id
        visitor = model._get_talker_user_parts(0, length, sound, self._read["hidden"], self._read["embeds"])
        embeds = torch.cat([self._read["embeds"], self._embed(first)], dim=1)
        reply, reply_ids, _ = model._get_talker_assistant_parts(
            starts[-1], length + 1, self._speaker, embeds, pad, bos, eos
        )
        inputs = {
            "inputs_embeds": torch.cat([visitor[:, by_visitor], reply], dim=1),
            "talker_input_ids": torch.cat([ids[:, by_visitor], reply_ids], dim=1),
            "trailing_text_hidden": UpcomingText(
                self._tokens, lambda token: project(self._embed(token))[:, 0], eos[:, 0], pad[:, 0]
            ),
            "tts_pad_embed": pad,
        }
        inputs["attention_mask"] = torch.ones_like(inputs["talker_input_ids"])
        if "feature_attention_mask" in self._inputs:
            inputs["audio_feature_lengths"] = self._inputs["feature_attention_mask"].sum(dim=1)
        return inputs


class Waveform:
    """Frames of codes to sound, in the order they come.

    Args:
        decoder: the model's ``code2wav``.
    """

    def __init__(self, decoder: Any) -> None:
        from transformers import DynamicCache

        self._decoder = decoder
        self._cache = DynamicCache(config=decoder.config)
        self._waiting: list[Tensor] = []
        self._hidden: Tensor | None = None
        self._frames = 0
        self._sent = 0

    def push(self, codes: Tensor) -> np.ndarray:
        """One more frame, ``[1, codebooks]``: the sound that is certain now, float32 ``[n]``, often empty."""
        self._waiting.append(codes)
        wanted = NEXT_FRAMES if self._frames else FIRST_FRAMES
        return self.finish() if len(self._waiting) == wanted else np.zeros(0, np.float32)

    @torch.no_grad()
    def finish(self) -> np.ndarray:
        """The sound of all frames so far that was not given yet."""
        if not self._waiting:
            return np.zeros(0, np.float32)
        codes = torch.stack(self._waiting, dim=2)
        self._waiting = []
        hidden = self._hear(codes)
        self._frames += codes.shape[2]
        start = (self._frames - hidden.shape[1]) * int(self._decoder.total_upsample)
        sound = self._voice(hidden)[self._sent - start :]
        self._sent += len(sound)
        self._hidden = hidden[:, -CONTEXT_FRAMES:]
        return sound.float().cpu().numpy()

    def _hear(self, codes: Tensor) -> Tensor:
        """New codes ``[1, codebooks, frames]`` to hidden frames ``[1, frames, D]``, behind the ones kept."""
        decoder = self._decoder
        embeds = decoder.code_embedding(codes + decoder.code_offset).mean(1)
        done = decoder.pre_transformer(inputs_embeds=embeds, past_key_values=self._cache, use_cache=True)
        new = done.last_hidden_state
        return new if self._hidden is None else torch.cat([self._hidden, new], dim=1)

    def _voice(self, hidden: Tensor) -> Tensor:
        """Hidden frames to sound ``[n]``."""
        wave = hidden.permute(0, 2, 1)
        for blocks in self._decoder.upsample:
            for block in blocks:
                wave = block(wave)
        for block in self._decoder.decoder:
            wave = block(wave)
        return wave.clamp(-1, 1)[0, 0]
