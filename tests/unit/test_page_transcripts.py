"""Transcripts on the page: token by token, with what a step made of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bus.codec import MessageError
from bus.messages import Trajectory
from bus.metrics_history import recorded_metrics
from configs.loading import load_config
from learner.tickets.token_values import TokenValues, read_values, values_path, write_values
from page.run_view import RunView
from page.server import application
from tests.archived import CONFIG, answered, values_of, write_run
from transcripts.passages import passages
from transcripts.tokens import drawn, token_ends


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any) -> Path:
    write_run(tmp_path, tokenizer)
    return tmp_path


# --- tokens ------------------------------------------------------------------------------------------------------------


def test_stretches_of_tokens_make_up_each_piece(tokenizer: Any):
    result = answered(tokenizer, 1, right=True, code=True)
    response = result.tokens[result.prompt_length :].tolist()
    seen = set[int]()
    for kind, text, _, _, stretches in drawn(result, tokenizer):
        assert sum(length for length, _ in stretches) == len(text)
        positions = [position for _, position in stretches]
        assert positions == sorted(set(positions))
        # What was inserted is in outputs alone.
        assert {int(result.loss_mask[position]) for position in positions} == {int(kind != "output")}
        at = 0
        for length, position in stretches:
            assert text[at : at + length] in tokenizer.decode([response[position]])
            at += length
        seen.update(positions)
    assert {place for place in range(len(response)) if result.loss_mask[place]} <= seen


def byte_level() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of single bytes, as byte-level vocabularies fall back to."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_several_tokens_of_one_character_and_one_that_is_broken_off():
    tokenizer = byte_level()
    tokens = tokenizer.encode("aü😀b", add_special_tokens=False)
    assert len(tokens) == 8
    for count, expected in ((8, [1, 1, 2, 2, 2, 2, 3, 4]), (3, [1, 1, 2])):
        [passage] = passages(tokens[:count], [1] * count, tokenizer)
        assert token_ends(tokens[:count], passage.text, tokenizer) == expected
    [passage] = passages(tokens[:5], [1] * 5, tokenizer)
    ends = token_ends(tokens[:5], passage.text, tokenizer)
    assert ends == [1, 1, 2, 2, len(passage.text)]
    assert token_ends(tokens, "another text", tokenizer) == []


def test_values_of_tokens_come_back_as_they_were_written(run: Path, tokenizer: Any):
    result = answered(tokenizer, 8, right=True, code=True)
    [values] = [each for ticket, each in read_values(run / "tokens", 2).items() if ticket == 8]
    assert values.log_ratios.tolist() == values_of(result).log_ratios.tolist()
    assert read_values(run / "tokens", 3) == {}
    write_values(run / "tokens", 3, [])
    assert read_values(run / "tokens", 3) == {}
    path = values_path(run / "tokens", 2)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MessageError, match="damaged"):
        read_values(run / "tokens", 2)
    with pytest.raises(ValidationError, match="another number of tokens"):
        TokenValues(ticket=1, published_at=1.0, advantages=np.zeros(2, "<f2"), log_ratios=np.zeros(3, "<f2"))


# --- what the page is given --------------------------------------------------------------------------------------------


def get(run: Path, path: str) -> Any:
    view = RunView("r", run, None, {}, config=lambda: CONFIG)
    for _, metrics in recorded_metrics(run / "metrics.jsonl", 0):
        assert view.results is not None
        view.results.note(metrics)
    with TestClient(application([view], None), base_url="http://127.0.0.1:1") as client:
        client.get("/api/results?run=r")
        return client.get(path)


def test_the_page_is_given_a_page_of_results(run: Path):
    found = get(run, "/api/results?run=r&step=2&end=trained&search=p7").json()
    assert [row["ticket"] for row in found["rows"]] == [7, 8]
    assert (found["total"], found["right"], found["pages"], found["trouble"]) == (2, 1, 1, "")
    assert get(run, "/api/lives?run=r&step=2").json()["total"] == 4


def test_a_group_has_the_advantages_of_its_trajectories(run: Path):
    assert [(row["ticket"], row["advantage"]) for row in get(run, "/api/group?run=r&group=3").json()] == [
        (7, -1.0),
        (8, 1.0),
    ]
    assert [row["largest_advantage"] for row in get(run, "/api/group?run=r&group=3").json()] == [1.0, 1.0]
    # Of step 1 there is no file.
    assert [row["advantage"] for row in get(run, "/api/group?run=r&group=0").json()] == [None, None]


def test_a_transcript_has_a_value_for_each_token(run: Path, tokenizer: Any):
    result = answered(tokenizer, 8, right=True, code=True)
    found = get(run, "/api/transcript?run=r&ticket=8").json()
    assert found["prompt"] == "1+2="
    assert [piece[0] for piece in found["pieces"]] == ["code", "output", "text"]
    sampled = result.loss_mask.tolist()
    assert [value is not None for value in found["advantages"]] == [mask == 1 for mask in sampled]
    assert [value for value in found["log_ratios"] if value is not None] == [place / 2 for place in range(sum(sampled))]
    assert get(run, "/api/transcript?run=r&ticket=1").json()["log_ratios"] is None
    failed = get(run, "/api/transcript?run=r&ticket=5").json()
    assert failed["detail"].startswith("300 s")


@pytest.mark.parametrize("changes", [{"published_at": 99.0}, {"log_ratios": np.zeros(1, "<f2")}])
def test_values_of_another_result_are_not_shown(run: Path, tokenizer: Any, changes: dict[str, Any]):
    values = values_of(answered(tokenizer, 8, right=True, code=True)).model_copy(update=changes)
    write_values(run / "tokens", 2, [values])
    assert get(run, "/api/transcript?run=r&ticket=8").json()["log_ratios"] is None


@pytest.mark.parametrize("kind", ["folder", "text"])
def test_a_file_of_values_that_cannot_be_read_hides_no_transcript(run: Path, kind: str):
    path = values_path(run / "tokens", 2)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("no archive of anything")
    assert get(run, "/api/transcript?run=r&ticket=8").json()["log_ratios"] is None


def test_what_was_left_out_has_no_values_whatever_an_earlier_training_left(run: Path, tokenizer: Any):
    write_values(run / "tokens", 1, [values_of(answered(tokenizer, 3, right=True))])
    assert get(run, "/api/transcript?run=r&ticket=3").json()["log_ratios"] is None


def test_values_that_are_not_finite_are_none(run: Path, tokenizer: Any):
    result: Trajectory = answered(tokenizer, 8, right=True, code=True)
    values = values_of(result)
    odd = np.full(len(values.log_ratios), np.nan, "<f2")
    write_values(run / "tokens", 2, [values.model_copy(update={"advantages": odd, "log_ratios": odd})])
    found = get(run, "/api/transcript?run=r&ticket=8").json()
    assert set(found["log_ratios"]) == {None}
    assert [row["advantage"] for row in get(run, "/api/group?run=r&group=3").json()] == [None, None]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/transcript?run=r&ticket=77", 404),
        ("/api/transcript?run=r&ticket=x", 400),
        ("/api/transcript?run=r&ticket=" + "9" * 30, 400),
        ("/api/group?run=r", 400),
        ("/api/lives?run=r&step=-1", 400),
        ("/api/results?run=r&step=1.5", 400),
        ("/api/results?run=r&page=" + "9" * 30, 400),
        ("/api/results?run=other", 404),
    ],
)
def test_what_is_not_there_is_said(run: Path, path: str, status: int):
    answer = get(run, path)
    assert answer.status_code == status
    assert answer.text


def test_without_the_model_s_files_the_reason_is_said(run: Path):
    view = RunView("r", run, None, {}, config=lambda: load_config("tiny", ["model.path=/nowhere"]))
    with TestClient(application([view], None), base_url="http://127.0.0.1:1") as client:
        client.get("/api/results?run=r")
        answer = client.get("/api/transcript?run=r&ticket=1")
    assert answer.status_code == 503
    assert "no folder /nowhere" in answer.text


def test_without_the_configuration_the_reason_is_said(tmp_path: Path):
    with TestClient(application([RunView("r", tmp_path, None, {})], None), base_url="http://127.0.0.1:1") as client:
        answer = client.get("/api/results?run=r")
    assert answer.status_code == 404
    assert "the learner's host" in answer.text
