"""How many rollouts are admitted to a cache."""

from actors.admission import ENOUGH, REMEMBERED, CacheRoom
from configs.schema import RolloutConfig

CONFIG = RolloutConfig(max_prompt_tokens=100, max_response_tokens=900)


def test_unknown_lengths_are_taken_for_the_whole_budget():
    room = CacheRoom(10_000, 64, CONFIG)
    assert room.places == 10
    for _ in range(ENOUGH - 1):
        room.ended(100)
    assert room.places == 10


def test_places_follow_the_long_ones_of_recent_responses():
    room = CacheRoom(10_000, 64, CONFIG)
    for i in range(100):
        room.ended(400 if i % 10 == 0 else 50)
    assert room.places == 20  # 10 of 100 are long: room for long ones
    for _ in range(REMEMBERED):
        room.ended(100)
    assert room.places == 50
    for _ in range(REMEMBERED // 10):
        room.ended(900)
    assert room.places == 10


def test_places_stay_within_the_limit_and_above_none():
    room = CacheRoom(10**9, 64, CONFIG)
    assert room.places == 64
    assert CacheRoom(50, 64, CONFIG).places == 1
