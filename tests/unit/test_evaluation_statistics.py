"""avg@k, pass@k and their intervals, against counting and against what they promise."""

from itertools import combinations

import numpy as np
import pytest

from evaluation.statistics import LEVEL, estimate, pass_at_k


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one(samples: int):
    for correct in range(samples + 1):
        outcomes = [True] * correct + [False] * (samples - correct)
        for k in range(1, samples + 1):
            choices = [any(choice) for choice in combinations(outcomes, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(choices) / len(choices))


def test_pass_at_k_is_unbiased():
    # Over all outcomes of n = 6 samples that are right with probability p, its mean is 1 - (1 - p)^k.
    n, p = 6, 0.3
    weights = [np.prod([p if bit else 1 - p for bit in bits]) for bits in np.ndindex(*[2] * n)]
    for k in range(1, n + 1):
        values = [pass_at_k(n, sum(bits), k) for bits in np.ndindex(*[2] * n)]
        assert np.dot(weights, values) == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_outside_its_definition(samples: int, correct: int, k: int):
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(samples, correct, k)


@pytest.mark.parametrize(("problems", "ability"), [(50, (0.6, 0.6)), (50, (0.3, 2.0)), (120, (0.5, 5.0))])
def test_intervals_hold_the_truth_about_as_often_as_they_say(problems: int, ability: tuple[float, float]):
    rng = np.random.default_rng(5)
    truth = ability[0] / sum(ability)
    held = []
    for _ in range(300):
        values = rng.binomial(4, rng.beta(*ability, size=problems)) / 4
        found = estimate(values, draws=600)
        held.append(found.low <= truth <= found.high)
    # The standard deviation of the share of 300 is 1.3 %.
    assert LEVEL - 0.04 <= np.mean(held) <= LEVEL + 0.03


@pytest.mark.parametrize("problems", [1, 5, 30])
def test_all_wrong_does_not_mean_that_none_can_be_right(problems: int):
    found = estimate(np.zeros(problems))
    assert (found.value, found.low) == (0.0, 0.0)
    # With this share of solvable problems, none among so many is drawn in 2.5 % of all cases.
    assert (1 - found.high) ** problems == pytest.approx(0.025)
    right = estimate(np.ones(problems))
    assert (right.value, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(1 - found.high)
    same = estimate(np.zeros(problems), least=-1.0)
    assert same.low == pytest.approx(-same.high)


def test_intervals_are_the_same_every_time_and_stay_in_bounds():
    values = np.array([1.0] * 29 + [0.75])
    assert estimate(values) == estimate(values)
    assert 0.0 <= estimate(values).low < values.mean() < estimate(values).high <= 1.0


def test_an_estimate_of_nothing():
    with pytest.raises(ValueError, match="at least one problem"):
        estimate(np.array([]))
