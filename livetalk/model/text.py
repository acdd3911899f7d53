"""Prompt to text features: what every text encoder promises, the umT5 encoder, and one that needs no weights.

The network takes ``text_tokens`` rows of ``text_width`` numbers; rows behind the prompt are zero and take part in its
cross attention (spec section 4.2). The big umT5 encoder is needed once per prompt: results are kept in memory and on
disk under the hash of the prompt. The encoder itself is opened when a new prompt comes and let go when it is read; on
a GPU only one of its layers is there at a time.

This module does not know where weights come from, nor which prompts make sense for a model.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import logging
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from livetalk.model.storage import check_fit
from livetalk.types import LiveTalkError

logger = logging.getLogger(__name__)

REMEMBERED_PROMPTS = 64
LONGEST_PROMPT_CHARACTERS = 20_000
"""Characters that are looked at; far more than any encoder has rows for."""

FILLER_WORDS = frozenset({"a", "an", "and", "in", "is", "of", "on", "the", "to", "with", "while"})
"""Words that would use up rows of the weightless encoder and say nothing."""

UMT5_MAX_DISTANCE = 128
UMT5_EPS = 1e-6


class TextEncoder(Protocol):
    """What the rest of the house asks of a text encoder."""

    def encode(self, prompt: str) -> Tensor:
        """Float32 rows ``[1, text_tokens, text_width]`` on the CPU, zero behind the prompt."""


class WordsTextEncoder:
    """Every word is a fixed pseudo-random direction; no weights, the same on every machine.

    Vectors come from the hash of the word alone. Letter case, punctuation, emoji and ``FILLER_WORDS`` do not count;
    words beyond ``text_tokens`` are dropped.
    """

    def __init__(self, text_tokens: int, text_width: int) -> None:
        self.text_tokens = text_tokens
        self.text_width = text_width

    def encode(self, prompt: str) -> Tensor:
        """Rows ``[1, text_tokens, text_width]``: a unit vector per word, then zeros."""
        found = re.finditer(r"\w+", prompt[:LONGEST_PROMPT_CHARACTERS].lower())
        words = (match.group() for match in found if match.group() not in FILLER_WORDS)
        rows = torch.zeros(1, self.text_tokens, self.text_width)
        for row, word in enumerate(itertools.islice(words, self.text_tokens)):
            rows[0, row] = self._vector(word)
        return rows

    def _vector(self, word: str) -> Tensor:
        digest = hashlib.shake_256(word.encode("utf-8", "replace")).digest(2 * self.text_width)
        centred = np.frombuffer(digest, dtype="<u2").astype(np.float64) - (2**16 - 1) / 2
        return torch.from_numpy((centred / np.linalg.norm(centred)).astype(np.float32))


class UMT5TextEncoder:
    """The umT5 encoder of Wan 2.1 with a cache of prompts (spec section 4.2).

    Args:
        load_network: gives the transformers ``UMT5EncoderModel``; called for every prompt that is not in the cache,
            and nothing of what it gives is kept.
        tokenize: prompt and row count to ids and mask ``[1, text_tokens]``, right-padded.
        text_tokens, text_width: rows and width of the result.
        version: names the weights; part of the cache key.
        cache_folder: where rows are kept between runs; None = memory only.
    """

    def __init__(
        self,
        load_network: Callable[[], nn.Module],
        tokenize: Callable[[str, int], tuple[Tensor, Tensor]],
        text_tokens: int,
        text_width: int,
        version: str,
        cache_folder: Path | None = None,
    ) -> None:
        self.text_tokens = text_tokens
        self.text_width = text_width
        self.version = version
        self._load_network = load_network
        self._tokenize = tokenize
        self._cache_folder = cache_folder
        self._remembered: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, prompt: str) -> Tensor:
        """Rows ``[1, text_tokens, text_width]``, from the cache where possible."""
        cleaned = clean_prompt(prompt)
        key = hashlib.sha256(f"{self.version}\n{self.text_tokens}\n{cleaned}".encode("utf-8", "replace")).hexdigest()
        rows = self._remembered.get(key)
        if rows is None:
            rows = self._read(key)
        if rows is None:
            ids, mask = self._tokenize(cleaned, self.text_tokens)
            rows = embed(self._load_network(), ids, mask)[0, : int(mask.sum())].float().cpu()
            self._write(key, rows)
        self._remembered[key] = rows
        self._remembered.move_to_end(key)
        while len(self._remembered) > REMEMBERED_PROMPTS:
            self._remembered.popitem(last=False)
        padded = torch.zeros(1, self.text_tokens, self.text_width)
        padded[0, : len(rows)] = rows
        return padded

    def _read(self, key: str) -> Tensor | None:
        """Rows of an earlier run; None when there are none or the file is damaged."""
        path = self._cache_folder / f"{key}.safetensors" if self._cache_folder is not None else None
        if path is None or not path.is_file():
            return None
        try:
            rows = load_file(path)["rows"]
        except (OSError, SafetensorError, KeyError) as error:
            logger.warning("cached prompt %s cannot be read (%s); it is encoded again", path, error)
            return None
        return rows if rows.ndim == 2 and rows.shape[1] == self.text_width else None

    def _write(self, key: str, rows: Tensor) -> None:
        """Keep rows for the next run; a folder that cannot be written is no reason to fail."""
        if self._cache_folder is None:
            return
        try:
            self._cache_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._cache_folder, delete=False) as unfinished:
                unfinished.write(save({"rows": rows.contiguous()}))
            os.replace(unfinished.name, self._cache_folder / f"{key}.safetensors")  # noqa: PTH105
        except OSError as error:
            logger.warning("the encoded prompt is not kept in %s: %s", self._cache_folder, error)


@torch.no_grad()
def embed(network: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden state ``[B, L, text_width]`` of umT5 with the rows behind the mask set to zero (spec section 4.2).

    Args:
        network: transformers ``UMT5EncoderModel``.
        ids, mask: ``[B, L]``, right-padded.
    """
    device = next(network.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden * mask.unsqueeze(-1).to(hidden)


class VisitingLayer(nn.Module):
    """A layer whose weights stay where they are and visit a device for each call.

    Args:
        layer: takes and gives tensors and plain values.
        device: where it computes.
    """

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.layer = layer
        self._device = device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's result, on the device."""
        weights = {name: weight.to(self._device) for name, weight in self.layer.state_dict().items()}
        args, kwargs = tree_map(self._moved, (args, kwargs))
        return functional_call(self.layer, weights, args, kwargs)

    def _moved(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value


def on_a_visit(network: nn.Module, device: torch.device) -> nn.Module:
    """The umT5 encoder with each layer on ``device`` only while it computes; returns it changed.

    The table of words stays where it is: a prompt needs 512 of its 256384 rows.

    Args:
        network: transformers ``UMT5EncoderModel`` on the CPU.
        device: where its layers compute.
    """
    encoder = cast("Any", network).encoder
    encoder.block = nn.ModuleList(VisitingLayer(layer, device) for layer in encoder.block)
    encoder.final_layer_norm = VisitingLayer(encoder.final_layer_norm, device)
    return network


def clean_prompt(prompt: str) -> str:
    """Prompt as the tokenizer expects it: un-escaped twice, white space collapsed (spec section 4.2).

    Broken encodings ("mojibake") and curly quotes are mended only where the optional package ftfy is installed.
    """
    prompt = prompt[:LONGEST_PROMPT_CHARACTERS]
    try:
        import ftfy

        prompt = ftfy.fix_text(prompt)
    except ImportError:
        pass
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


def load_tokenizer(folder: Path) -> Callable[[str, int], tuple[Tensor, Tensor]]:
    """Prompt and row count to ids and mask ``[1, rows]``: end token, cut and right-padded (spec section 4.2).

    Args:
        folder: the tokenizer files of ``google/umt5-xxl``.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def tokenize(prompt: str, length: int) -> tuple[Tensor, Tensor]:
        found = tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=length,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return found["input_ids"], found["attention_mask"]

    return tokenize


def load_umt5(state: Mapping[str, Tensor]) -> nn.Module:
    """transformers ``UMT5EncoderModel`` with weights under the original names; sizes are read from the shapes.

    Raises:
        LiveTalkError: a tensor is missing, not known, or of another shape; the message names it.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    try:
        sizes = _sizes_from_shapes(state)
    except KeyError as error:
        raise LiveTalkError(
            f"This is no umT5 encoder: it lacks {error}. Expected the tensors of models_t5_umt5-xxl-enc-bf16.pth."
        ) from error
    with torch.device("meta"):
        network = UMT5EncoderModel(UMT5Config(**sizes))
    found = {_library_name(name): tensor for name, tensor in state.items()}
    # some library versions list the shared table twice
    twice = "encoder.embed_tokens.weight"
    if twice in network.state_dict():
        found[twice] = found["shared.weight"]
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    check_fit(expected, found, "models_t5_umt5-xxl-enc-bf16.pth")
    network.load_state_dict(found, assign=True)
    return network.requires_grad_(False).eval()


def _sizes_from_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of transformers' ``UMT5Config``."""
    vocabulary, width = state["token_embedding.weight"].shape
    buckets, heads = state["blocks.0.pos_embedding.embedding.weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": state["blocks.0.attn.q.weight"].shape[0] // heads,
        "d_ff": state["blocks.0.ffn.fc1.weight"].shape[0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": UMT5_MAX_DISTANCE,
        "layer_norm_epsilon": UMT5_EPS,
        "feed_forward_proj": "gated-gelu",
    }


_INSIDE_BLOCK = {
    "norm1.": "layer.0.layer_norm.",
    "norm2.": "layer.1.layer_norm.",
    "attn.": "layer.0.SelfAttention.",
    "pos_embedding.embedding.": "layer.0.SelfAttention.relative_attention_bias.",
    "ffn.gate.0.": "layer.1.DenseReluDense.wi_0.",
    "ffn.fc1.": "layer.1.DenseReluDense.wi_1.",
    "ffn.fc2.": "layer.1.DenseReluDense.wo.",
}


def _library_name(name: str) -> str:
    """Name in transformers of a tensor of the original file; unknown names pass through and are refused later."""
    if name == "token_embedding.weight":
        return "shared.weight"
    if name == "norm.weight":
        return "encoder.final_layer_norm.weight"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return name
    number, rest = match.groups()
    for old, new in _INSIDE_BLOCK.items():
        if rest.startswith(old):
            return f"encoder.block.{number}.{new}{rest[len(old) :]}"
    return name
