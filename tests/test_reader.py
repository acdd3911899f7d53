"""The reader of latents compares what two videos show of mouth, eyes and mood."""

from __future__ import annotations

import torch

from livetalk.distill.portraits import POSE_FIELDS
from livetalk.distill.reader import FAST, SLOW, TOLD, UNITS, Reader, truth_of

FRAMES = 4


def videos(count: int = 2) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, 3, FRAMES, 8, 8, generator=draws) for _ in range(2))


def test_truth_is_told_picture_by_picture_and_moods_once_a_frame() -> None:
    pictures = 4 * FRAMES - 3
    poses = torch.zeros(pictures, len(POSE_FIELDS))
    poses[:, POSE_FIELDS.index("wide")] = torch.arange(pictures).float()
    poses[:, POSE_FIELDS.index("smile")] = torch.arange(pictures).float()
    told = truth_of(poses)
    assert told.shape == (FRAMES, TOLD)
    fast = told[:, : -len(SLOW)].unflatten(1, (4, len(FAST)))
    assert torch.allclose(fast[1, :, FAST.index("wide")] * UNITS["wide"], torch.arange(1.0, 5.0))
    assert torch.allclose(told[1:, -len(SLOW)] * UNITS["smile"], torch.tensor([2.5, 6.5, 10.5]))


def test_the_distance_pulls_generated_latents_only_where_they_count() -> None:
    torch.manual_seed(0)
    reader = Reader(3, 8, width=8).requires_grad_(False)
    generated, truth = videos()
    portraits = truth[:, :, :1]
    counted = torch.ones(2, FRAMES)
    counted[:, 0] = 0
    assert reader.distance(truth, truth, portraits, counted) == 0
    generated.requires_grad_()
    truth.requires_grad_()
    reader.distance(generated, truth, portraits, counted).backward()
    assert truth.grad is None
    assert generated.grad is not None
    assert (generated.grad[:, :, 0] == 0).all(), "frame 0 does not count"
    assert (generated.grad[:, :, 1:].abs().amax(dim=(1, 3, 4)) > 0).all()
