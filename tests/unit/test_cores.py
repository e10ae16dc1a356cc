"""How a machine's cores are shared."""

import pytest

from configs.loading import load_config
from launch.cores import shares


@pytest.mark.parametrize(
    ("overrides", "engines"),
    [
        ([], {"actor-0": "0,1,2,3"}),
        (["launch.actors=2"], {"actor-0": "0,1", "actor-1": "2,3"}),
        (["launch.evaluator=true"], {"actor-0": "0,1", "evaluator": "2,3"}),
        (["launch.actors=3", "launch.evaluator=true"],
         {"actor-0": "0", "actor-1": "1", "actor-2": "2", "evaluator": "3"}),
        (["launch.learner_threads=7", "launch.evaluator=true"], {"actor-0": "0", "evaluator": "0"}),
    ],
)  # fmt: skip
def test_engines_share_the_cores_that_the_learner_leaves(
    overrides: list[str], engines: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    given = shares(load_config("tiny", overrides), [])
    del given["learner"]
    assert {name: share.environment["ZEROTIR_ENGINE_CORES"] for name, share in given.items()} == engines
    assert all(share.niceness == 0 for share in given.values())


def test_the_learner_takes_the_cores_of_idle_engines_and_gives_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    learner = shares(load_config("tiny"), [])["learner"]
    assert learner.affinity == set(range(8))
    assert learner.environment == {"OMP_NUM_THREADS": "8", "OMP_WAIT_POLICY": "passive"}
    assert learner.niceness > 0


@pytest.mark.parametrize(
    ("overrides", "gpus", "cores"), [(["launch.learner_threads=3"], [], {5, 6, 7}), ([], ["0", "1"], {4, 5, 6, 7})]
)
def test_the_learner_has_cores_of_its_own_where_told_to_or_where_gpus_do_the_work(
    overrides: list[str], gpus: list[str], cores: set[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    learner = shares(load_config("tiny", overrides), gpus)["learner"]
    assert (learner.affinity, learner.niceness) == (cores, 0)
    assert learner.environment["OMP_NUM_THREADS"] == str(len(cores))
