"""From runs' folders to the report: what is read, pooled, compared and written."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.loading import dump_config, load_config
from launch.cli import command
from scaling.analysis import analyse
from scaling.comparison import compare, pairs
from scaling.data import TooLittleDataError
from scaling.report import plain, write_report
from scaling.runs import AXES, QUANTITIES, RunError, pool, read_run

STEPS = 24


def write_run(
    folder: Path, overrides: list[str], *, seed: int = 0, steps: int = STEPS, without: tuple[str, ...] = ()
) -> Path:
    """A run's folder as the learner leaves it, with logistic accuracy; `tiny` in the place of a real configuration."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = load_config("tiny", [f"seed={seed}", *overrides])
    (folder / "config.yaml").write_text(dump_config(config))
    tools = config.rollout.max_tool_calls > 0
    lines = [{"seq": 1, "time": 0.0, "role": "actor", "id": "actor-0", "step": None, "tokens_per_s": 1.0}]
    for step in range(1, steps + 1):
        rise = 1 / (1 + np.exp(-(step - 10) / 2))
        code = tools * (0.5 + 0.5 * rise)
        values = {
            "accuracy": 0.05 + (0.8 if tools else 0.1) * rise + rng.normal(0, 0.02),
            "code_ratio": code + tools * rng.normal(0, 0.02),
            "calls_per_response": 1.2 * code,
            "response_length": 100 - 40 * rise + rng.normal(0, 2),
            "prompt_length": 20.0,
            "trajectories": 64.0,
            "trained_tokens": 1000.0,
            "trained_sequence_tokens": 2000.0,
            "parameters": 5e6,
            "step_seconds": 60.0,
        }
        kept = {name: float(value) for name, value in values.items() if name not in without}
        lines.append({"seq": step + 1, "time": 60.0 * step, "role": "learner", "id": "learner", "step": step, **kept})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


TEXT = ["rollout.max_tool_calls=0", "name=text"]


class TestReading:
    def test_axes_are_cumulative_and_in_their_units(self, tmp_path):
        run = read_run(write_run(tmp_path / "run", []))
        assert run.steps.tolist() == list(range(1, STEPS + 1))
        assert run.series["trained_tokens"][[0, -1]] == pytest.approx([1e-3, STEPS * 1e-3])
        # 6 * 5e6 parameters * 2,000 tokens = 6e10 a step.
        assert run.series["training_flops"][[0, 1]] == pytest.approx([6e10 / 1e15, 12e10 / 1e15])
        first = run.series["response_length"][0]
        assert run.series["generation_flops"][0] == pytest.approx(2 * 5e6 * 64 * (20 + first) / 1e15)
        assert run.hours == pytest.approx(STEPS / 60)

    def test_a_step_trained_again_counts_once_and_a_torn_line_not_at_all(self, tmp_path):
        folder = write_run(tmp_path / "run", [])
        again = {
            "seq": 99,
            "time": 1e5,
            "role": "learner",
            "id": "learner",
            "step": 3,
            "accuracy": 0.99,
            "trained_tokens": 1.0,
        }
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(again) + '\n{"seq": 100, "ti')
        run = read_run(folder)
        assert len(run.steps) == STEPS
        assert run.series["accuracy"][2] == 0.99

    def test_an_axis_without_its_metrics_is_said_to_be_missing(self, tmp_path):
        run = read_run(write_run(tmp_path / "old", [], without=("parameters", "trajectories")))
        assert set(run.missing) == {"training_flops", "generation_flops"}
        assert run.missing["training_flops"] == "old has no metric parameters"
        # Nor does anybody know of how many responses its accuracy is a share.
        assert pool([run])[0].points("step", "accuracy").samples is None

    def test_a_run_whose_trainer_computed_nothing_has_a_report(self, tmp_path):
        """An emulated one: it counts no tokens and knows no parameters."""
        none = ("parameters", "trained_tokens", "trained_sequence_tokens")
        folders = [write_run(tmp_path / "emulated", [], without=none), write_run(tmp_path / "text", TEXT, without=none)]
        runs = [read_run(folder) for folder in folders]
        assert runs[0].missing["trained_tokens"] == "emulated has no metric trained_tokens"
        write_report(folders, tmp_path / "out")
        assert "emulated has no metric trained_tokens" in (tmp_path / "out" / "report.md").read_text()

    def test_what_is_no_run_is_named(self, tmp_path):
        with pytest.raises(RunError, match=r"absent is no run's folder: .*No such file"):
            read_run(tmp_path / "absent")
        other = write_run(tmp_path / "other", [])
        (other / "config.yaml").write_text("name: other\nseed: 0\nmodel: {path: x}\n")
        with pytest.raises(RunError, match=r"does not say rollout\.max_tool_calls"):
            read_run(other)
        (other / "config.yaml").write_text("[")
        with pytest.raises(RunError, match="no run's folder"):
            read_run(other)
        folder = write_run(tmp_path / "fresh", [], steps=0)
        with pytest.raises(RunError, match="no training step"):
            read_run(folder)


