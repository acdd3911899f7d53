"""Our own weight files: tensors in 16 or 8 bits, back in float32 when read.

A file holds the state dicts of several modules, each name with its module's name in front. Matrices are stored as asked
("float32", "float16", or "int8" with one scale per row); vectors are few and stay float32.

This module does not know what a preset is, nor where files are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from livetalk.types import LiveTalkError

Storage: TypeAlias = Literal["float32", "float16", "int8"]
SCALE_SUFFIX = "::scale"
LARGEST_INT8 = 127


def pack(state: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """State dict as it is stored.

    Raises:
        LiveTalkError: a weight is not finite, or too large for 16 bits; the message names it.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        if not value.is_floating_point():
            packed[name] = value
            continue
        value = value.float()
        if not torch.isfinite(value).all():
            raise LiveTalkError(f"The weight {name} holds values that are not finite. Save an earlier state.")
        if value.ndim < 2 or storage == "float32":
            packed[name] = value
        elif storage == "float16":
            packed[name] = value.half()
            if not torch.isfinite(packed[name]).all():
                raise LiveTalkError(f"The weight {name} is too large for 16 bits. Save with storage 'float32'.")
        else:
            packed[name], packed[name + SCALE_SUFFIX] = _to_int8(value)
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict in float32 (integers stay integers) of what ``pack`` gave."""
    state: dict[str, Tensor] = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        scale = packed.get(name + SCALE_SUFFIX)
        if scale is not None:
            state[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        else:
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def pack_modules(modules: Mapping[str, nn.Module], storage: Mapping[str, Storage]) -> dict[str, Tensor]:
    """All modules' weights in one dict, ``"name.tensor"``; ``storage`` says how for each module."""
    return {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        for name, tensor in pack(module.state_dict(), storage[part]).items()
    }


def load_part(module: nn.Module, part: str, state: Mapping[str, Tensor], source: str) -> None:
    """Fill ``module`` with the tensors of ``state`` whose names begin with ``part``.

    Args:
        source: name of the file, for the message.

    Raises:
        LiveTalkError: a tensor is missing, not known, or of another shape; the message names it and the file.
    """
    prefix = part + "."
    found = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    check_fit({name: t.shape for name, t in module.state_dict().items()}, found, f"{part} in {source}")
    module.load_state_dict(found)


def check_fit(expected: Mapping[str, torch.Size], found: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not exactly the expected ones.

    Raises:
        LiveTalkError: names the first tensor of each kind of problem, and ``source``.
    """
    problems = []
    for label, names in (("missing", set(expected) - set(found)), ("not known", set(found) - set(expected))):
        if names:
            problems.append(f"{len(names)} {label}, for example {min(names)}")
    for name in sorted(set(expected) & set(found)):
        if expected[name] != found[name].shape:
            problems.append(f"{name} is {list(found[name].shape)} instead of {list(expected[name])}")
            break
    if problems:
        raise LiveTalkError(
            f"The weights do not fit ({source}): {'; '.join(problems)}."
            " Expected exactly the tensors of this model. Fetch the unchanged file again."
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a passing name and put it in place at once.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _to_int8(value: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest 8-bit integers and the scale of each row (first axis)."""
    largest = value.abs().flatten(1).amax(dim=1)
    scale = torch.where(largest > 0, largest / LARGEST_INT8, torch.ones_like(largest))
    whole = (value / scale.view(-1, *[1] * (value.ndim - 1))).round()
    return whole.clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scale
