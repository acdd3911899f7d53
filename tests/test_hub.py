"""Models by name or folder, our weight format, published files, and what is said when something is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from livetalk import hub
from livetalk.config import MINI, PRESETS, Preset
from livetalk.engine import fast_dtype
from livetalk.hub import load_models, random_models, save_models
from livetalk.model.storage import pack, unpack
from livetalk.types import LiveTalkError
from tests import parity
from tests.published_files import write_tiny
from tests.tiny import TINY


def written(folder: Path, storage: str = "float32") -> hub.Models:
    models = random_models(TINY)
    parts = {"transformer": models.transformer, "vae": models.vae, "audio": models.audio}
    save_models(folder, TINY, parts, storage)
    return models


def tensors(models: hub.Models) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor for part in hub.PARTS for name, tensor in getattr(models, part).state_dict().items()
    }


def rewrite(folder: Path, change) -> None:
    """Change the weights and keep the hash right, as a faulty exporter would."""
    weights = load_file(folder / hub.WEIGHTS_NAME)
    change(weights)
    save_file(weights, folder / hub.WEIGHTS_NAME)
    described = json.loads((folder / hub.CONFIG_NAME).read_text())
    described["weights_sha256"] = hashlib.sha256((folder / hub.WEIGHTS_NAME).read_bytes()).hexdigest()
    (folder / hub.CONFIG_NAME).write_text(json.dumps(described))


def test_random_models_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = random_models(TINY, seed=1), random_models(TINY, seed=1), random_models(TINY, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = zip(tensors(one).values(), tensors(same).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.transformer.patch_embedding.weight, other.transformer.patch_embedding.weight)
    assert all(not weight.requires_grad for weight in one.transformer.parameters())


def test_identity_is_small_cpu_tensors() -> None:
    identity = random_models(TINY, dtype="bfloat16").identity(torch.zeros(3, 32, 32), "a happy person")
    assert identity.portrait_latent.shape == (1, 16, 1, 4, 4) and identity.portrait_latent.dtype == torch.float32
    assert identity.text.shape == (1, 4, 16) and identity.text.any()


@pytest.mark.parametrize(("storage", "error"), [("float32", 0.0), ("float16", 1e-3), ("int8", 1e-2)])
def test_what_is_saved_is_loaded(tmp_path: Path, storage: str, error: float) -> None:
    models = written(tmp_path, storage)
    again = load_models(tmp_path, device="cpu", dtype="float32")
    assert again.preset == TINY
    found = tensors(again)
    for name, tensor in tensors(models).items():
        largest = tensor.float().abs().max().item()
        assert (found[name].float() - tensor.float()).abs().max() <= error * largest, name


def test_storage_may_differ_between_parts(tmp_path: Path) -> None:
    models = random_models(TINY)
    parts = {"transformer": models.transformer, "vae": models.vae, "audio": models.audio}
    save_models(tmp_path, TINY, parts, {"transformer": "int8", "vae": "float16", "audio": "float32"})
    kinds = {name.split(".")[0]: t.dtype for name, t in load_file(tmp_path / hub.WEIGHTS_NAME).items() if t.ndim > 1}
    assert kinds == {"transformer": torch.int8, "vae": torch.float16, "audio": torch.float32}


def test_rows_of_zeros_and_integers_survive_eight_bits() -> None:
    state = {"a": torch.tensor([[0.0, 0.0], [1.0, -2.0]]), "b": torch.tensor([1, 2]), "c": torch.tensor([0.3])}
    again = unpack(pack(state, "int8"))
    assert torch.allclose(again["a"], state["a"], atol=0.01) and not again["a"][0].any()
    assert torch.equal(again["b"], state["b"]) and torch.equal(again["c"], state["c"])


@pytest.mark.parametrize(("value", "storage"), [(float("nan"), "float32"), (1e6, "float16")])
def test_weights_that_cannot_be_stored_are_named(value: float, storage: str) -> None:
    with pytest.raises(LiveTalkError, match="the_weight"):
        pack({"the_weight": torch.full((2, 2), value)}, storage)  # type: ignore[arg-type]


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    written(tmp_path)
    weights, config = tmp_path / hub.WEIGHTS_NAME, tmp_path / hub.CONFIG_NAME
    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (whole[:-100], bytes(flipped), b""):
        weights.write_bytes(damaged)
        with pytest.raises(LiveTalkError, match=r"model\.safetensors is damaged"):
            load_models(tmp_path)
    weights.unlink()
    with pytest.raises(LiveTalkError, match=r"model\.safetensors could not be read"):
        load_models(tmp_path)
    config.unlink()
    with pytest.raises(LiveTalkError, match=r"config\.json could not be read.*model\.safetensors"):
        load_models(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d["preset"].update(colour="red"), "colour"),
        (lambda d: d["preset"]["model"].update(wings=2), "wings"),
        (lambda d: d["preset"].pop("height"), "height"),
        (lambda d: d.update(format=9), "format 9"),
    ],
)
def test_unknown_and_missing_keys_are_named(tmp_path: Path, change, expected: str) -> None:
    written(tmp_path)
    described = json.loads((tmp_path / hub.CONFIG_NAME).read_text())
    change(described)
    (tmp_path / hub.CONFIG_NAME).write_text(json.dumps(described))
    with pytest.raises(LiveTalkError, match=expected) as caught:
        load_models(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_json_is_named(tmp_path: Path) -> None:
    written(tmp_path)
    for text in ("{", "[]", "\ufeff"):
        (tmp_path / hub.CONFIG_NAME).write_text(text, encoding="utf-8")
        with pytest.raises(LiveTalkError, match=r"config\.json"):
            load_models(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("transformer.head.head.bias"), r"missing, for example head\.head\.bias"),
        (lambda w: w.update({"vae.extra": torch.zeros(1)}), "not known, for example extra"),
        (lambda w: w.update({"vae.mean": torch.zeros(2)}), r"mean is \[2\] instead of"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, change, expected: str) -> None:
    written(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(LiveTalkError, match=expected) as caught:
        load_models(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_names_devices_and_formats_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LiveTalkError, match=r"no model 'maxi'.*mini"):
        load_models("maxi")
    for device in ("tpu9", "fridge"):
        with pytest.raises(LiveTalkError, match="device"):
            random_models(TINY, device=device)
    for dtype in ("float7", "int8", "nn"):
        with pytest.raises(LiveTalkError, match="number format"):
            random_models(TINY, dtype=dtype)
    if not torch.cuda.is_available():
        with pytest.raises(LiveTalkError, match="CUDA"):
            random_models(TINY, device="cuda")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(LiveTalkError, match="could not be written"):
        written(blocked / "folder")
    with pytest.raises(LiveTalkError, match="holds transformer, vae, audio"):
        save_models(tmp_path, TINY, {})


def test_a_preset_is_found_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setenv(hub.CHECKPOINTS_VARIABLE, str(tmp_path))
    with pytest.raises(LiveTalkError, match=r"checkpoint of 'tiny' is missing.*model\.safetensors"):
        load_models("tiny")
    written(tmp_path / "tiny")
    assert hub.find_checkpoint(TINY) == tmp_path / "tiny"
    assert load_models("tiny").preset == TINY


def test_mini_needs_no_heavy_libraries() -> None:
    """Ready within seconds on a laptop: these two packages alone take longer than everything else."""
    program = (
        "import sys; from livetalk.hub import random_models; from livetalk.config import MINI; random_models(MINI);"
        "assert not {'transformers', 'diffusers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


def test_the_fast_number_format_of_this_machine() -> None:
    assert fast_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert random_models(TINY, dtype="auto").dtype == fast_dtype(torch.device("cpu"))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Preset, Path]:
    """The file layout of the published model in tiny, from the recorded numbers."""
    root = tmp_path / "published"
    config = write_tiny(root)
    monkeypatch.setitem(PRESETS, "published", config)
    monkeypatch.setenv(hub.CHECKPOINTS_VARIABLE, str(tmp_path))
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return config, root


def test_published_files_are_read_as_they_are(published: tuple[Preset, Path]) -> None:
    _, root = published
    models = load_models("published", device="cpu", dtype="float32")
    _, weights = parity.load("dit_weights")
    assert set(models.transformer.state_dict()) == set(weights)
    assert models.preset.model.layers == len({n.split(".")[1] for n in weights if n.startswith("blocks.")})
    assert models.audio.feature_width == models.preset.model.heard_width
    identity = models.identity(torch.zeros(3, 16, 16), "happy")
    assert identity.portrait_latent.shape == (1, 16, 1, 2, 2)
    assert (
        identity.text.shape == (1, 512, models.preset.model.text_width)
        and identity.text[0, 0].any()
        and not identity.text[0, 1:].any()
    )
    shutil.copy(root / "student" / "anything.safetensors", root / "student" / "more.safetensors")
    with pytest.raises(LiveTalkError, match=r"exactly one .*more\.safetensors"):
        load_models("published")


def test_published_files_that_are_damaged_are_named(published: tuple[Preset, Path]) -> None:
    _, root = published
    (root / "wan" / "vae.pth").write_bytes(b"PK no archive")
    with pytest.raises(LiveTalkError, match=r"vae\.pth is damaged"):
        load_models("published", device="cpu")
    torch.save({"weights": RunsCode()}, root / "wan" / "vae.pth")
    with pytest.raises(LiveTalkError, match=r"vae\.pth is damaged or no file of plain weights"):
        load_models("published", device="cpu")
    (root / "student" / "anything.safetensors").write_bytes(b"nothing")
    with pytest.raises(LiveTalkError, match=r"anything\.safetensors is damaged"):
        load_models("published", device="cpu")


class RunsCode:
    """A pickle that would run a program if it were trusted."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


def test_files_that_cannot_be_fetched_give_one_sentence(published: tuple[Preset, Path]) -> None:
    _, root = published
    shutil.rmtree(root / "student")
    with pytest.raises(LiveTalkError, match=r"a/student are not all in .*HF_HUB_OFFLINE") as caught:
        load_models("published")
    assert "\n" not in str(caught.value)


def test_mini_preset_has_a_folder_of_its_own() -> None:
    assert MINI.weights.folder == "mini" and not MINI.weights.repositories
