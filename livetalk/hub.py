"""Models ready for use: found in ``checkpoints/``, in a folder, or downloaded; and written.

Weights are loaded once and never written again. Our own format is a folder with ``config.json`` (the preset and the
hash of the weights) and ``model.safetensors``; published models are fetched and converted once (``download``,
``model.converted``). Who needs the Hugging Face Hub comes here. This module does not know how a model is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from livetalk.config import PRESETS, Preset, from_dict, preset, to_dict
from livetalk.download.weights import (
    Plan,
    find_ready,
    plan_download,
    published_files,
    ready_folder,
    tiny_decoder_file,
)
from livetalk.engine import Engine, configured_engine, find_device, find_dtype, stays_on_gpu
from livetalk.model.audio import AudioEncoder, build_audio_encoder
from livetalk.model.backends import prefer_fastest
from livetalk.model.compiled import compile_layers
from livetalk.model.converted import is_converted, read_converted
from livetalk.model.gathering import CachedNetwork, Gathered
from livetalk.model.originals import load_original, load_tiny_decoder
from livetalk.model.quantised import quantise
from livetalk.model.storage import Storage, load_part, pack_modules, unpack, write_whole
from livetalk.model.text import TextEncoder, WordsTextEncoder
from livetalk.model.tiny_decoder import TinyDecodedVAE, TinyDecoder
from livetalk.model.transformer import CausalDiT
from livetalk.model.vae import VideoVAE, WanVideoVAE, build_vae
from livetalk.types import Identity, LiveTalkError

logger = logging.getLogger(__name__)

FORMAT = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CHECKPOINTS_VARIABLE = "LIVETALK_CHECKPOINTS"
CACHE_VARIABLE = "LIVETALK_CACHE"
PARTS = ("transformer", "vae", "audio")
PLAIN = Engine(compile="off")


@dataclass(frozen=True)
class Models:
    """Everything a performer needs, on its device; shared by all sessions and never changed.

    Attributes:
        preset: sizes and choices.
        engine: how the networks are run.
        transformer: the network, weights in ``dtype``.
        vae: pictures <-> latents; the heavy part in ``dtype``.
        audio: sound -> feature rows, float32.
        text: prompt -> rows.
        device: where the networks are.
        dtype: number format of the networks.
        network: the transformer as streams call it: itself, or where passes of several streams become one.
    """

    preset: Preset
    engine: Engine
    transformer: CausalDiT
    vae: VideoVAE
    audio: AudioEncoder
    text: TextEncoder
    device: torch.device
    dtype: torch.dtype
    network: CachedNetwork = field(init=False, repr=False)

    def __post_init__(self) -> None:
        gathers = self.engine.batches(self.device)
        object.__setattr__(self, "network", Gathered(self.transformer) if gathers else self.transformer)

    @torch.no_grad()
    def identity(self, portrait: Tensor, prompt: str) -> Identity:
        """Who is drawn, from a portrait ``[3, H, W]`` in -1..1 of the preset's size and a prompt."""
        latent = self.vae.encode_image(portrait.unsqueeze(0).to(self.device))
        return Identity(portrait_latent=latent.float().cpu(), text=self.text.encode(prompt))


def random_models(
    config: Preset,
    seed: int = 0,
    device: str = "cpu",
    dtype: str | torch.dtype = "float32",
    engine: Engine = PLAIN,
) -> Models:
    """The same code path as ``load_models`` with random weights, for tests and benchmarks.

    The prompt is always read by the weightless encoder, because a random umT5 has no tokenizer. On the device "meta"
    networks have shapes and number formats without content, so that what the real ones need can be counted.
    """
    place = find_device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta" if place.type == "meta" else "cpu"):
            parts = _build(config, engine)
        # layers that start at zero would make every picture the portrait
        for weight in parts["transformer"].parameters() if place.type != "meta" else ():
            if weight.ndim >= 2 and not weight.any():
                nn.init.normal_(weight, std=0.02)
    return _assemble(config, parts, _words(config), place, dtype, engine)


