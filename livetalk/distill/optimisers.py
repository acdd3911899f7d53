"""Optimiser steps on flat float32 vectors: AdamW for everything, Muon for what is a matrix, and the learning rate.

A network's parameters lie in one vector, those that Muon trains first; ``MatrixRule`` says which these are. This module
does not know networks, batches or checkpoints.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MatrixRule = Callable[[str, nn.Parameter], bool]
"""Whether Muon trains a parameter, told its name and the parameter."""


@dataclass(frozen=True)
class Rates:
    """How one network is trained.

    Attributes:
        learning_rate: highest rate of AdamW.
        last_rate: rate at the very end, as a share of ``learning_rate``; 1 = constant after the warm-up.
        betas: AdamW's decay of the two moments.
        weight_decay: AdamW's.
        warmup_steps: steps over which the rate rises linearly.
        clip_norm: gradients longer than this are shortened to it.
        matrix_rate: highest learning rate of the matrices by Muon, see ``muon_step``; 0 = all by AdamW.
        matrix_momentum: Muon's momentum.
    """

    learning_rate: float = 1.5e-3
    last_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 60
    clip_norm: float = 1.0
    matrix_rate: float = 0.0
    matrix_momentum: float = 0.95


def in_blocks(name: str, parameter: nn.Parameter) -> bool:
    """The usual rule: matrices of the transformer's blocks."""
    return name.startswith("blocks.") and parameter.ndim == 2


def convolutions(name: str, parameter: nn.Parameter) -> bool:
    """The rule for convolutional networks: kernels wider than a pixel, but not those that make the output."""
    return parameter.ndim == 4 and parameter.shape[-1] == 3 and not name.endswith("out.weight")


def matrix_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter as Muon sees it: outputs by everything else."""
    return torch.Size([parameter.shape[0], parameter.numel() // parameter.shape[0]])


def learning_rate(rates: Rates, step: int, progress: float) -> float:
    """Linear warm-up over steps, then a cosine over the run's progress (0..1) down to ``last_rate``."""
    warm = min(1.0, (step + 1) / max(1, rates.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return rates.learning_rate * warm * (rates.last_rate + (1 - rates.last_rate) * cosine)


def adamw_step(
    weights: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rate: float, step: int, rates: Rates
) -> None:
    """AdamW (Loshchilov and Hutter 2019) in place; ``first`` and ``second`` are the moments, steps count from 1."""
    beta_first, beta_second = rates.betas
    first.lerp_(gradient, 1 - beta_first)
    second.mul_(beta_second).addcmul_(gradient, gradient, value=1 - beta_second)
    spread = (second / (1 - beta_second**step)).sqrt_().add_(1e-8)
    weights.mul_(1 - rate * rates.weight_decay)
    weights.addcdiv_(first, spread, value=-rate / (1 - beta_first**step))


def muon_step(
    weights: Tensor, momentum: Tensor, gradient: Tensor, share: float, rates: Rates, matrices: Sequence[torch.Size]
) -> None:
    """Muon (Jordan 2024) in place: the momentum of every matrix made orthogonal, a step of ``share`` times its rate.

    Matrices of one shape go through the Newton-Schulz iteration together.
    """
    momentum.lerp_(gradient, 1 - rates.matrix_momentum)
    wanted = gradient.lerp(momentum, rates.matrix_momentum)
    stops = list(itertools.accumulate(shape.numel() for shape in matrices))
    places = [slice(stop - shape.numel(), stop) for stop, shape in zip(stops, matrices, strict=True)]
    rate = share * rates.matrix_rate
    weights.mul_(1 - rate * rates.weight_decay)
    for shape in sorted(set(matrices)):
        alike = [place for place, own in zip(places, matrices, strict=True) if own == shape]
        turned = orthogonal(torch.stack([wanted[place].view(shape) for place in alike]))
        scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
        for place, update in zip(alike, turned, strict=True):
            weights[place].sub_(update.flatten(), alpha=scale)


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of ``matrices`` ``[n, rows, columns]``, in float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.transpose(1, 2) if tall else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()
