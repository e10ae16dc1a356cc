"""How many rollouts are admitted to a cache, from what runs and what ended."""

from collections.abc import Callable
from contextlib import ExitStack
from random import Random

import numpy as np
import pytest

from actors.admission import Admission
from actors.engine import DeadlineError, EngineError
from configs.schema import RolloutConfig

LIMIT = 1000
CONFIG = RolloutConfig(max_prompt_tokens=100, max_response_tokens=1280)


class Rollouts:
    """Rollouts by hand: each has a prompt of 100 tokens and as many of a response as it is told."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.lengths: dict[int, int] = {}
        self._scopes: dict[int, ExitStack] = {}
        self._number = 0

    def begin(self, length: int = 0) -> int:
        number = self._number = self._number + 1
        self.lengths[number] = length
        scope = self._scopes[number] = ExitStack()
        scope.enter_context(self.admission.running(100, lambda: self.lengths[number]))
        return number

    def end(self, number: int) -> None:
        self._scopes.pop(number).close()
        del self.lengths[number]

    def room(self) -> int:
        return self.admission.room(len(self.lengths))

    def have_ended(self, length: Callable[[], int], count: int = 1000) -> None:
        for _ in range(count):
            number = self.begin()
            self.lengths[number] = length()
            self.end(number)


def at(capacity: int) -> Rollouts:
    return Rollouts(Admission(capacity, LIMIT, CONFIG))


def test_lengths_that_nobody_knows_may_be_any():
    # Each is 100 tokens of prompt and grows by 1,280 at most, but not all do: a third of what they might occupy at most.
    room = at(100_000).room()
    assert 1.8 * 100_000 / 1380 < room < 3.5 * 100_000 / 1380


def test_room_follows_what_responses_occupy_not_their_longest():
    rollouts = at(100_000)
    random = Random(0)
    rollouts.have_ended(lambda: 1200 if random.random() < 0.1 else 100)
    # Of a mean of 210 tokens; nine of ten are gone before the others are long.
    assert 250 < rollouts.room() < 500


def test_responses_that_are_all_of_one_length_get_room_for_it():
    rollouts = at(100_000)
    rollouts.have_ended(lambda: 500)
    begun = [rollouts.begin() for _ in range(rollouts.room())]
    assert 140 < len(begun) < 170  # 600 tokens each
    for number in begun:
        rollouts.lengths[number] = 490
    assert rollouts.room() < 10  # They leave before new ones are long.
    assert sum(100 + length for length in rollouts.lengths.values()) < 100_000


def test_longer_responses_are_noticed_while_they_run():
    rollouts = at(100_000)
    rollouts.have_ended(lambda: 50)
    known = rollouts.room()
    for number in [rollouts.begin() for _ in range(200)]:
        rollouts.lengths[number] = 1000
    assert rollouts.room() == 0  # 220,000 tokens
    for number in list(rollouts.lengths):
        rollouts.end(number)
    assert rollouts.room() < known / 2


def test_those_that_end_first_do_not_make_all_look_short():
    rollouts = at(1_000_000)
    running = [rollouts.begin() for _ in range(500)]
    for number in running[:50]:
        rollouts.lengths[number] = 20
        rollouts.end(number)
    for number in running[50:]:
        rollouts.lengths[number] = 30
    rollouts.room()
    # One of ten has ended within 20 tokens, and the others go on.
    within_20, within_30 = np.exp(-rollouts.admission._hazard()[2:4])
    assert (within_20, within_30) == (pytest.approx(1.0, abs=0.01), pytest.approx(0.9, abs=0.02))


def test_old_responses_are_forgotten():
    rollouts = at(100_000)
    rollouts.have_ended(lambda: 1200)
    few = rollouts.room()
    rollouts.have_ended(lambda: 50, count=1500)
    assert rollouts.room() > 4 * few


def test_lengths_that_were_never_seen_stay_possible_however_many_have_ended():
    rollouts = at(100_000)
    rollouts.have_ended(lambda: 50)
    rollouts.admission._ends *= 0.0  # as after some hundred thousand responses, when what is old weighs nothing
    rollouts.admission._exposure *= 0.0
    assert rollouts.room() == at(100_000).room()


def test_a_rollout_that_has_not_begun_or_is_being_stored_counts_as_one_that_begins():
    rollouts = at(100_000)
    free = rollouts.room()
    assert rollouts.admission.room(10) == free - 10
    assert rollouts.admission.room(10_000) == 0


def test_room_stays_within_the_limit_and_one_may_always_run():
    config = CONFIG
    assert Admission(10**9, 64, config).room(0) == 64
    assert Admission(10**9, 64, config).room(60) == 4
    tight = Admission(50, 64, config)
    assert tight.room(0) == 1
    assert tight.room(1) == 0


def test_deadlines_are_learned_from_and_failures_are_not():
    late, failed, none = at(100_000), at(100_000), at(100_000)
    for rollouts, error in ((late, DeadlineError(1270)), (failed, EngineError("died"))):
        for _ in range(500):
            with pytest.raises(type(error)), rollouts.admission.running(100, lambda: 1270):
                raise error
    assert failed.room() == none.room()
    assert late.room() < none.room() / 1.5
