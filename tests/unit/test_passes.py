"""Passes on one rank, and what a rank does with micro-batches that only fill its share up."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Trajectory
from learner.training.batches import MicroBatch
from learner.training.minibatches import split
from learner.training.passes import Passes
from learner.training.ranks import Ranks, share
from tests import factories

LENGTHS = (3, 9, 5)


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def passes() -> Passes:
    return Passes(Ranks(), 12, torch.device("cpu"))


def trajectory(response: int) -> Trajectory:
    """A prompt of one token, and a response whose second token was inserted."""
    mask = np.ones(response, np.uint8)
    mask[1] = 0
    tokens = np.arange(response + 1, dtype=np.int32) + np.int32(10 * response)
    return factories.trajectory(1, response, mask=mask, tokens=tokens)


@pytest.fixture
def batch() -> list[Trajectory]:
    return [trajectory(length) for length in LENGTHS]


def doubled(micro: MicroBatch) -> torch.Tensor:
    return 2.0 * micro.targets.float()


def targets_of(items: list[Trajectory]) -> list[torch.Tensor]:
    return [torch.from_numpy(item.tokens[1:][item.loss_mask == 1].astype(np.float32)) for item in items]


def test_a_pass_gives_each_trajectory_its_own_tokens(passes, batch):
    def forward(micro: MicroBatch) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return doubled(micro)

    for result, targets in zip(passes.evaluate(forward, batch), targets_of(batch), strict=True):
        assert torch.equal(result, 2 * targets)


def test_the_gradient_is_of_the_mean_and_fill_ups_add_none(passes, batch):
    weight = torch.ones((), requires_grad=True)
    objectives: list[int] = []
    backwards: list[torch.Tensor] = []

    def forward(micro: MicroBatch) -> torch.Tensor:
        return weight * micro.targets

    def objective(micro: MicroBatch, output: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        objectives.append(len(micro.targets))
        return output.sum(), {"tokens": float(len(micro.targets))}

    def backward(loss: torch.Tensor) -> None:
        backwards.append(loss)
        loss.backward()

    minibatch = passes.minibatch(batch, (2, 0), torch.zeros(3).unbind())
    assert len(minibatch.micros) == 1
    # As the last of three ranks gets it, and as all of them together.
    fill_ups = share(minibatch.micros, 2, 3)
    cases: list[tuple[list[MicroBatch], list[int]]] = [(fill_ups, []), ([*minibatch.micros, *fill_ups], [6])]
    for mine, seen in cases:
        weight.grad = torch.zeros(())
        objectives.clear()
        backwards.clear()
        outputs, sums = passes.accumulate(
            forward, backward, replace(minibatch, mine=tuple(mine)), objective, ("tokens",)
        )
        assert objectives == seen
        # Every rank passes back as often as the others.
        assert len(backwards) == len(outputs) == len(mine)
        tokens = minibatch.tokens * len(seen)
        total = len(seen) * sum(float(targets.sum()) for targets in targets_of([batch[2], batch[0]]))
        assert sums == {"loss": total, "tokens": tokens}
        assert float(weight.grad) == pytest.approx(total / minibatch.tokens)


def test_micro_batches_of_any_size_add_up_to_the_mean_over_all_tokens(passes, batch):
    weight = torch.ones((), requires_grad=True)
    minibatch = passes.minibatch(batch, (2, 1), torch.arange(3.0).unbind())
    # Sequences of 9 and 5 tokens: side by side they would be over the budget of 12. Each has its own advantage.
    assert [micro.advantages.tolist() for micro in minibatch.micros] == [[1.0] * 8, [2.0] * 4]
    # Where another rank passes the last one, its tokens count all the same.
    for mine in (minibatch.micros, minibatch.micros[:1]):
        weight.grad = None
        outputs, sums = passes.accumulate(
            lambda micro: weight * micro.targets,
            torch.Tensor.backward,
            replace(minibatch, mine=mine),
            lambda micro, output: (output.sum(), {"tokens": float(len(output))}),
            ("tokens",),
        )
        assert not any(output.requires_grad for output in outputs)
        total = sum(float(micro.targets.sum()) for micro in mine)
        assert sums == {"loss": total, "tokens": sum(len(micro.targets) for micro in mine)}
        assert weight.grad is not None
        assert float(weight.grad) == pytest.approx(total / 12)


def test_what_a_minibatch_collects_is_found_under_its_trajectories(passes, batch):
    minibatch = passes.minibatch(batch, (2, 0), torch.zeros(3).unbind())
    result = passes.evaluate_minibatch(doubled, minibatch)
    targets = targets_of(batch)
    assert torch.equal(result[0], 2 * targets[0])
    assert torch.equal(result[2], 2 * targets[2])
    assert result.keys() == {0, 2}
    assert torch.equal(minibatch.gather(result, minibatch.micros[0]), doubled(minibatch.micros[0]))


@given(st.integers(0, 40), st.integers(1, 12), st.text(max_size=3))
def test_a_split_has_every_place_once_in_parts_that_differ_by_one_at_most(count, parts, seed):
    result = split(count, parts, seed)
    assert sorted(place for part in result for place in part) == list(range(count))
    sizes = {len(part) for part in result}
    assert len(result) == min(parts, count)
    assert all(sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_a_split_is_random_and_follows_from_its_seed():
    one, again, other = (split(40, 3, seed) for seed in ("1", "1", "2"))
    assert one == again != other
    assert all(part != sorted(part) for part in (*one, *other))
