"""Prompts to rows: the weightless encoder, and the cache that lets the big encoder go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from livetalk.eval.budget import Living
from livetalk.model.text import UMT5TextEncoder, WordsTextEncoder, clean_prompt, embed, load_tokenizer, on_a_visit

WIDTH, TOKENS = 24, 12


def words() -> WordsTextEncoder:
    return WordsTextEncoder(text_tokens=8, text_width=64)


def test_words_are_unit_vectors_then_zeros() -> None:
    rows = words().encode("A person speaks, naturally!")
    assert rows.shape == (1, 8, 64)
    assert torch.allclose(rows[0].norm(dim=1), torch.tensor([1.0] * 3 + [0.0] * 5), atol=1e-6)


def test_case_punctuation_and_emoji_do_not_count() -> None:
    assert torch.equal(words().encode("Happy 🤖🎉 PERSON..."), words().encode("the happy person"))
    assert not words().encode("🤖").any() and not words().encode("").any()


def test_different_words_point_elsewhere() -> None:
    rows = words().encode("calm happy sad surprised angry still gentle nodding")[0]
    similarity = rows @ rows.T - torch.eye(8)
    assert similarity.abs().max() < 0.6


def test_words_are_the_same_on_every_machine() -> None:
    """These numbers are part of what mini was trained on; they may never change."""
    recorded = torch.tensor([[0.1110927, -0.011366, 0.1012839, 0.186986, 0.0334291, -0.2117439]])
    assert torch.allclose(words().encode("person")[0, :1, :6], recorded, atol=1e-6)


@pytest.mark.parametrize("prompt", ["word " * 20_000, "x" * 100_000, "🙂" * 30_000, "\ud800 broken", "中文 提示"])
def test_any_prompt_is_read(prompt: str) -> None:
    rows = words().encode(prompt)
    assert rows.shape == (1, 8, 64) and torch.isfinite(rows).all()


def test_prompts_are_cleaned() -> None:
    assert clean_prompt("  a &amp;lt;b&amp;gt;\n\t c ") == "a <b> c"
    assert len(clean_prompt("y" * 100_000)) < 100_000


class Loads:
    """Gives a tiny random umT5 and counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> torch.nn.Module:
        from transformers import UMT5Config, UMT5EncoderModel

        self.count += 1
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "d_model": WIDTH, "d_kv": 6, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        return UMT5EncoderModel(UMT5Config(**sizes)).eval()


def letters(prompt: str, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(1, length, dtype=torch.long)
    for place, letter in enumerate(prompt[:length]):
        ids[0, place] = 1 + ord(letter) % 39
    return ids, (ids > 0).long()


def umt5(loads: Loads, folder: Path | None) -> UMT5TextEncoder:
    return UMT5TextEncoder(loads, letters, TOKENS, WIDTH, version="test", cache_folder=folder)


def test_rows_behind_the_prompt_are_zero_and_the_encoder_is_asked_once(tmp_path: Path) -> None:
    loads = Loads()
    encoder = umt5(loads, tmp_path)
    assert loads.count == 0, "a known prompt must not load 11 GB"
    rows = encoder.encode("happy")
    assert rows.shape == (1, TOKENS, WIDTH) and rows[0, :5].any(dim=1).all() and not rows[0, 5:].any()
    assert torch.equal(encoder.encode(" happy "), rows) and loads.count == 1
    assert not torch.equal(encoder.encode("sad"), rows) and loads.count == 2


def test_prompts_are_kept_between_runs_and_damaged_files_are_made_again(tmp_path: Path) -> None:
    rows = umt5(Loads(), tmp_path).encode("happy")
    later = Loads()
    assert torch.equal(umt5(later, tmp_path).encode("happy"), rows) and later.count == 0
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:40])
    assert torch.equal(umt5(later, tmp_path).encode("happy"), rows) and later.count == 1
    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".safetensors", "nothing unfinished is left behind"


def test_other_weights_have_other_rows_in_the_cache(tmp_path: Path) -> None:
    umt5(Loads(), tmp_path).encode("happy")
    other = Loads()
    UMT5TextEncoder(other, letters, TOKENS, WIDTH, version="newer", cache_folder=tmp_path).encode("happy")
    assert other.count == 1


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert umt5(Loads(), blocked / "cache").encode("happy").any()


def test_tokenizer_pads_to_the_right_and_ends_with_its_end_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "happy": 3, "person": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"})
    )
    ids, mask = load_tokenizer(tmp_path)("happy happy person", 6)
    assert ids.tolist() == [[3, 3, 4, 1, 0, 0]] and mask.tolist() == [[1, 1, 1, 1, 0, 0]]
    ids, mask = load_tokenizer(tmp_path)("happy " * 50, 6)
    assert ids.shape == (1, 6) and ids[0, -1] == 1 and mask.all()


def test_on_a_device_one_layer_is_there_at_a_time() -> None:
    """The same rows as where it lies, bit for bit; and the device, here one that only counts, holds a layer."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 6, "num_heads": 4}
    network = UMT5EncoderModel(UMT5Config(**sizes)).eval().requires_grad_(False)
    ids, mask = letters("happy", TOKENS)
    wanted = embed(network, ids, mask)
    layer = sum(weight.nbytes for weight in network.encoder.block[0].parameters())
    assert torch.equal(embed(on_a_visit(network, torch.device("cpu")), ids, mask), wanted)
    for visiting in (*network.encoder.block, network.encoder.final_layer_norm):
        visiting._device = torch.device("meta")
    with Living() as living:
        assert embed(network, ids, mask).device.type == "meta"
    assert layer < living.most < 1.7 * layer and living.now == 0
    assert all(weight.device.type == "cpu" for weight in network.parameters())
