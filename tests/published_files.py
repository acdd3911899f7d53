"""Random weights in the files, names and shapes of the published model, in any size.

The shape tables are written from spec sections 2 and 4, not from our networks, so that both can be compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from livetalk.config import LIVETALK_1_3B, ModelConfig, Preset, RepositoryConfig, WeightsConfig
from tests import parity

Shapes = dict[str, tuple[int, ...]]
STUDENT, WAN, SPEECH = "a/student", "b/wan", "c/speech"
TEXT_FILE, VAE_FILE, TOKENIZER = "text.pth", "vae.pth", "google/umt5-xxl"
REPOSITORIES = (
    RepositoryConfig(STUDENT, ("*.safetensors",), 0.001, "made up"),
    RepositoryConfig(WAN, (TEXT_FILE, VAE_FILE, f"{TOKENIZER}/*"), 0.001, "made up, too"),
    RepositoryConfig(SPEECH, ("config.json", "model.safetensors"), 0.001, "made up, too"),
)


def transformer_shapes(model: ModelConfig) -> Shapes:
    """Names and shapes of a transformer with audio (spec section 2)."""
    width, ffn, patch = model.width, model.ffn_width, math.prod(model.patch)
    shapes: Shapes = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    shapes["patch_embedding.weight"] = (width, model.in_channels, *model.patch)
    shapes["patch_embedding.bias"] = (width,)
    for name, inputs in (("text_embedding", model.text_width), ("time_embedding", model.freq_width)):
        linear(f"{name}.0", inputs, width)
        linear(f"{name}.2", width, width)
    linear("time_projection.1", width, 6 * width)
    for layer in range(model.layers):
        block = f"blocks.{layer}"
        shapes[f"{block}.modulation"] = (1, 6, width)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", width, width)
            for part in ("norm_q", "norm_k"):
                shapes[f"{block}.{attention}.{part}.weight"] = (width,)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (width,)
        linear(f"{block}.ffn.0", width, ffn)
        linear(f"{block}.ffn.2", ffn, width)
    shapes["head.modulation"] = (1, 2, width)
    linear("head.head", width, model.out_channels * patch)
    linear("audio_proj.proj", 4 * model.audio_width, model.audio_bottleneck)
    shapes["audio_proj.norm_out.weight"] = shapes["audio_proj.norm_out.bias"] = (model.audio_bottleneck,)
    for index in range(model.layers // 2 - 1):
        linear(f"audio_cond_projs.{index}", model.audio_bottleneck, width)
    return shapes


def text_shapes(layers: int, vocabulary: int, width: int, heads: int, ffn: int) -> Shapes:
    """Names and shapes of a umT5 encoder with heads of 64 (spec section 4.2)."""
    inside = heads * 64
    shapes: Shapes = {"token_embedding.weight": (vocabulary, width), "norm.weight": (width,)}
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        shapes |= {f"{block}.attn.{part}.weight": (inside, width) for part in "qkv"}
        shapes[f"{block}.attn.o.weight"] = (width, inside)
        shapes[f"{block}.pos_embedding.embedding.weight"] = (32, heads)
        shapes |= {f"{block}.ffn.{part}.weight": (ffn, width) for part in ("gate.0", "fc1")}
        shapes[f"{block}.ffn.fc2.weight"] = (width, ffn)
    return shapes


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What the published code recognises a transformer by (spec section 2)."""
    entries = [entry for name, shape in shapes.items() for entry in (name, f"{name}:{'_'.join(map(str, shape))}")]
    return hashlib.md5(",".join(sorted(entries)).encode(), usedforsecurity=False).hexdigest()


def random_tensors(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Small random matrices (one million and three numbers over and over: quick in any size), norms near one."""
    pool = (0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))).to(dtype)
    tensors = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        tensor = pool.repeat(-(-count // len(pool)))[:count].view(shape).clone()
        tensors[name] = 1 + tensor if "norm" in name and name.endswith("weight") else tensor
    return tensors


def write_tokenizer(folder: Path) -> None:
    """A tokenizer that knows one word."""
    folder.mkdir(parents=True)
    model = {"type": "WordLevel", "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "happy": 3}, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def write_tiny(root: Path) -> Preset:
    """The three repositories in tiny, from the recorded numbers, as ``root/{student,wan,speech}``; their preset."""
    described, weights = parity.load("dit_weights")
    audio, ears = parity.load("audio")
    _, text = parity.load("text")
    write_tokenizer(root / "wan" / TOKENIZER)
    for folder in ("student", "speech"):
        (root / folder).mkdir()
    save_file(weights, root / "student" / "anything.safetensors")
    write_vae(root / "wan" / VAE_FILE)
    torch.save({n.removeprefix("t5."): t for n, t in text.items() if n.startswith("t5.")}, root / "wan" / TEXT_FILE)
    spoken = {n.replace("w2v.", "wav2vec2."): t for n, t in ears.items() if n.startswith("w2v.")}
    save_file(spoken, root / "speech" / "model.safetensors")
    (root / "speech" / "config.json").write_text(json.dumps(audio["wav2vec2_config"]))
    sizes = described["config"]
    model = dataclasses.replace(
        LIVETALK_1_3B.model, width=sizes["dim"], heads=sizes["num_heads"], text_width=sizes["text_dim"]
    )
    return preset_of(model)


def write_vae(path: Path) -> None:
    """The recorded VAE under its original names."""
    _, vae = parity.load("vae")
    torch.save({n.removeprefix("vae."): t for n, t in vae.items() if n.startswith("vae.")}, path)


def write_thinned(root: Path, layers: int) -> Preset:
    """Like ``write_tiny``, but every matrix of the transformer in its real size; only the depth is less.

    The encoders give what it takes (features 10752 wide, text rows 4096 wide) and are thin inside.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = dataclasses.replace(LIVETALK_1_3B.model, layers=layers)
    write_tokenizer(root / "wan" / TOKENIZER)
    for folder in ("student", "speech"):
        (root / folder).mkdir()
    save_file(random_tensors(transformer_shapes(model), torch.bfloat16), root / "student" / "thinned.safetensors")
    write_vae(root / "wan" / VAE_FILE)
    torch.save(random_tensors(text_shapes(1, 8, 4096, 1, 64), torch.bfloat16), root / "wan" / TEXT_FILE)
    sizes = {"intermediate_size": 64, "conv_dim": [32] * 7}
    with torch.device("meta"):
        ears = Wav2Vec2Model(Wav2Vec2Config(**sizes, mask_time_prob=0.0, mask_feature_prob=0.0))
    spoken = {f"wav2vec2.{name}": tuple(tensor.shape) for name, tensor in ears.state_dict().items()}
    save_file(random_tensors(spoken, torch.float16), root / "speech" / "model.safetensors")
    (root / "speech" / "config.json").write_text(json.dumps(sizes))
    return preset_of(model)


def preset_of(model: ModelConfig) -> Preset:
    """A preset whose weights are the three made-up repositories."""
    weights = WeightsConfig("published", "made up", REPOSITORIES)
    return dataclasses.replace(LIVETALK_1_3B, name="published", model=model, weights=weights)
