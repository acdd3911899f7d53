"""How networks are run on a machine: device, number format, and the choices that trade exactness or memory for speed.

A preset says what a model is; an engine says how this process computes it. Nothing here changes what is asked of a
network, only how closely and how fast it answers. This module does not know networks or presets.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from livetalk.types import LiveTalkError

VARIABLE = "LIVETALK_"
MEMORY_VARIABLE = "LIVETALK_MEMORY"
ZERO_GPU_VARIABLE = "SPACES_ZERO_GPU"
FP8_CAPABILITY = (8, 9)
"""First CUDA capability with products of 8-bit floats (Ada; Hopper is 9.0)."""


@dataclass(frozen=True)
class Engine:
    """Choices, each with the exact and plain one first.

    Attributes:
        decoder: "full" = the preset's VAE; "tiny" = a small decoder for the same latents, where the preset names one.
        linears: matrices of the transformer's layers: "plain" = in the network's number format; "int8" = weights in 8
            bits, half the memory; "fp8" = weights and activations in 8-bit floats, faster on Ada and Hopper.
        compile: "off"; "on" = torch compiles the transformer's layers; "auto" = on with CUDA, off elsewhere.
        batch: "on" = sessions that want the network at the same time share a pass; "off" leaves each the bits that it
            has alone; "auto" = on with CUDA, off elsewhere.
        undo: where the parts of a cache wait that a chunk has overwritten and that may come back: "device", or "host"
            to save memory.
    """

    decoder: Literal["full", "tiny"] = "full"
    linears: Literal["plain", "int8", "fp8"] = "plain"
    compile: Literal["auto", "on", "off"] = "auto"
    batch: Literal["auto", "on", "off"] = "auto"
    undo: Literal["device", "host"] = "device"

    def compiles(self, device: torch.device) -> bool:
        """Whether layers are compiled on a device."""
        return self.compile == "on" or (self.compile == "auto" and stays_on_gpu(device))

    def batches(self, device: torch.device) -> bool:
        """Whether passes of several sessions run as one on a device."""
        return self.batch == "on" or (self.batch == "auto" and stays_on_gpu(device))

    def check(self, device: torch.device) -> None:
        """Refuse what a device cannot do.

        Raises:
            LiveTalkError: 8-bit floats on a GPU that has none.
        """
        if (
            self.linears == "fp8"
            and device.type == "cuda"
            and torch.cuda.get_device_capability(device) < FP8_CAPABILITY
        ):
            name = torch.cuda.get_device_name(device)
            raise LiveTalkError(f"{name} has no products of 8-bit floats. Use LIVETALK_LINEARS=int8 or plain.")


ENGINES: dict[str, Engine] = {
    "12gb": Engine(),
    "8gb": Engine(decoder="tiny", linears="int8", undo="host"),
}
"""What ``LIVETALK_MEMORY`` names: engines that fit a GPU of so much memory with LiveTalk-1.3B at 512 x 512."""


def stays_on_gpu(device: torch.device) -> bool:
    """Whether this process has a CUDA GPU for good.

    On ZeroGPU it has one only inside calls, each a new process that would have to compile and to measure again.
    """
    return device.type == "cuda" and not os.environ.get(ZERO_GPU_VARIABLE)


def configured_engine() -> Engine:
    """The engine that the environment asks for: ``LIVETALK_MEMORY``, then ``LIVETALK_DECODER``, ``_LINEARS``, ...

    Raises:
        LiveTalkError: a variable has a value nobody knows; the message lists the known ones.
    """
    base = _known(MEMORY_VARIABLE, os.environ.get(MEMORY_VARIABLE) or "12gb", tuple(ENGINES))
    hints = typing.get_type_hints(Engine)
    chosen = {
        field.name: _known(name, said, typing.get_args(hints[field.name]))
        for field in dataclasses.fields(Engine)
        if (said := os.environ.get(name := VARIABLE + field.name.upper()))
    }
    return dataclasses.replace(ENGINES[base], **typing.cast("typing.Any", chosen))


def _known(variable: str, said: str, known: tuple[str, ...]) -> str:
    """``said``, if it is one of the known values.

    Raises:
        LiveTalkError: it is not.
    """
    if said.lower() not in known:
        raise LiveTalkError(f"{variable} is {said!r}. Use one of: {', '.join(known)}.")
    return said.lower()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if _cpu_flags() & {"avx512_bf16", "amx_bf16"} else torch.float32


def find_device(name: str) -> torch.device:
    """A device by name; "auto" = CUDA if there is any.

    Raises:
        LiveTalkError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LiveTalkError(f"There is no device {name!r}. Use 'auto', 'cpu' or 'cuda'.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LiveTalkError(f"The device {name!r} was asked for, but torch sees no CUDA GPU. Use 'cpu' or 'auto'.")
    return device


def find_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A number format by name; "auto" = ``fast_dtype``.

    Raises:
        LiveTalkError: no such floating-point format.
    """
    if name == "auto":
        return fast_dtype(device)
    found = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise LiveTalkError(f"There is no number format {name!r}. Use 'auto', 'float32', 'bfloat16' or 'float16'.")
    return found


def _cpu_flags() -> frozenset[str]:
    """What the processor says it can do (Linux; elsewhere nothing is known and nothing is assumed)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
