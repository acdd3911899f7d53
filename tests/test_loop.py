"""The training loop on a network of a few numbers: falling loss, exact resume, partners, teams, curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from livetalk.distill.curves import draw_curves, fell, read_log, smoothed
from livetalk.distill.learner import Learner, LoopState, flat_weights, write_weights
from livetalk.distill.loop import CHECKPOINT, CURVES, LOG_FILE, RUN_FILE, Loop, LoopConfig, Partner
from livetalk.distill.optimisers import convolutions, in_blocks, matrix_shape, orthogonal
from livetalk.distill.ranks import run_ranks, run_shares
from livetalk.types import LiveTalkError

CONFIG = LoopConfig(steps=8, learning_rate=0.05, matrix_rate=0.05, warmup_steps=2, log_every=1, curves=False)


class Net(nn.Module):
    """A matrix inside a block, a convolution, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4, bias=False)])
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.out = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.first(self.blocks[0](rows)[:, None]))[:, 0]


def batch_loss(model: nn.Module, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """The network shall turn rows round."""
    rows = torch.randn(4, 4, 4, generator=draws)
    loss = (model(rows) - rows.flip(-1)).square().mean()
    return loss, {"error": float(loss.detach())}


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def train(folder: Path, config: LoopConfig = CONFIG, stop_after: int | None = None, partner: bool = False) -> Loop:
    critic = Partner(Learner(network(1), batch_loss, config), every=3, alone=2) if partner else None
    loop = Loop(network(), batch_loss, config, folder, {"stage": "test"}, partner=critic)
    loop.run(stop_after=stop_after)
    return loop


def train_rank(folder: str) -> None:
    train(Path(folder))


def same(one: Loop, other: Loop) -> bool:
    pairs = zip(one._learners.values(), other._learners.values(), strict=True)
    return all(
        torch.equal(a.state.weights, b.state.weights) and torch.equal(a.state.average, b.state.average)
        for a, b in pairs
    )


def test_the_loss_falls_and_is_drawn(tmp_path: Path) -> None:
    loop = train(tmp_path, replace(CONFIG, steps=40, curves=True))
    curves = read_log(tmp_path / LOG_FILE)
    assert next(iter(curves)) == "loss"
    assert fell(curves["loss"][1]) < 0.8
    assert curves["fixed"][1][-1] < 0.8 * curves["fixed"][1][0]
    assert (tmp_path / CURVES).stat().st_size > 1_000
    about = json.loads((tmp_path / RUN_FILE).read_text())
    assert about["stage"] == "test"
    assert about["loop"]["steps"] == 40
    assert len(about["commits"]) == 1
    assert loop.averaged().keys() == network().state_dict().keys()


@pytest.mark.parametrize("partner", [False, True])
def test_resume_is_exact(tmp_path: Path, partner: bool) -> None:
    whole = train(tmp_path / "whole", partner=partner)
    assert train(tmp_path / "part", stop_after=3, partner=partner).step == 3
    log = tmp_path / "part" / LOG_FILE
    with log.open("a") as file:
        file.write('{"step": 7, "loss": 9.0}\n')  # a run that was killed after its last checkpoint
    resumed = train(tmp_path / "part", partner=partner)
    assert 9.0 not in read_log(log)["loss"][1]
    assert resumed.step == 8
    assert same(whole, resumed)
    assert not torch.equal(whole.state.weights, whole.state.average)


def test_a_partner_has_more_turns(tmp_path: Path) -> None:
    loop = train(tmp_path, partner=True)
    assert loop.step == 8
    assert loop.state.step == 2, "the first network has its turn in steps 3 and 6"
    assert {"partner_loss", "partner_fixed"} <= set(read_log(tmp_path / LOG_FILE))


def test_the_average_may_start_late(tmp_path: Path) -> None:
    loop = train(tmp_path, replace(CONFIG, average_from_step=100))
    assert torch.equal(loop.state.weights, loop.state.average)


def test_two_ranks_draw_their_own_batches(tmp_path: Path) -> None:
    run_ranks(2, train_rank, str(tmp_path))
    together = LoopState.load(tmp_path / CHECKPOINT, flat_weights(network()))
    alone = train(tmp_path / "alone")
    assert together.step == 8
    assert not torch.equal(together.weights, alone.state.weights)


def test_accelerate_trains_the_same_weights(tmp_path: Path) -> None:
    state = pytest.importorskip("accelerate.state")
    try:
        found = train(tmp_path / "accelerate", replace(CONFIG, engine="accelerate")).state
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.allclose(found.weights.cpu(), train(tmp_path / "plain").state.weights, atol=1e-3)


def test_shares_are_worked_through(tmp_path: Path) -> None:
    run_shares(1, Path.touch, [tmp_path / name for name in "abc"], "touch", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abc")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    loop = train(tmp_path, stop_after=1)
    with pytest.raises(LiveTalkError, match=f"{loop.state.weights.numel()} weights"):
        LoopState.load(tmp_path / CHECKPOINT, torch.zeros(8))


def test_rules_choose_matrices() -> None:
    named = dict(network().named_parameters())
    assert [name for name, p in named.items() if in_blocks(name, p)] == ["blocks.0.weight"]
    assert [name for name, p in named.items() if convolutions(name, p)] == ["first.weight"]
    assert matrix_shape(named["first.weight"]) == (2, 9)


def test_flat_weights_go_back_where_they_came_from() -> None:
    one, two = network(0), network(1)
    for rule in (in_blocks, convolutions):
        write_weights(two, flat_weights(one, rule), rule)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_orthogonal_keeps_directions_and_levels_strengths() -> None:
    matrices = torch.randn(3, 24, 48, generator=torch.Generator().manual_seed(0))
    strengths = torch.linalg.svdvals(orthogonal(matrices))
    assert float(strengths.min()) > 0.5
    assert float(strengths.max()) < 1.5


def test_curves_without_a_log_are_not_drawn(tmp_path: Path) -> None:
    assert not draw_curves(tmp_path / LOG_FILE, tmp_path / CURVES)
    np.testing.assert_allclose(smoothed(np.array([1.0, 3.0, 5.0]), share=0.7), [1, 2, 4])
