"""The local talkers' models with random weights: real classes, real code paths, a fraction of a second.

Shapes are tiny; the relations between them that the code depends on are those of the published models (placeholder
counts, codebooks, samples per frame, special tokens).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    WhisperFeatureExtractor,
)

BYTES = 256
GEMMA_MARKS = {
    "pad_token": "<pad>",
    "eos_token": "<eos>",
    "bos_token": "<bos>",
    "sot_token": "<|turn>",
    "eot_token": "<turn|>",
    "soc_token": "<|channel>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
    "audio_token": "<|audio|>",
}
QWEN_MARKS = {
    "pad_token": "<|endoftext|>",
    "eos_token": "<|im_end|>",
    "im_start_token": "<|im_start|>",
    "audio_token": "<|audio_pad|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
    "tts_pad_token": "<tts_pad>",
    "tts_bos_token": "<tts_text_bos>",
    "tts_eos_token": "<tts_text_eod>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
}
QWEN_ROLES = ("system", "user", "assistant")
TALKER_VOCABULARY = 1024 + 200
CODEBOOKS, CODES = 4, 128


def tokenizer(marks: dict[str, str], words: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Every byte is a token; after them come ``words`` and the special ``marks``."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_tokens(list(words))
    fast.add_special_tokens(list(marks.values()))
    own = {name: mark for name, mark in marks.items() if name in ("pad_token", "eos_token", "bos_token")}
    extra = {name: mark for name, mark in marks.items() if name not in own}
    return PreTrainedTokenizerFast(tokenizer_object=fast, extra_special_tokens=extra, **own)


def save_tiny_gemma(folder: Path) -> Path:
    """A repository of Gemma 4, as ``load_gemma`` reads it."""
    tokens = tokenizer(GEMMA_MARKS)
    ids = {name: tokens.convert_tokens_to_ids(mark) for name, mark in GEMMA_MARKS.items()}
    size = len(tokens) + 3
    config = Gemma4Config(
        text_config={
            **{"vocab_size": size, "vocab_size_per_layer_input": size, "hidden_size": 32, "intermediate_size": 64},
            **{"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
            **{"global_head_dim": 16, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2},
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            **{name: ids[name[:3] + "_token"] for name in ("pad_token_id", "eos_token_id", "bos_token_id")},
        },
        vision_config={
            **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64},
        },
        # The projection takes a quarter of the first number, which is the number of mel bins.
        audio_config={
            **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "output_proj_dims": 32},
            "subsampling_conv_channels": [128, 8],
        },
        audio_token_id=ids["audio_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        **{"image_token_id": size - 1, "video_token_id": size - 2, "boi_token_id": size - 3, "eoi_token_id": size - 3},
    )
    torch.manual_seed(0)
    Gemma4ForConditionalGeneration(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    Gemma4AudioFeatureExtractor().save_pretrained(folder)
    return folder


def save_tiny_pocket(folder: Path) -> Path:
    """A configuration of Pocket TTS without weights: the package then keeps its random ones."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = {letter: number for number, letter in enumerate(map(chr, range(32, 127)))} | {"<unk>": 95}
    fast = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    fast.save(str(folder / "tokenizer.json"))
    config = {
        "flow_lm": {
            "dtype": "float32",
            "flow": {"depth": 1, "dim": 32},
            "transformer": {"d_model": 32, "hidden_scale": 2, "max_period": 10000, "num_heads": 2, "num_layers": 1},
            "lookup_table": {
                **{"dim": 32, "n_bins": len(letters), "tokenizer": "tokenizers"},
                "tokenizer_path": str(folder / "tokenizer.json"),
            },
        },
        "mimi": {
            **{"dtype": "float32", "sample_rate": 24000, "channels": 1, "frame_rate": 12.5},
            **{"inner_dim": 32, "outer_dim": 32},
            "seanet": {
                **{"dimension": 32, "channels": 1, "n_filters": 2, "n_residual_layers": 1, "ratios": [6, 5, 4]},
                **{"kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "dilation_base": 2},
                **{"pad_mode": "constant", "compress": 2},
            },
            "transformer": {
                **{"d_model": 32, "num_heads": 2, "num_layers": 1, "layer_scale": 0.01, "context": 250},
                **{"dim_feedforward": 32, "input_dimension": 32, "output_dimensions": [32]},
            },
            "quantizer": {"dimension": 32, "output_dimension": 32},
        },
    }
    path = folder / "pocket.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def save_tiny_omni(folder: Path) -> Path:
    """A repository of Qwen3-Omni, as ``load_omni`` reads it."""
    tokens = tokenizer(QWEN_MARKS, QWEN_ROLES)
    ids = {name: tokens.convert_tokens_to_ids(mark) for name, mark in QWEN_MARKS.items()}
    ids |= {role: tokens.convert_tokens_to_ids(role) for role in QWEN_ROLES}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}  # sums to half of head_dim
    text = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
        "rope_parameters": rope,
    }
    places = {f"{kind}_token_id": ids[f"{kind}_token"] for kind in ("audio", "image", "video")}
    places |= {"audio_start_token_id": ids["audio_bos_token"], "vision_start_token_id": ids["vision_bos_token"]}
    code = TALKER_VOCABULARY  # the marks of the talker are the last of its vocabulary
    config = Qwen3OmniMoeConfig(
        thinker_config={
            "audio_config": {
                **{"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32},
                **{"output_dim": 32, "downsample_hidden_size": 8},
            },
            "vision_config": {
                **{"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32},
                **{"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            },
            "text_config": {**text, "vocab_size": len(tokens), "num_hidden_layers": 3},
            "user_token_id": ids["user"],
            **places,
        },
        talker_config={
            "text_config": {
                **{**text, "vocab_size": TALKER_VOCABULARY, "num_hidden_layers": 2},
                "shared_expert_intermediate_size": 16,
            },
            "code_predictor_config": {
                **{"vocab_size": CODES, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
                **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_code_groups": CODEBOOKS},
            },
            **{"num_code_groups": CODEBOOKS, "thinker_hidden_size": 32, "accept_hidden_layer": 2},
            **{"codec_eos_token_id": code - 1, "codec_nothink_id": code - 2, "codec_think_bos_id": code - 3},
            **{"codec_think_eos_id": code - 4, "codec_pad_id": code - 5, "codec_bos_id": code - 6},
            "speaker_id": {"chelsie": code - 7, "ethan": code - 8, "aiden": code - 9},
            "spatial_merge_size": 2,
            **places,
        },
        code2wav_config={
            **{"codebook_size": CODES, "num_quantizers": CODEBOOKS, "hidden_size": 32, "intermediate_size": 32},
            **{"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "decoder_dim": 48},
        },
        im_start_token_id=ids["im_start_token"],
        im_end_token_id=ids["eos_token"],
        **{f"{role}_token_id": ids[role] for role in QWEN_ROLES},
        **{f"tts_{kind}_token_id": ids[f"tts_{kind}_token"] for kind in ("pad", "bos", "eos")},
    )
    torch.manual_seed(0)
    model = Qwen3OmniMoeForConditionalGeneration(config)
    for part in (model.thinker, model.talker):
        make_lively(part)
    make_audible(model.code2wav)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    return folder


@torch.no_grad()
def make_lively(part: torch.nn.Module) -> None:
    """Weights large enough that every input matters; the library leaves some (the experts') as the memory was."""
    for weight in part.parameters():
        if weight.ndim >= 2:
            weight.normal_(0, 0.3)


@torch.no_grad()
def make_audible(decoder: torch.nn.Module) -> None:
    """Fresh weights give next to silence, in which any mistake would be lost: let every part count."""
    for name, weight in decoder.named_parameters():
        if weight.ndim >= 2:
            weight.normal_(0, 1.2 / weight[0].numel() ** 0.5)
        elif name.endswith(("gamma", "scale")):
            weight.fill_(0.5)
    last = decoder.decoder[-1].conv
    last.weight.mul_(1e-6)
    last.bias.zero_()
    last.weight.mul_(0.1 / decoder(torch.randint(0, CODES, (1, CODEBOOKS, 20))).std())
