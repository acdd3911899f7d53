"""What a network thinks clean latents are: its output read as x0 or flow, with guidance (spec sections 9 and 10.3).

Teacher and critic see a whole clip at once (or block-causally, with a ``ChunkMask``); this module turns their raw
output, whichever target they were trained on, into clean latents and flow, and adds the calls that guidance needs.
It does not know losses, samplers, where noise levels come from or how a network is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk.flow import FULL_NOISE, FlowSchedule, flow_from_x0, guide, x0_from_flow
from livetalk.model.attention import ChunkMask
from livetalk.model.conditions import AudioVectors, Conditions, TextKeys
from livetalk.model.transformer import CausalDiT
from livetalk.types import LiveTalkError


@dataclass(frozen=True)
class Guidance:
    """Strength of classifier-free guidance in text and sound; 1, 1 = none (spec section 9).

    Equal strengths ``g`` guide both at once: ``u + g (c - u)``. Else ``u + text (n - u) + audio (c - n)``. Here ``c``
    has text and sound, ``n`` text but no sound, ``u`` the negative text and no sound.
    """

    text: float = 1.0
    audio: float = 1.0

    @classmethod
    def as_published(cls, text: float, audio: float) -> Guidance:
        """Strengths that the published DMD configs mean (spec section 10.3): equal scales ``a`` mean ``a + 1``."""
        return cls(text + 1, audio + 1) if text == audio else cls(text, audio)

    @property
    def calls(self) -> int:
        """Network calls it takes: 1 to 3."""
        if self.text == self.audio:
            return 1 if self.text == 1 else 2
        return 2 if self.text == 1 else 3

    def branches(self, cond: Conditions, negative_text: Tensor | None = None, drive_width: int = 0) -> list[Conditions]:
        """Conditions of its calls, text and sound first; see ``combine``.

        Args:
            cond: of the clip, not prepared as far as guidance changes it.
            negative_text: rows ``[B, L, W]`` of what should not be seen; None = zero rows.
            drive_width: ``ModelConfig.drive_width``; what is driven stays without sound.

        Raises:
            LiveTalkError: text or audio is prepared already.
        """
        if self.calls == 1:
            return [cond]
        silent = cond.silent(drive_width)
        if self.text == 1:
            return [cond, silent]
        if negative_text is None:
            if isinstance(cond.text, TextKeys):
                raise LiveTalkError("Guidance needs text as rows, not as keys. Call it before Conditions are prepared.")
            negative_text = torch.zeros_like(cond.text)
        negative = dataclasses.replace(silent, text=negative_text)
        return [cond, negative] if self.calls == 2 else [cond, silent, negative]

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        """Guided output from one output for each of ``branches``, in their order."""
        if len(outputs) == 3:
            return guide(outputs[2], outputs[0], self.text, self.audio, outputs[1])
        return outputs[0] if len(outputs) == 1 else guide(outputs[1], outputs[0], self.audio, self.audio)


@dataclass(frozen=True)
class Score:
    """A network read as a guess of clean latents.

    Attributes:
        network: teacher or critic.
        prediction: what it gives, see ``RolloutConfig.prediction``.
        guidance: see ``Guidance``.
        negative_text: rows ``[B or 1, L, W]``; None = zero rows.
        table: noise levels are looked up in it, as the published wrapper does; None = ``t / 1000``.
        together: all calls of guidance as one batch (a GPU that is not full), else one after the other.
    """

    network: CausalDiT
    prediction: str = "velocity"
    guidance: Guidance = Guidance()
    negative_text: Tensor | None = None
    table: FlowSchedule | None = None
    together: bool = False

    def branches(self, cond: Conditions) -> list[Conditions]:
        """Prepared conditions of every call; make them once for all steps of a sampler."""
        negative, drive = self.negative_text, self.network.config.drive_width
        if negative is not None:
            negative = negative.expand(cond.image.shape[0], -1, -1)
        return [self.network.prepare(branch) for branch in self.guidance.branches(cond, negative, drive)]

    def x0(
        self, x: Tensor, t: Tensor, branches: Sequence[Conditions], *, block_mask: ChunkMask | None = None
    ) -> Tensor:
        """Clean latents seen through ``x``.

        Args:
            x: noisy latents ``[B, C, F, H, W]``.
            t: noise level 0..1000, ``[B]`` or ``[B, F]``.
            branches: see ``branches``.
            block_mask: block-causal; None = every frame sees every frame.
        """
        output = self._output(x, t, branches, block_mask)
        return output_to_x0(output, x, level(t, x, self.table), branches[0].portrait, self.prediction)

    def flow(
        self, x: Tensor, t: Tensor, branches: Sequence[Conditions], *, block_mask: ChunkMask | None = None
    ) -> Tensor:
        """Flow ``noise - x0`` at ``x``; arguments as for ``x0``, noise level not 0."""
        output = self._output(x, t, branches, block_mask)
        return output_to_flow(output, x, level(t, x, self.table), branches[0].portrait, self.prediction)

    def _output(self, x: Tensor, t: Tensor, branches: Sequence[Conditions], block_mask: ChunkMask | None) -> Tensor:
        # All targets are affine in the clean latents, so guiding outputs is guiding x0 and flow.
        if self.together and len(branches) > 1:
            calls = len(branches)
            many = t.repeat(calls, *([1] * (t.dim() - 1)))
            joint = self.network(x.repeat(calls, 1, 1, 1, 1), many, stacked(branches), block_mask=block_mask)
            return self.guidance.combine(joint.chunk(calls))
        return self.guidance.combine([self.network(x, t, branch, block_mask=block_mask) for branch in branches])


def level(t: Tensor, x: Tensor, table: FlowSchedule | None = None) -> Tensor:
    """Noise level 0..1 for ``t`` (0..1000, ``[B]`` or ``[B, F]``), shaped to go with ``x`` ``[B, C, F, H, W]``.

    Args:
        t: noise level the network is told.
        x: latents.
        table: take the nearest entry of this table; None = ``t / 1000``.
    """
    sigma = t.float() / FULL_NOISE if table is None else table.sigma(t)
    return sigma.to(x.device, torch.float32).view(len(t), 1, -1, 1, 1)


def output_to_x0(output: Tensor, x: Tensor, sigma: float | Tensor, portrait: Tensor, prediction: str) -> Tensor:
    """Clean latents from a network's raw output.

    Args:
        output: ``[B, C, F, H, W]``.
        x: what the network saw.
        sigma: noise level of ``x``.
        portrait: portrait latent on every frame, ``[B, C, F, H, W]``.
        prediction: see ``RolloutConfig.prediction``.
    """
    if prediction == "portrait_residual":
        return output + portrait.to(output)
    return x0_from_flow(output, x, sigma)


def output_to_flow(output: Tensor, x: Tensor, sigma: float | Tensor, portrait: Tensor, prediction: str) -> Tensor:
    """Flow ``noise - x0`` from a network's raw output; see ``output_to_x0``."""
    if prediction == "portrait_residual":
        return flow_from_x0(output + portrait.to(output), x, sigma)
    return output


def with_portrait(x: Tensor, portrait: Tensor) -> Tensor:
    """``x`` ``[B, C, F, H, W]`` with the portrait (``[B, C, 1 or F, H, W]``) as frame 0: the start of a clip."""
    return torch.cat((portrait[:, :, :1].to(x), x[:, :, 1:]), dim=2)


def stacked(conds: Sequence[Conditions]) -> Conditions:
    """Prepared conditions one behind the other in the batch."""
    texts = [cond.text for cond in conds if isinstance(cond.text, TextKeys)]
    sounds = [cond.audio.vectors for cond in conds if isinstance(cond.audio, AudioVectors)]
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Conditions(
        image=torch.cat([cond.image for cond in conds]),
        audio=AudioVectors(torch.cat(sounds, dim=1)),
        text=TextKeys(
            keys=tuple(torch.cat(layer) for layer in zip(*(text.keys for text in texts), strict=True)),
            values=tuple(torch.cat(layer) for layer in zip(*(text.values for text in texts), strict=True)),
            pooled=torch.cat(pooled) if pooled else None,
        ),
    )
