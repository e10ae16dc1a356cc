"""Mistakes that a new user makes: each is one message and status 2, before any process starts and with no folder left."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.processes import ZEROTIR

pytestmark = pytest.mark.slow

ROW = json.dumps({"problem": "1 + 1 = ?", "answer": "2"})
FILES: dict[str, bytes] = {
    "good.jsonl": f"{ROW}\n".encode(),
    "notes.txt": b"1 + 1 = 2\n",
    "latin.jsonl": '{"problem": "caf\xe9?", "answer": "2"}\n'.encode("latin-1"),
    "fields.jsonl": b'{"question": "1 + 1 = ?", "answer": "2"}\n',
    "empty.jsonl": b"",
    "torn.jsonl": f"{ROW}\n{ROW[:12]}\n".encode(),
    "null.jsonl": b'{"problem": "1 + 1 = ?", "answer": null}\n',
    "twice.yaml": b"name: x\nmodel: {path: random-tiny}\nmodel: {path: random-tiny}\n",
    "latin.yaml": "name: caf\xe9\n".encode("latin-1"),
    "list.yaml": b"- name: x\n",
    "misspelt.yaml": b"name: x\nmodle: {path: random-tiny}\ntasks: {problems: {recipe: gcd}}\n",
    "rewards.py": b"def reward(problem, answer): return 1.0\n",
    "template.txt": b"Answer this.\n",
}


def up(*settings: str) -> list[str]:
    return ["up", "tiny", *(part for setting in settings for part in ("--set", setting))]


MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "a kind of file that is not read": (up("tasks.problems={file: notes.txt}"), "notes.txt: it is of no known kind"),
    "a file that is not there": (up("tasks.problems={file: absent.jsonl}"), "absent.jsonl: there is no such file here ("),
    "a file in Latin-1": (up("tasks.problems={file: latin.jsonl}"), "iconv -f LATIN1 -t UTF-8"),
    "other field names": (up("tasks.problems={file: fields.jsonl}"), "fields.jsonl has no field 'problem'"),
    "an empty file": (up("tasks.problems={file: empty.jsonl}"), "empty.jsonl: it is empty"),
    "a line that is cut off": (up("tasks.problems={file: torn.jsonl}"), "line 2 is not JSON"),
    "an answer that is none": (up("tasks.problems={file: null.jsonl}"), "row 0: field 'answer' is None"),
    "an unknown recipe": (up("tasks.problems={recipe: gdc}"), "no recipe 'gdc': did you mean gcd?"),
    "two sources": (up("tasks.problems.file=good.jsonl"), "name exactly one of recipe, mix, file and dataset"),
    "a template that is not there": (up("tasks.prompt.template=zerotirr"), "no prompt template 'zerotirr'"),
    "a template without a place for the problem": (up("tasks.prompt.template=template.txt"), "contains {problem} 0 times"),
    "a reward function of other arguments": (
        up("tasks.grading.reward_function=rewards.py:reward"), "by name: got an unexpected keyword argument 'turns'"
    ),
    "a field that does not exist": (up("learner.stepz=3"), "unknown field learner.stepz: did you mean steps?"),
    "a value of another kind": (up("learner.steps=many"), "learner.steps: "),
    "a model's folder that is not there": (up("model.path=/absent"), "model.path: there is no folder /absent"),
    "a run's folder that is not there": ([*up(), "--resume", "absent"], "--resume absent: there is no such folder of a run"),
    "a folder that cannot be made": (up("launch.runs_dir=/proc/runs"), "choose another one with launch.runs_dir"),
    "a key twice": (["up", "twice.yaml"], "line 3: the key 'model' is there twice"),
    "a configuration in Latin-1": (["up", "latin.yaml"], "latin.yaml is not UTF-8 text"),
    "a configuration that is a list": (["up", "list.yaml"], "its top level must be a mapping"),
    "a misspelt section": (["up", "misspelt.yaml"], "misspelt.yaml: unknown field modle: did you mean model?"),
    "an unknown configuration": (["up", "tinny"], "no configuration named 'tinny': did you mean tiny"),
    "an evaluation of data that are not there": (
        ["eval", "tiny", "--checkpoint", "random-tiny", "--data", "absent.jsonl"], "absent.jsonl: there is no such file"
    ),
    "an evaluation of nothing": (["eval", "tiny", "--checkpoint", "/absent"], "--checkpoint: there is no folder /absent"),
    "a number that YAML takes for another": (up("learner.steps=010"), "010 is the number 8 in YAML"),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake(home: Path, arguments: Sequence[str], message: str):
    done = subprocess.run([*ZEROTIR, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=home)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("zerotir: "), done.stderr
    assert done.stderr.count(message) == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (home / "runs").exists()
