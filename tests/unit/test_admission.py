"""How many rollouts are admitted to a cache."""

from actors.admission import ENOUGH, REMEMBERED, Admission
from configs.schema import RolloutConfig

CONFIG = RolloutConfig(max_prompt_tokens=100, max_response_tokens=900)


def test_unknown_lengths_are_taken_for_the_whole_budget():
    admission = Admission(10_000, 64, CONFIG)
    assert admission.slots == 10
    for _ in range(ENOUGH - 1):
        admission.ended(100)
    assert admission.slots == 10


def test_places_follow_the_long_ones_of_recent_responses():
    admission = Admission(10_000, 64, CONFIG)
    for i in range(100):
        admission.ended(400 if i % 10 == 0 else 50)
    assert admission.slots == 20  # 10 of 100 are long: room for long ones
    for _ in range(REMEMBERED):
        admission.ended(100)
    assert admission.slots == 50
    for _ in range(REMEMBERED // 10):
        admission.ended(900)
    assert admission.slots == 10


def test_places_stay_within_the_limit_and_above_none():
    admission = Admission(10**9, 64, CONFIG)
    assert admission.slots == 64
    assert Admission(50, 64, CONFIG).slots == 1