def load_models(
    name_or_folder: str | Path = "mini",
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    engine: Engine | None = None,
) -> Models:
    """A model by the name of its preset, or from a folder in our format.

    Args:
        name_or_folder: "mini", "livetalk-1.3b", or a folder that ``save_models`` or ``plan_weights`` made.
        device: "auto" (CUDA if there is any), or a torch device.
        dtype: "auto" (bfloat16 where the device is fast at it, else float32), or a torch number format.
        engine: how the networks are run; None = as the environment says.

    Raises:
        LiveTalkError: no such model, or files are missing, damaged, or of another model; the message names the file.
    """
    name, place = str(name_or_folder), find_device(device)
    engine = configured_engine() if engine is None else engine
    if name in PRESETS:
        config = preset(name)
        folder = find_checkpoint(config)
        if folder is None and not config.weights.repositories:
            raise _missing(config)
    else:
        folder = Path(name)
        if not folder.is_dir():
            raise LiveTalkError(
                f"There is no model {name!r}. Expected one of {', '.join(PRESETS)}, or a folder with {CONFIG_NAME} and"
                f" {WEIGHTS_NAME}."
            )
    if folder is not None and not is_converted(folder):
        config, state = read_checkpoint(folder)
        parts = _build(config, PLAIN)
        for part in PARTS:
            load_part(parts[part], part, state, str(folder / WEIGHTS_NAME))
        return _assemble(config, parts, _words(config), place, dtype, engine)
    if folder is None:
        files = published_files(config, checkpoint_roots())
    else:
        converted = read_converted(folder)
        config, files = config if name in PRESETS else preset(converted.preset), converted.files
    config, parts, text = load_original(files, config, place, _prompt_cache())
    if engine.decoder == "tiny":
        tiny = load_tiny_decoder(tiny_decoder_file(config, checkpoint_roots()))
        parts["vae"] = TinyDecodedVAE(cast("WanVideoVAE", parts["vae"]), tiny)
    return _assemble(config, parts, text, place, dtype, engine)


def save_models(
    folder: str | Path,
    config: Preset,
    modules: Mapping[str, nn.Module],
    storage: Storage | Mapping[str, Storage] = "float16",
) -> None:
    """Write a folder that ``load_models`` reads; the weights first, so that it is never half there.

    Args:
        folder: made if need be.
        config: the preset, written into ``config.json``.
        modules: "transformer", "vae" and "audio".
        storage: how matrices are stored, for all or for each module; vectors stay float32.

    Raises:
        LiveTalkError: a module is missing, a weight cannot be stored, or the folder cannot be written.
    """
    if set(modules) != set(PARTS):
        raise LiveTalkError(f"A checkpoint holds {', '.join(PARTS)}; given were {', '.join(sorted(modules))}.")
    kinds: dict[str, Storage] = {part: storage if isinstance(storage, str) else storage[part] for part in PARTS}
    weights = save(pack_modules(modules, kinds), metadata={"format": "livetalk"})
    described = {"format": FORMAT, "weights_sha256": hashlib.sha256(weights).hexdigest(), "preset": to_dict(config)}
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_whole(target / WEIGHTS_NAME, weights)
        write_whole(target / CONFIG_NAME, (json.dumps(described, indent=2) + "\n").encode())
    except OSError as error:
        raise LiveTalkError(
            f"The checkpoint could not be written to {target}: {error.strerror}. Choose another folder."
        ) from error


def checkpoint_roots() -> list[Path]:
    """Folders in which a preset's folder is looked for: the environment variable, the clone, the installation."""
    package = Path(__file__).resolve().parent
    named = os.environ.get(CHECKPOINTS_VARIABLE)
    return [*([Path(named)] if named else []), package.parent / "checkpoints", package / "_checkpoints"]


def find_checkpoint(config: Preset) -> Path | None:
    """First folder under ``checkpoint_roots`` that holds this preset in our format, if there is one."""
    for root in checkpoint_roots():
        if (root / config.weights.folder / CONFIG_NAME).is_file():
            return root / config.weights.folder
    return None


def find_weights(config: Preset) -> Path | None:
    """Folder from which ``load_models`` would read this preset without fetching or converting anything, if any."""
    folder = find_checkpoint(config)
    if folder is None and config.weights.repositories and find_ready(config, checkpoint_roots()) is not None:
        folder = ready_folder(config)
    return folder


def plan_weights(name: str) -> Plan:
    """What fetching and converting the weights of a preset takes; ``carry_out`` does it.

    Raises:
        LiveTalkError: no such preset, or a repository can be neither listed nor found on this machine.
    """
    return plan_download(preset(name), checkpoint_roots())


def inference_client(url: str | None = None, timeout_s: float = 120.0) -> Any:
    """A client for models run elsewhere: the Hub's inference providers, or a server that speaks their protocol.

    Args:
        url: of a local server, such as ``http://127.0.0.1:8080/v1``; None = the Hub, with the token of this machine.
        timeout_s: longest wait for an answer.
    """
    return huggingface_hub.InferenceClient(base_url=url, timeout=timeout_s)


def async_inference_client(token: str | None, provider: str | None, url: str | None, timeout_s: float) -> Any:
    """Like ``inference_client`` for asyncio; requests can be cancelled. Closing it is up to the caller.

    Args:
        token: who pays; None = the token of this machine.
        provider: of the models; None or "auto" = the Hub decides.
        url: of a server instead of the Hub.
        timeout_s: longest wait for each piece of an answer.
    """
    chosen: Any = provider
    return huggingface_hub.AsyncInferenceClient(provider=chosen, token=token, base_url=url, timeout=timeout_s)


