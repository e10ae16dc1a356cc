"""Micro-batches: what is padded, where sampled tokens are predicted, and the token budget."""

import pytest
import torch

from bus.messages import Trajectory
from learner.training.batches import micro_batches, sampled_tokens
from tests.factories import of_tokens


def of_length(length: int) -> Trajectory:
    """One whose last sampled token has `length` tokens before it."""
    return of_tokens([1] * (length - 1), [2, 3], [1, 1])


def test_a_micro_batch_by_hand():
    short = of_tokens([10, 11], [12, 13], [1, 1], temperature=0.5)
    # Tool output 22, 23 between sampled tokens, and 25 inserted at the end, which nothing needs.
    long = of_tokens([20], [21, 22, 23, 24, 25], [1, 0, 0, 1, 0], temperature=0.7)
    (micro,) = micro_batches([short, long], torch.tensor([1.0, -2.0]), budget=100)
    # Longest first. 24 is predicted from four tokens, 13 from three: L = 4.
    assert micro.input_ids.tolist() == [[20, 21, 22, 23], [10, 11, 12, 13]]
    assert micro.targets.tolist() == [21, 24, 12, 13]
    # Each is predicted one place before its own: 0 and 3 in row 0, 1 and 2 in row 1, which begins at 4.
    assert micro.index.tolist() == [0, 3, 5, 6]
    assert micro.behaviour_logprobs.tolist() == pytest.approx([-2.1, -2.4, -1.2, -1.3])
    assert micro.advantages.tolist() == [-2.0, -2.0, 1.0, 1.0]
    assert micro.temperatures.tolist() == pytest.approx([0.7, 0.7, 0.5, 0.5])
    assert sampled_tokens(long) == 2


def test_shorter_sequences_are_padded_on_the_right():
    micro = micro_batches([of_length(5), of_length(3)], torch.zeros(2), budget=10)[0]
    # Of length 3: prompt 1 1, then 2 predicts 3; the last sampled token itself may stand in the padding, unread.
    assert micro.input_ids[1, :3].tolist() == [1, 1, 2]
    assert micro.index.tolist() == [3, 4, 6, 7]


def test_micro_batches_keep_to_the_budget_with_padding():
    lengths = [7, 3, 9, 4, 4, 8, 2, 30]
    micros = micro_batches([of_length(length) for length in lengths], torch.arange(8.0), budget=18)
    # Sorted: 30 | 9 8 | 7 4 | 4 3 2: 30 is over the budget and alone, 7 7 7 would be 21, 4 4 4 is 12.
    assert [tuple(micro.input_ids.shape) for micro in micros] == [(1, 30), (2, 9), (2, 7), (3, 4)]
    # Every trajectory once, each with its own advantage on its two sampled tokens.
    advantages = torch.cat([micro.advantages for micro in micros]).tolist()
    assert advantages == [a for a in [7.0, 2.0, 5.0, 0.0, 3.0, 4.0, 1.0, 6.0] for _ in range(2)]


def test_token_ids_reach_the_model_unchanged():
    micro = micro_batches([of_tokens([49_151], [151_935, 7], [1, 1])], torch.zeros(1), budget=1)[0]
    assert micro.input_ids.dtype == torch.int64
    assert micro.input_ids.tolist() == [[49_151, 151_935]]
    assert micro.targets.tolist() == [151_935, 7]