class TestSettings:
    def test_seeds_are_pooled_and_budgets_told_apart(self, tmp_path):
        runs = [
            read_run(write_run(tmp_path / f"{budget}-{seed}", [f"rollout.max_tool_calls={budget}"], seed=seed))
            for budget in (1, 2)
            for seed in (0, 1)
        ]
        settings = pool(runs)
        assert [setting.label for setting in settings] == ["tiny, max_tool_calls 1", "tiny, max_tool_calls 2"]
        assert [[run.seed for run in setting.runs] for setting in settings] == [[0, 1], [0, 1]]

    def test_cores_and_ports_make_no_setting(self, tmp_path):
        runs = [
            read_run(write_run(tmp_path / "a", ["bus.port=4222", "learner.steps=24", "actor.max_rollouts=3"])),
            read_run(write_run(tmp_path / "b", ["sandbox.concurrency=1", "learner.steps=30"], seed=1)),
        ]
        assert [setting.label for setting in pool(runs)] == ["tiny"]

    def test_runs_of_other_versions_of_this_project_are_read(self, tmp_path):
        old = write_run(tmp_path / "old", [])
        values = yaml.safe_load((old / "config.yaml").read_text())
        values["rollout"]["deadline_s"] = 600.0
        del values["weights"], values["evaluation"]
        values["learner"] = {"batch_groups": 12}
        (old / "config.yaml").write_text(yaml.safe_dump(values))
        settings = pool([read_run(old), read_run(write_run(tmp_path / "new", []))])
        # They differ in more fields than a label can say.
        assert [setting.label for setting in settings] == ["tiny (old)", "tiny (new)"]
        assert [setting.max_tool_calls for setting in settings] == [2, 2]

    def test_the_fewest_calls_are_the_baseline_of_their_task_alone(self, tmp_path):
        names = {"tools": [], "text": TEXT, "other": ["name=other", "tasks.problems.recipe=products"]}
        runs = [read_run(write_run(tmp_path / name, overrides)) for name, overrides in names.items()]
        assert [(b.label, o.label) for b, o in pairs(pool(runs))] == [("text", "tiny")]

    def test_a_comparison_is_the_mean_difference_over_the_second_half(self, tmp_path):
        tools, text = (pool([read_run(write_run(tmp_path / str(n), o))])[0] for n, o in enumerate(([], TEXT)))
        found = compare(text, tools, "step", "accuracy")
        assert (found.first, found.last) == (13, 24)
        late = slice(12, 24)
        expected = (tools.runs[0].series["accuracy"] - text.runs[0].series["accuracy"])[late].mean()
        assert found.difference == pytest.approx(expected)
        assert found.low < found.difference < found.high
        assert found.high - found.low < 0.2
        # The longer run is compared only as far as the shorter goes.
        short = pool([read_run(write_run(tmp_path / "short", TEXT, steps=12))])[0]
        assert compare(tools, short, "trained_tokens", "accuracy").last == pytest.approx(0.012)
        with pytest.raises(TooLittleDataError, match="too few for a comparison"):
            compare(pool([read_run(write_run(tmp_path / "tiny", TEXT, steps=4))])[0], tools, "step", "accuracy")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Path, str]:
    """A report of two seeds with tools and one without."""
    home = tmp_path_factory.mktemp("runs")
    folders = [write_run(home / f"tools-{seed}", [], seed=seed) for seed in (0, 1)]
    folders.append(write_run(home / "text-0", TEXT))
    return home / "scaling", write_report(folders, home / "scaling")


