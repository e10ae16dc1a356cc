"""Learning-rate schedules by hand, and how micro-batches are shared among ranks."""

import pytest
import torch

from configs.training import OptimizerConfig
from learner.training.batches import MicroBatch
from learner.training.deepspeed_engine import learning_rate_factor
from learner.training.ranks import share


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # Four steps after a warm-up of two: nothing, a quarter, a half, three quarters of the way.
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        # (1 + cos(pi x)) / 2 at the same places: cos(45 degrees) is 0.70711.
        ("cosine", [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
    ],
)
def test_a_schedule_by_hand(schedule, expected):
    factor = learning_rate_factor(OptimizerConfig(warmup_steps=2, schedule=schedule), total_steps=6)
    assert [factor(step) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_a_warm_up_as_long_as_the_run_never_falls():
    factor = learning_rate_factor(OptimizerConfig(warmup_steps=4, schedule="linear"), total_steps=4)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def micro(tokens: int) -> MicroBatch:
    flat = torch.arange(tokens)
    values = torch.ones(tokens)
    return MicroBatch(torch.ones(2, tokens, dtype=torch.int64), flat, flat, values, values, values, torch.arange(2))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("total", [1, 2, 4, 6, 7])
def test_ranks_get_equally_many_micro_batches_and_each_one_once(count, total):
    micros = [micro(number + 1) for number in range(total)]
    shares = [share(micros, rank, count) for rank in range(count)]
    assert len({len(part) for part in shares}) == 1
    real = [len(part.targets) for one in shares for part in one if len(part.targets)]
    assert sorted(real) == list(range(1, total + 1))
    fillers = [part for one in shares for part in one if not len(part.targets)]
    assert len(fillers) < count
    for filler in fillers:
        assert filler.input_ids.shape == (1, 1)
        assert {len(getattr(filler, name)) for name in vars(filler)} == {0, 1}
        assert filler.index.dtype == torch.int64
