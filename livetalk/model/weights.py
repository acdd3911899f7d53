"""Weights of the DiT under their original names: unwrapping, sizes from shapes, strict loading (spec section 2).

Knows names and shapes. Does not read files, nor know presets or where weights come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from livetalk.config import ModelConfig
from livetalk.model.storage import check_fit
from livetalk.model.transformer import CausalDiT
from livetalk.types import PICTURES_PER_LATENT, LiveTalkError

_WRAPPERS = ("generator_ema", "generator", "model", "state_dict", "module")
_PREFIXES = (*(f"{name}." for name in _WRAPPERS), "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def original_state(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """Flat state dict with the original names: outer wrappers are opened, prefixes of training frameworks removed.

    Of a trained generator and its moving average, the average is taken.

    Raises:
        LiveTalkError: it holds no tensors under text names.
    """
    while (wrapper := next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)) is not None:
        loaded = loaded[wrapper]
    state = {_bare(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if not state:
        raise LiveTalkError("The file holds no tensors. Expected a state dict of the transformer.")
    return state


def _bare(name: str) -> str:
    """Parameter name without what training frameworks put in front or between."""
    for infix in _PREFIXES[-3:]:
        name = name.replace(infix, "")
    while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name[len(prefix) :]
    return name


def config_from_shapes(
    state: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    head_width: int = 128,
    text_tokens: int = 512,
    audio_layers: tuple[int, int] | None = None,
    rotary_split: tuple[int, int, int] | None = None,
) -> ModelConfig:
    """Sizes of the network read from the shapes of its tensors.

    Args:
        state: flat state dict with original names, see ``original_state``.
        heads: number of heads, which no shape tells; None = width / ``head_width``.
        head_width: channels of a head when ``heads`` is not given; all published weights have 128.
        text_tokens: rows of text the network was trained with.
        audio_layers: first and last layer that adds audio; None = as published, counted from the projections.
        rotary_split: see ``ModelConfig``.

    Raises:
        LiveTalkError: a tensor that tells a size is missing; the message names it.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise LiveTalkError(
                f"The weights have no tensor {name}, so they are not those of a LiveTalk transformer. "
                "Expected the flat names of the original checkpoint."
            )
        return tuple(state[name].shape)

    width, in_channels, *patch = shape("patch_embedding.weight")
    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("blocks.")), default=-1)
    projections = sum(name.startswith("audio_cond_projs.") and name.endswith(".weight") for name in state)
    if audio_layers is None and projections != max(0, layers // 2 - 1):
        audio_layers = (2, 1 + projections)
    return ModelConfig(
        width=width,
        heads=width // head_width if heads is None else heads,
        layers=layers,
        ffn_width=shape("blocks.0.ffn.0.weight")[0],
        text_width=shape("text_embedding.0.weight")[1],
        text_tokens=text_tokens,
        freq_width=shape("time_embedding.0.weight")[1],
        audio_width=shape("audio_proj.proj.weight")[1] // PICTURES_PER_LATENT,
        in_channels=in_channels,
        out_channels=shape("head.head.weight")[0] // (patch[0] * patch[1] * patch[2]),
        patch=(patch[0], patch[1], patch[2]),
        audio_bottleneck=shape("audio_proj.proj.weight")[0],
        audio_layers=audio_layers,
        rotary_split=rotary_split,
    )


def load_transformer_state(model: CausalDiT, state: Mapping[str, Tensor], source: str = "transformer") -> None:
    """Fill the network; nothing may be missing, left over or of another shape.

    Args:
        model: network of the right sizes.
        state: flat state dict with original names.
        source: name of the file, for the message.

    Raises:
        LiveTalkError: a tensor does not fit; the message names it.
    """
    check_fit({name: tensor.shape for name, tensor in model.state_dict().items()}, state, source)
    model.load_state_dict(state)