@pytest.mark.slow
class TestReport:
    def test_the_numbers_are_in_json_and_finite(self, report):
        found = json.loads((report[0] / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
        tools, text = found["settings"]
        assert [run["seed"] for run in tools["setting"]["runs"]] == [0, 1]
        code = next(r for r in tools["relations"] if (r["x"], r["y"]) == ("accuracy", "code_ratio"))
        assert code["spearman"]["value"] > 0.8
        growth = next(g for g in tools["growths"] if (g["axis"], g["quantity"]) == ("step", "accuracy"))
        assert growth["selection"]["chosen"]["form"] == "logistic"
        assert growth["selection"]["chosen"]["parameters"]["m"]["value"] == pytest.approx(10, abs=0.7)
        assert text["courses"]["code_ratio"] == "y is constant at 0"
        gain = next(c for c in found["comparisons"] if (c["axis"], c["quantity"]) == ("step", "accuracy"))
        assert gain["difference"] == pytest.approx(0.67, abs=0.05)
        assert gain["seeds"] == [1, 2]

    def test_markdown_has_every_part_and_its_links_lead_somewhere(self, report):
        folder, _ = report
        text = (folder / "report.md").read_text()
        for title in ("## Runs", "## With and without tools", "## tiny", "## text", "### Correlation with training",
                      "### Correlation among quantities", "### Fits", "### Forecast of the second half from the first",
                      "### Change points"):  # fmt: skip
            assert title in text
        assert "nan" not in text
        plots = {path.name for path in (folder / "plots").iterdir()}
        assert {f"growth-{axis}.{kind}" for axis in AXES for kind in ("png", "svg")} <= plots
        assert {"forecast-1.png", "forecast-2.svg", "relations.png"} <= plots
        for target in [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]:
            assert (folder / target).stat().st_size > 10_000

    def test_tables_are_whole(self, report):
        tables = [part for part in (report[0] / "report.md").read_text().split("\n\n") if part.startswith("|")]
        assert len(tables) >= 8
        for table in tables:
            assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1

    def test_the_summary_says_the_main_things(self, report):
        summary = report[1]
        assert "tiny: 24 steps, seeds 0, 1" in summary
        assert "form: logistic" in summary
        assert "text against" not in summary
        assert "tiny against text: accuracy +0.6" in summary

    def test_a_short_run_gets_words_instead_of_fits(self, tmp_path):
        analysis = analyse([read_run(write_run(tmp_path / "short", [], steps=5))])
        growth = analysis.settings[0].growth("step", "accuracy")
        assert growth.selection == "5 steps are too few for a choice between forms, which needs 16"
        assert growth.forecasts == "5 steps are too few for a forecast, which needs 8"
        assert set(analysis.settings[0].courses) == set(QUANTITIES)
        json.dumps(plain(analysis), allow_nan=False)


class TestCommand:
    @pytest.mark.slow
    def test_it_writes_beside_several_runs_and_into_one(self, tmp_path, monkeypatch, capsys):
        folders = [str(write_run(tmp_path / f"run-{seed}", [], seed=seed, steps=6)) for seed in (0, 1)]
        for arguments, target in ((folders, tmp_path / "scaling"), (folders[:1], tmp_path / "run-0" / "scaling")):
            monkeypatch.setattr("sys.argv", ["zerotir", "scaling", *arguments])
            assert command() == 0
            assert (target / "report.md").exists()
        assert "6 steps are too few" in capsys.readouterr().out

    def test_what_is_no_run_ends_with_one_line(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("sys.argv", ["zerotir", "scaling", str(tmp_path)])
        assert command() == 2
        assert capsys.readouterr().err.count("\n") == 1
