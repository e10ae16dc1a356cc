"""The commands in the documents, run as they are written: only names that stand for something are filled in.

`RUN` has each of them: what it becomes here, or why it is not run. A command that is added to a document belongs there too.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.loading import load_config
from tests.processes import ZEROTIR, processes_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
CLUSTER = "needs several hosts or GPUs"
LIVE = "needs a run that is on: tests/integration/test_evaluation_commands.py, test_emulated_run.py"
PAGE = "serves until it is told to stop: tests/integration/test_page_live.py, browser/test_page_browser.py"
LONG = "takes half an hour and more"

RUN: dict[str, list[str] | str] = {
    "zerotir up CONFIG": "the fixture does",
    "zerotir bus|sandbox|actor|learner CONFIG": LIVE,
    "zerotir eval CONFIG --checkpoint DIR": ["zerotir eval tiny --checkpoint runs/latest/model --out eval-1 --limit 2"],
    "zerotir status [--watch] | metrics | weights": ["zerotir status", "zerotir metrics", "zerotir weights"],
    "zerotir sandbox CONFIG --check | --run FILE": ["zerotir sandbox tiny --check", "zerotir sandbox tiny --run program.py"],
    "zerotir config CONFIG --set learner.steps=3": ["zerotir config tiny --set learner.steps=3"],
    "zerotir config CONFIG --check": ["zerotir config tiny --check"],
    "zerotir scaling RUN [RUN ...]": ["zerotir scaling runs/latest"],
    "zerotir replay RUN --set FIELD=VALUE": ["zerotir replay runs/latest --set learner.algorithm.clip_low=0.1"],
    "zerotir matrix quickstart": LONG,
    "zerotir transcripts RUN --step 3 --wrong": ["zerotir transcripts runs/latest --step 1 --wrong"],
    "zerotir trace RUN --ticket 7": ["zerotir trace runs/latest --ticket 7"],
    "zerotir transcripts RUN --step 3": ["zerotir transcripts runs/latest --step 2"],
    "zerotir transcripts RUN --wrong --code": "a random model seldom writes code",
    "zerotir transcripts RUN --filtered 'no signal'": "the tiny configuration filters nothing",
    "zerotir transcripts RUN --json": ["zerotir transcripts runs/latest --json"],
    "zerotir page RUN [RUN ...]": PAGE,
    "zerotir page RUN": PAGE,
    "zerotir page RUN RUN RUN": PAGE,
    "zerotir page RUN --host 0.0.0.0 --port 7787": PAGE,
    "zerotir track RUN --to tensorboard": ["zerotir track runs/latest --to tensorboard"],
    "zerotir up quickstart --set 'launch.trackers=[tensorboard]'": LONG,
    "zerotir eval CONFIG --checkpoint DIR --data problems.jsonl --max-tool-calls 0,1,2,4,8 --samples 32": [
        "zerotir eval tiny --checkpoint runs/latest/model --data problems.jsonl --max-tool-calls 0,1,2,4,8 --samples 32"
    ],
    "zerotir eval CONFIG": LIVE,
    "zerotir eval CONFIG --follow": LIVE,
    "zerotir learner CONFIG --ranks 8": CLUSTER,
    "zerotir replay runs/<id>": ["zerotir replay runs/latest"],
    "zerotir replay runs/<id> --set learner.algorithm.advantage=grpo": [
        "zerotir replay runs/latest --set learner.algorithm.advantage=grpo"
    ],
    "zerotir replay runs/<id> --ranks 2": ["zerotir replay runs/latest --ranks 2"],
    "zerotir config quickstart --set tasks.grading.reward_function=rewards.py:reward --check": ["AS WRITTEN"],
    "zerotir up quickstart --set tasks.grading.reward_function=rewards.py:reward": LONG,
    "zerotir actor quickstart": LIVE,
    "ZEROTIR_ENGINE_CORES=4,5,6,7 zerotir actor quickstart": LIVE,
    "zerotir eval quickstart --follow": LIVE,
    "zerotir status": ["AS WRITTEN"],
    "zerotir config zerotir-7b --check --gpu-memory 80": "needs the model hub",
    "zerotir sandbox CONFIG --check": ["zerotir sandbox tiny --check"],
    "zerotir sandbox CONFIG --run FILE": ["zerotir sandbox tiny --run program.py"],
    "zerotir sandbox CONFIG": LIVE,
    "zerotir matrix quickstart --list": ["AS WRITTEN"],
    "zerotir scaling runs/latest": ["AS WRITTEN"],
    "zerotir scaling RUN RUN RUN --out FOLDER": ["zerotir scaling runs/latest runs/latest runs/latest --out report"],
}  # fmt: skip


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the blocks of a document, indented or fenced, as (language, text)."""
    text = path.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$|(?:^ {4}[^\n]*\n)+", text, re.MULTILINE | re.DOTALL):
        yield found[1] or "", found[2] if found[2] is not None else re.sub("^ {4}", "", found[0], flags=re.MULTILINE)


def commands() -> set[str]:
    """Returns the command lines of all documents that call `zerotir` itself, without their comments."""
    lines = {
        re.split(r"\s+#", line)[0].strip()
        for path in DOCUMENTS
        for _, text in blocks(path)
        for line in text.split("\n")
    }
    return {line for line in lines if re.match(r"(\w+=\S+ )?zerotir ", line)}


def test_every_command_of_the_documents_is_known_here():
    assert commands() == set(RUN)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a finished run of two steps in it, and the files that the documents speak of."""
    folder = tmp_path_factory.mktemp("home")
    row = '{{"problem": "{0} * 3 = ?", "question": "{0} * 3 = ?", "answer": "{1}"}}\n'
    rows = "".join(row.format(number, 3 * number) for number in range(117, 119))
    for name in ("problems.jsonl", "mine.jsonl"):
        (folder / name).write_text(rows)
    (folder / "program.py").write_text("print(6 * 7)\n")
    [rewards] = [text for language, text in blocks(ROOT / "docs" / "rollouts.md") if language == "python"]
    (folder / "rewards.py").write_text(rewards)
    done = run("zerotir up tiny --set learner.steps=2", folder)
    assert done.returncode == 0, done.stdout
    yield folder
    assert processes_of(folder) == []


def run(command: str, home: Path) -> "subprocess.CompletedProcess[str]":
    words = shlex.split(command)
    assert words[0] == "zerotir"
    environment = {**os.environ, "ZEROTIR_TEST_RUN": str(home)}
    return subprocess.run(
        [*ZEROTIR, *words[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
        cwd=home,
        env=environment,
    )


@pytest.mark.parametrize("written", RUN)
def test_it_does_what_the_document_says(home: Path, written: str):
    here = RUN[written]
    if isinstance(here, str):
        pytest.skip(here)
    for command in here:
        done = run(written if command == "AS WRITTEN" else command, home)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        assert done.stdout
        assert "Traceback" not in done.stdout


def test_configurations_in_documents_load(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(home)
    loaded = 0
    for path in DOCUMENTS:
        for language, text in blocks(path):
            if language == "yaml" and text.startswith("base:"):
                (home / "own.yaml").write_text(text)
                assert load_config("own.yaml").tasks.problems.file == "mine.jsonl"
                loaded += 1
    assert loaded == 2