def machine_token() -> str | None:
    """This machine's token for the Hub: ``HF_TOKEN``, else the stored login, else None."""
    return huggingface_hub.get_token()


def _missing(config: Preset) -> LiveTalkError:
    """The sentence for an embedded checkpoint that is not there."""
    places = ", ".join(str(root / config.weights.folder) for root in checkpoint_roots()[:2])
    return LiveTalkError(
        f"The checkpoint of {config.name!r} is missing: no {CONFIG_NAME} and {WEIGHTS_NAME} in {places}."
        f" Fetch the repository again with its checkpoints, or set {CHECKPOINTS_VARIABLE} to their folder."
    )


def _prompt_cache() -> Path:
    """Folder for encoded prompts."""
    named = os.environ.get(CACHE_VARIABLE)
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "livetalk"
    return (Path(named) if named else shared) / "prompts"


def _words(config: Preset) -> WordsTextEncoder:
    return WordsTextEncoder(config.model.text_tokens, config.model.text_width)


def read_checkpoint(folder: Path) -> tuple[Preset, dict[str, Tensor]]:
    """Preset and float32 weights of a folder in our format.

    Raises:
        LiveTalkError: a file is missing or damaged, or was written by a newer version; the message names it.
    """
    described = _read_config(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise LiveTalkError(f"{path} could not be read: {error.strerror}. Fetch the checkpoint again.") from error
    if hashlib.sha256(weights).hexdigest() != described["weights_sha256"]:
        raise LiveTalkError(
            f"{path} is damaged: its hash is not the one in {CONFIG_NAME}. Expected both files of one checkpoint."
            " Fetch them again."
        )
    try:
        packed = load(weights)
    except SafetensorError as error:
        raise LiveTalkError(f"{path} is no safetensors file ({error}). Fetch the checkpoint again.") from error
    return from_dict(Preset, described["preset"]), unpack(packed)


def _read_config(path: Path) -> dict[str, Any]:
    """Content of ``config.json``.

    Raises:
        LiveTalkError: missing, no JSON, or not what this version writes.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LiveTalkError(
            f"{path} could not be read: {error.strerror}. Expected {CONFIG_NAME} and {WEIGHTS_NAME} in one folder."
            " Fetch both again."
        ) from error
    except ValueError as error:
        raise LiveTalkError(f"{path} is no JSON ({error}). Fetch the checkpoint again.") from error
    known = {"format", "weights_sha256", "preset"}
    keys = set(described) if isinstance(described, dict) else set()
    if keys != known or described["format"] != FORMAT:
        wrong = ", ".join(sorted(keys ^ known)) or f"format {described['format']}"
        raise LiveTalkError(
            f"{path} is no checkpoint description of format {FORMAT} (look at: {wrong})."
            f" Expected the keys {', '.join(sorted(known))}. Fetch the checkpoint again, or update LiveTalk."
        )
    return described


def _build(config: Preset, engine: Engine) -> dict[str, nn.Module]:
    """The modules of a preset with random weights."""
    vae = build_vae(config.vae)
    if engine.decoder == "tiny" and isinstance(vae, WanVideoVAE):
        vae = TinyDecodedVAE(vae, TinyDecoder(config.vae.latent_channels))
    return {
        "transformer": CausalDiT(config.model),
        "vae": vae,
        "audio": build_audio_encoder(config.audio, config.model.heard_width),
    }


def _assemble(
    config: Preset,
    parts: Mapping[str, Any],
    text: TextEncoder,
    device: torch.device,
    dtype: str | torch.dtype,
    engine: Engine,
) -> Models:
    """Frozen modules on their device in their number formats, run as the engine says."""
    engine.check(device)
    number_format = find_dtype(dtype, device)
    transformer = parts["transformer"]
    if engine.linears != "plain":  # before it moves, so that the device never holds both
        transformer = transformer.prepare_for_inference(number_format)
        quantise(transformer.blocks, engine.linears)
        transformer = transformer.to(device)
    else:  # converted tensor by tensor on the way
        transformer = transformer.to(device, number_format).prepare_for_inference(number_format)
    if engine.compiles(device):
        compile_layers(transformer)
    if stays_on_gpu(device):
        tokens, rollout = config.latent_shape(1).tokens_per_frame(config.model.patch), config.rollout
        queries, keys = tokens * rollout.chunk_frames, tokens * rollout.window_frames
        prefer_fastest(config.model.heads, queries, keys, config.model.head_width, number_format, device)
    return Models(
        preset=config,
        engine=engine,
        transformer=transformer,
        vae=parts["vae"].to(device).prepare_for_inference(number_format),
        audio=parts["audio"].to(device=device, dtype=torch.float32).eval().requires_grad_(False),
        text=text,
        device=device,
        dtype=number_format,
    )
