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
    learner = given.pop("learner")
    assert {name: share.environment["ZEROTIR_ENGINE_CORES"] for name, share in given.items()} == engines
    assert max(learner.affinity) == 7
    assert learner.environment["OMP_NUM_THREADS"] == str(len(learner.affinity))
