"""What a run was trained on, as people and programs read it from its archive."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bus.messages import Trajectory
from configs.errors import UserError
from configs.loading import dump_config, load_config
from launch import trace, transcripts
from launch.cli import parser
from learner.tickets.archive import Archive
from tests.archived import BAD, CONFIG, SETTINGS, answered, write_run
from tests.factories import spans, trajectory


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any) -> Path:
    write_run(tmp_path, tokenizer)
    return tmp_path


def zerotir(*arguments: Any) -> int:
    parsed = parser().parse_args([str(each) for each in arguments])
    return {"transcripts": transcripts.start, "trace": trace.start}[parsed.command](parsed)


def shown(capsys: pytest.CaptureFixture[str], run: Path, *options: Any) -> list[dict[str, Any]]:
    assert zerotir("transcripts", run, "--json", *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return [json.loads(line) for line in out.splitlines()]


def test_each_result_says_what_became_of_it(run: Path, capsys: pytest.CaptureFixture[str]):
    assert [(each["ticket"], each["step"], each["end"], each["reason"]) for each in shown(capsys, run)] == [
        (1, 1, "trained", None),
        (2, 1, "trained", None),
        (3, 1, "filtered", "no signal"),
        (4, 1, "filtered", "no signal"),
        (5, 2, "failed", "deadline passed"),
        (6, 2, "filtered", "group too small"),
        (7, 2, "trained", None),
        (8, 2, "trained", None),
        (9, None, "waiting", None),
    ]


@pytest.mark.parametrize(
    ("options", "tickets"),
    [
        (["--step", 2], [5, 6, 7, 8]),
        (["--right"], [1, 3, 4, 6, 8]),
        (["--wrong"], [2, 7, 9]),
        (["--code"], [1, 8]),
        (["--step", 1, "--code", "--right"], [1]),
        (["--filtered", "no signal"], [3, 4]),
        (["--filtered", "No-Signal "], [3, 4]),
        (["--filtered", "deadline passed"], [5]),
        (["--ticket", 6], [6]),
    ],
)
def test_options_select(run: Path, capsys: pytest.CaptureFixture[str], options: list[Any], tickets: list[int]):
    assert [each["ticket"] for each in shown(capsys, run, *options)] == tickets


def test_json_has_what_was_trained_on(run: Path, capsys: pytest.CaptureFixture[str]):
    [first] = shown(capsys, run, "--ticket", 1)
    assert first["prompt"] == "1+2="
    assert [(each["sampled"], each["text"]) for each in first["response"]] == [
        (True, "```python\nprint(3)\n```"),
        (False, "\n```output\n3\n```\n"),
        (True, "so 3 "),
    ]
    assert (first["problem_id"], first["gold_answer"], first["answer"], first["right"]) == ("p7", "3", "3", True)
    assert (first["tool_calls"][0]["code"], first["emulated"]) == ("print(3)", False)
    [sixth] = shown(capsys, run, "--ticket", 6)
    assert (sixth["staleness"], [each["version"] for each in sixth["versions"]]) == (1, ["0.0", "0.1"])
    [failed] = shown(capsys, run, "--ticket", 5)
    assert (failed["detail"], failed["attempts"]) == ("300 s" + BAD, 3)


def test_text_is_what_people_read_and_nothing_that_a_terminal_obeys(run: Path, capsys: pytest.CaptureFixture[str]):
    assert zerotir("transcripts", run) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert "ticket 1 · step 1 · trained on · right · reward 1\n" in out
    assert "right answer: 3 · taken for the answer: 3\nprompt\n  | 1+2=\nresponse\ncode\n  | ```python\n" in out
    assert "  | ```\noutput (exited, 0.2 s)\n  | ```output\n  | 3\n  | ```\n  | so 3 \n\nticket 2 · step 1" in out
    assert "right answer: 3\\x1b[2J\\r" in out
    assert "ticket 5 · step 2 · failed: deadline passed\na1, attempt 3, 300 s\\x1b[2J\\r\n" in out
    assert "weights 0.0 and 0.1, 1 version behind" in out
    assert "ticket 9 · waits for its batch · wrong" in out


def test_a_line_that_is_cut_off_ends_what_is_read(run: Path, capsys: pytest.CaptureFixture[str]):
    """A learner may be writing it just now."""
    path = run / "results" / "000000.results"
    path.write_bytes(path.read_bytes()[:-20])
    assert [each["ticket"] for each in shown(capsys, run)][-2:] == [7, 8]


def test_no_transcript_looks_like_a_line_of_ours(run: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]):
    text = "\n\nticket 1\nprompt"
    tokens = np.array(tokenizer.encode(f"1+2={text}", add_special_tokens=False), np.int32)
    made = trajectory(
        4,
        len(tokens) - 4,
        tokens=tokens,
        versions=spans((1, 0, len(tokens) - 4)),
        ticket=10,
        group=4,
        problem_id=f"p{text}",
        answer=text,
        gold_answer=text,
    )
    Archive(run / "results").append(2, 10, made)
    assert zerotir("transcripts", run, "--ticket", 10) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ticket 10 ")
    assert sum(line.startswith("ticket") for line in lines) == 1
    assert sum(line.startswith("prompt") for line in lines) == 1


def test_filters_that_were_changed_meanwhile_are_said(run: Path, capsys: pytest.CaptureFixture[str]):
    changed = load_config("tiny", [*SETTINGS, "learner.filters.no_signal=false"])
    (run / "config.yaml").write_text(dump_config(changed))
    assert zerotir("transcripts", run, "--json") == 0
    out, err = capsys.readouterr()
    ends = {each["ticket"]: each["end"] for each in map(json.loads, out.splitlines())}
    known = ["failed", "filtered", "trained", "trained", "waiting"]
    assert [ends[ticket] for ticket in range(1, 10)] == ["unknown"] * 4 + known
    assert "of 1 step it is not known which results were trained on" in err
    assert zerotir("trace", run, "--ticket", 3) == 0
    assert "step 1 is done: trained on or filtered, which is not known" in capsys.readouterr().out
    with pytest.raises(UserError, match="'no_signal'"):
        zerotir("transcripts", run, "--filtered", "no signal")
    assert "it is not known" in capsys.readouterr().err


def test_a_run_that_was_resumed_with_fewer_steps_is_read(run: Path, capsys: pytest.CaptureFixture[str]):
    """Results of tickets beyond them came before."""
    fewer = load_config("tiny", [*SETTINGS, "learner.filters.no_signal=true", "learner.steps=2"])
    (run / "config.yaml").write_text(dump_config(fewer))
    assert len(shown(capsys, run)) == 9


def test_a_disk_that_has_changed_something_is_an_error(run: Path, tokenizer: Any):
    Archive(run / "results").append(1, 10, answered(tokenizer, 10, right=True))
    path = run / "results" / "000000.results"
    whole = path.read_bytes()
    for changed in (whole[:-7], whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:], whole[:500] + b"?" + whole[501:]):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"000000\.results is damaged from byte"):
            zerotir("transcripts", run)


def test_what_is_not_there_is_said(run: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.raises(
        UserError, match=r"'overlong'; the reasons here are: no signal \(2\), deadline passed \(1\), group"
    ):
        zerotir("transcripts", run, "--filtered", "overlong")
    with pytest.raises(UserError, match="none of its results is like that"):
        zerotir("transcripts", run, "--step", 7)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"no folder of a run: it has no config\.yaml"):
        zerotir("transcripts", empty)
    (empty / "config.yaml").write_text(dump_config(CONFIG))
    with pytest.raises(UserError, match="they lie on the learner's host"):
        zerotir("transcripts", empty)
    (empty / "results").mkdir()
    with pytest.raises(UserError, match="it has no results yet"):
        zerotir("transcripts", empty)
    (empty / "results" / "000000.results").mkdir()
    with pytest.raises(UserError, match=r"cannot be read: .*Is a directory"):
        zerotir("transcripts", empty)


def test_results_of_another_version_are_said_to_be(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Trajectory, "VERSION", 0)
    with pytest.raises(UserError, match="holds results of another version: Trajectory of schema version 1"):
        zerotir("transcripts", run)


def test_a_ticket_s_life(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "logs").mkdir()
    records = [
        {"event": "ticket handed back", "ticket": 2, "reason": "infrastructure failed" + BAD, "id": "a0"},
        {"event": "ticket handed back", "ticket": 22, "reason": "another", "id": "a0"},
    ]
    at = {"timestamp": "1970-01-01T00:00:10.500Z", "level": "info", "role": "actor"}
    lines = [json.dumps(record | at) for record in records]
    (run / "logs" / "a0.jsonl").write_text("\n".join([*lines, '{"ticket": 2, "eve', '"ticket": 2']) + "\n")
    assert zerotir("trace", run, "--ticket", 2) == 0
    first, *events = capsys.readouterr().out.splitlines()
    assert first == "ticket 2 of group 0 (tickets 1 to 2), problem p7"
    assert [event.split("  ", 2)[2].split(maxsplit=2)[0] for event in events] == [
        "+0.000", "+0.500", "+0.500", "+1.000", "+1.500", "+0.500",
    ]  # fmt: skip
    assert [" ".join(event.split()[4:]) for event in events] == [
        "learner issued, for weights 0 or newer",
        "a0 log: ticket handed back, reason infrastructure failed\\x1b[2J\\r",
        "a begins (attempt 2)",
        "a first token, of weights 0.0",
        "a result stored: 5 tokens, weights 0.0 (5 tokens); reward 0; calls: none",
        "learner step 1 is done: trained on, 0 versions behind",
    ]


def test_the_life_of_one_that_failed_or_is_open(run: Path, capsys: pytest.CaptureFixture[str]):
    assert zerotir("trace", run, "--ticket", 5) == 0
    assert "a1                 failed: deadline passed, attempt 3 (300 s\\x1b[2J\\r)" in capsys.readouterr().out
    assert zerotir("trace", run, "--ticket", 9) == 0
    assert capsys.readouterr().out.endswith("\n  it waits for the rest of its group, or of its batch\n")
    (run / "metrics.jsonl").unlink()
    assert zerotir("trace", run, "--ticket", 7) == 0
    assert "\n  step 2 used it: trained on or filtered, which is not known" in capsys.readouterr().out
    with pytest.raises(UserError, match="knows nothing of ticket 10: its archive has no result of it"):
        zerotir("trace", run, "--ticket", 10)
