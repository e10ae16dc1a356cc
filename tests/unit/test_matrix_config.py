"""Matrices of runs: which runs a file stands for, and what is wrong with a file, in one clear sentence."""

from pathlib import Path

import pytest

from configs.loading import ConfigError, shipped_names
from configs.matrix import SHIPPED_MATRICES, load_matrix


def write(folder: Path, text: str) -> str:
    path = folder / "matrix.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_names(SHIPPED_MATRICES))
def test_every_shipped_matrix_loads(name):
    matrix, runs = load_matrix(name)
    assert matrix.name == name
    # Each has a baseline without tools, and seeds to pool.
    assert {run.config.rollout.max_tool_calls > 0 for run in runs} == {False, True}
    assert len({run.config.seed for run in runs}) > 1


def test_the_quickstart_matrix_is_two_seeds_with_tools_and_one_without():
    _, runs = load_matrix("quickstart")
    assert [run.name for run in runs] == ["quickstart-seed0", "quickstart-seed1", "quickstart-text-seed0"]
    assert all(run.config.learner.steps == 20 for run in runs)
    assert [run.config.rollout.max_tool_calls for run in runs] == [1, 1, 0]


def test_the_product_of_models_budgets_and_seeds(tmp_path):
    text = """
name: all
set: [learner.steps=3]
experiments:
  - config: tiny
    models: [random-tiny, Some/Model-1.5B]
    max_tool_calls: [0, 2]
    seeds: [4, 5]
    set: [learner.optimizer.lr=1e-4]
"""
    _, runs = load_matrix(write(tmp_path, text), ["learner.batch_groups=2"])
    assert [run.name for run in runs] == [
        f"tiny-{model}-calls{budget}-seed{seed}"
        for model in ("random-tiny", "model-1-5b")
        for budget in (0, 2)
        for seed in (4, 5)
    ]
    last = runs[-1].config
    assert (last.model.path, last.rollout.max_tool_calls, last.seed) == ("Some/Model-1.5B", 2, 5)
    assert all((r.config.learner.steps, r.config.learner.batch_groups) == (3, 2) for r in runs)
    assert all(r.config.learner.optimizer.lr == 1e-4 for r in runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: m", "experiments is missing"),
        ("name: m\nexperiments: []", "experiments: .*at least 1"),
        ("name: M!\nexperiments: [{config: tiny}]", "name: .*pattern"),
        (
            "name: m\nexperiments: [{config: tiny, seed: [0]}]",
            r"unknown field experiments\.0\.seed: did you mean seeds\?",
        ),
        ("name: m\nexperiments: [{config: tiny, seeds: [0, 0]}]", "tiny: seeds names a value twice"),
        (
            "name: m\nexperiments: [{config: tiny, max_tool_calls: [-1]}]",
            r"experiments\.0\.max_tool_calls\.0: .*greater",
        ),
        ("name: m\nexperiments: [{config: tinny}]", "no configuration named 'tinny': did you mean tiny"),
        (
            "name: m\nset: [learner.stepps=1]\nexperiments: [{config: tiny}]",
            "unknown field learner.stepps: did you mean steps",
        ),
        ("name: m\nexperiments: [{config: tiny}, {config: tiny}]", "two runs would be called tiny-seed0"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_matrix(write(tmp_path, text))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load_matrix("quikstart")
