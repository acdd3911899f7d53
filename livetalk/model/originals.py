"""The published weights in their own file formats: transformer, Wan VAE, umT5 and wav2vec2 as modules.

Sizes are read from the tensors (spec section 2); what no shape tells (head width, window, sink, shift) comes from the
preset. Only formats that cannot run code are read. This module does not know where the files come from.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from livetalk.config import AudioConfig, Preset
from livetalk.model.audio import Wav2Vec2AudioEncoder
from livetalk.model.storage import check_fit
from livetalk.model.text import UMT5TextEncoder, load_tokenizer, load_umt5, on_a_visit
from livetalk.model.tiny_decoder import TinyDecoder
from livetalk.model.transformer import CausalDiT
from livetalk.model.vae import WanVideoVAE
from livetalk.model.weights import config_from_shapes, original_state
from livetalk.types import LiveTalkError

FETCH_AGAIN = "Fetch the file again."
LIBRARY_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_dim", "conv_kernel",
    "conv_stride", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "feat_extract_norm", "conv_bias",
    "do_stable_layer_norm", "layer_norm_eps", "hidden_act", "feat_extract_activation",
)  # fmt: skip
"""Fields of a wav2vec2 ``config.json`` that the features depend on."""


@dataclass(frozen=True)
class OriginalFiles:
    """Where the published files of one model are.

    Attributes:
        transformer: safetensors (or pickled weights) with flat names.
        vae: ``Wan2.1_VAE.pth``.
        text: ``models_t5_umt5-xxl-enc-bf16.pth``.
        tokenizer: folder with the tokenizer of ``google/umt5-xxl``.
        audio: folder with ``config.json`` and ``model.safetensors`` of wav2vec2.
    """

    transformer: Path
    vae: Path
    text: Path
    tokenizer: Path
    audio: Path


def read_tensors(path: Path) -> Mapping[str, Any]:
    """Content of a weight file: safetensors, or a pickle of which only tensors and containers are read.

    Raises:
        LiveTalkError: missing, damaged, or a pickle that wants to run code; the message names the file.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise LiveTalkError(
            f"{path} could not be read: {error.strerror or 'not a weight file'}. {FETCH_AGAIN}"
        ) from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise LiveTalkError(
            f"{path} is damaged or no file of plain weights ({type(error).__name__}). {FETCH_AGAIN}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise LiveTalkError(f"{path} holds a {type(loaded).__name__} instead of named tensors. {FETCH_AGAIN}")
    return loaded


def load_transformer(path: Path, config: Preset) -> CausalDiT:
    """The network of a file with the original names; its ``config`` has the sizes found there.

    Raises:
        LiveTalkError: the file cannot be read, or a tensor does not fit; the message names both.
    """
    state = original_state(read_tensors(path))
    sizes = config_from_shapes(
        state,
        head_width=config.model.head_width,
        text_tokens=config.model.text_tokens,
        rotary_split=config.model.rotary_split,
    )
    with torch.device("meta"):
        network = CausalDiT(sizes)
    check_fit({name: tensor.shape for name, tensor in network.state_dict().items()}, state, str(path))
    network.load_state_dict(state, assign=True)
    return network


def load_vae(path: Path) -> WanVideoVAE:
    """The Wan VAE of ``Wan2.1_VAE.pth``.

    Raises:
        LiveTalkError: the file cannot be read, or a tensor does not fit.
    """
    return WanVideoVAE.from_original(_tensors(path))


def load_tiny_decoder(path: Path) -> TinyDecoder:
    """The decoder of ``taew2_1.safetensors``.

    Raises:
        LiveTalkError: the file cannot be read, or a tensor does not fit.
    """
    return TinyDecoder.from_original(_tensors(path), str(path))


def load_audio(folder: Path, config: AudioConfig) -> Wav2Vec2AudioEncoder:
    """wav2vec2 of a Hugging Face folder.

    Raises:
        LiveTalkError: a file cannot be read, or a tensor does not fit.
    """
    path = folder / "config.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        sizes = {name: described[name] for name in LIBRARY_SIZES if name in described}
    except (OSError, ValueError, TypeError) as error:
        raise LiveTalkError(f"{path} could not be read as the sizes of wav2vec2. {FETCH_AGAIN}") from error
    return Wav2Vec2AudioEncoder(config, sizes).load_original(_tensors(folder / "model.safetensors"))


def load_text(files: OriginalFiles, config: Preset, device: torch.device, cache_folder: Path | None) -> UMT5TextEncoder:
    """umT5 that is read at the first prompt its cache does not know.

    Raises:
        LiveTalkError: a file is missing.
    """
    for path in (files.text, files.tokenizer):
        if not path.exists():
            raise LiveTalkError(f"{path} is missing. Expected the text encoder of Wan 2.1 there. {FETCH_AGAIN}")
    return UMT5TextEncoder(
        functools.partial(_read_text_network, files.text, device),
        load_tokenizer(files.tokenizer),
        config.model.text_tokens,
        config.model.text_width,
        version=f"{files.text.name}:{files.text.stat().st_size}",
        cache_folder=cache_folder,
    )


def load_original(
    files: OriginalFiles, config: Preset, device: torch.device, cache_folder: Path | None
) -> tuple[Preset, dict[str, nn.Module], UMT5TextEncoder]:
    """All parts of a published model; the preset has the network sizes found in the file.

    Raises:
        LiveTalkError: a file is missing, damaged, or does not fit; the message names it.
    """
    transformer = load_transformer(files.transformer, config)
    found = dataclasses.replace(config, model=transformer.config)
    audio = load_audio(files.audio, config.audio)
    if audio.feature_width != found.model.audio_width:
        raise LiveTalkError(
            f"{files.audio} gives {audio.feature_width} features a picture, {files.transformer} wants"
            f" {found.model.audio_width}. Use the wav2vec2 the network was trained with."
        )
    parts: dict[str, nn.Module] = {"transformer": transformer, "vae": load_vae(files.vae), "audio": audio}
    return found, parts, load_text(files, found, device, cache_folder)


def _read_text_network(path: Path, device: torch.device) -> nn.Module:
    network = load_umt5(_tensors(path))
    return network if device.type == "cpu" else on_a_visit(network, device)


def _tensors(path: Path) -> dict[str, Tensor]:
    return {name: value for name, value in read_tensors(path).items() if isinstance(value, Tensor)}
