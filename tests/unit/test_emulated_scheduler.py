"""The emulated engine's cache fills, evicts and preempts as vLLM's would: by a clock of the test's own."""

import math

import pytest

from actors.emulated_scheduler import BLOCK, PREFILL_SPEED, Request, Scheduler
from bus.messages import WeightVersion

FIRST, SECOND = WeightVersion(epoch=0, n=0), WeightVersion(epoch=0, n=1)


def scheduler(capacity: int, running: int = 100) -> Scheduler:
    made = Scheduler(capacity, running)
    made.load(FIRST)
    return made


def request(prompt: int, length: int, first: int = 0) -> Request:
    return Request(list(range(first, first + prompt)), list(range(50_000 + first, 50_000 + first + length)))


def run(scheduler: Scheduler) -> list[Request]:
    """Returns requests in the order in which they end."""
    ended: list[Request] = []
    while not math.isinf(event := scheduler.next_event):
        ended += scheduler.advance(event)
    return ended


def test_a_request_samples_a_token_a_unit_after_its_prompt_is_computed():
    engine = scheduler(1000)
    asked = request(100, 50)
    engine.ask(asked)
    start = 100 / PREFILL_SPEED
    assert engine.advance(start + 20) == []
    assert engine.sampled(asked) == pytest.approx(20)
    assert engine.sampled(asked, start + 30) == pytest.approx(30)
    assert engine.occupied == pytest.approx(120)
    assert engine.advance(start + 60) == [asked]
    assert (engine.sampled(asked), engine.running) == (50, 0)
    assert engine.occupied == pytest.approx(0)


def test_requests_queue_for_a_place_and_for_room():
    places, room = scheduler(10_000, running=2), scheduler(230)
    for engine in (places, room):
        asked = [request(100, length, 1000 * length) for length in (30, 60, 10)]
        for each in asked:
            engine.ask(each)
        assert engine.running == (2 if engine is places else 1)
        ended = run(engine)
        assert ended == asked if engine is room else ended == [asked[0], asked[2], asked[1]]
        assert engine.preemptions == 0


def test_the_last_request_is_preempted_by_a_full_cache_and_loses_nothing():
    engine = scheduler(400)
    first, last = request(100, 150), request(100, 140, 1000)
    engine.ask(first)
    engine.ask(last)
    engine.advance(105)
    assert (engine.running, engine.preemptions) == (1, 1)
    kept = last.sampled
    assert kept == pytest.approx(100, abs=1)
    # The other goes on alone; the last begins again where it was, once its tokens are computed anew.
    assert run(engine) == [first, last]
    assert engine.time > 1 + 150 + 40
    assert engine.sampled(last) == 140
    assert last.versions == [(0, FIRST)]
    assert engine.preemptions == 1
    # Of its own 200 tokens those of 50 had to go.
    assert 250 <= engine.prefilled_tokens <= 250 + BLOCK
    assert engine.evicted_tokens >= 48


def test_the_next_turn_finds_its_tokens_in_the_cache_until_others_need_the_room():
    for between, found in ((0, True), (950, False)):
        engine = scheduler(1000)
        turn = request(96, 64)
        engine.ask(turn)
        run(engine)
        if between:
            engine.ask(request(between, 45, 10_000))
            run(engine)
        before, evicted = engine.prefilled_tokens, engine.evicted_tokens
        engine.ask(Request([*turn.tokens, *turn.written, *range(90_000, 90_040)], [1] * 10))
        assert engine.prefilled_tokens - before == (40 if found else 200)
        assert (evicted > 0) == (not found)


def test_blocks_of_other_versions_are_computed_again():
    for load_during, load_after in ((True, False), (False, True)):
        engine = scheduler(1000)
        turn = request(96, 64)
        engine.ask(turn)
        if load_during:
            engine.advance(30 + 96 / PREFILL_SPEED)
            engine.load(SECOND)
        run(engine)
        if load_after:
            engine.load(SECOND)
        assert turn.versions == ([(0, FIRST), (30, SECOND)] if load_during else [(0, FIRST)])
        before = engine.prefilled_tokens
        engine.ask(Request([*turn.tokens, *turn.written], [1] * 10))
        assert engine.prefilled_tokens - before == 160


def test_a_request_that_waited_for_a_load_starts_under_the_new_version():
    engine = scheduler(1000, running=1)
    first, second = request(10, 20), request(10, 20, 1000)
    engine.ask(first)
    engine.ask(second)
    engine.advance(5)
    engine.load(SECOND)
    run(engine)
    assert second.versions == [(0, SECOND)]


def test_a_withdrawn_request_leaves_its_room_to_others():
    engine = scheduler(230)
    first, second, third = (request(100, 100, 1000 * n) for n in range(3))
    for each in (first, second, third):
        engine.ask(each)
    assert engine.running == 1
    engine.withdraw(second)
    engine.withdraw(first)
    assert (engine.running, third.running) == (1, True)
    assert engine.occupied == pytest.approx(100)
    assert run(engine) == [third]


def test_a_request_larger_than_the_cache_is_refused_and_one_as_large_runs():
    engine = scheduler(200)
    with pytest.raises(ValueError, match=r"201 tokens .* 200"):
        engine.ask(request(100, 101))
    engine.ask(exact := request(100, 100))
    assert run(engine) == [exact]


def test_a_crowd_is_served_whole_within_the_cache():
    engine = scheduler(3000, running=40)
    asked = [request(50 + n % 7 * 20, 20 + n * 37 % 400, 1000 * n) for n in range(200)]
    for each in asked:
        engine.ask(each)
    ended: list[Request] = []
    while not math.isinf(event := engine.next_event):
        ended += engine.advance(event)
        held = sum(len(each.tokens) + engine.sampled(each) for each in asked if each.running)
        assert engine.occupied == pytest.approx(held, abs=1e-3)
        assert held <= 3000 + 1e-3
        assert held + BLOCK * len(engine._idle) <= 3000 + BLOCK
    assert len(ended) == len(set(ended)) == 200
    assert engine.preemptions > 0
