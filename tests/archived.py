"""A run as it lies in its folder, written by hand: what became of its results is known of each."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bus.messages import Failure, Outcome, ToolCall, Trajectory
from configs.loading import dump_config, load_config
from learner.tickets.archive import Archive
from learner.tickets.token_values import TokenValues, write_values
from tests.factories import spans, trajectory

SETTINGS = ["learner.batch_groups=2", "learner.group_size=2", "learner.steps=3"]
CONFIG = load_config("tiny", [*SETTINGS, "learner.filters.no_signal=true"])
BAD = "\x1b[2J\r"


def answered(tokenizer: Any, ticket: int, *, right: bool, code: bool = False, **fields: Any) -> Trajectory:
    """Returns a trajectory of ticket `ticket`, with or without a call."""
    prompt = tokenizer.encode("1+2=", add_special_tokens=False)
    written = [("```python\nprint(3)\n```", 1), ("\n```output\n3\n```\n", 0)] if code else []
    passages = [(tokenizer.encode(text, add_special_tokens=False), mask) for text, mask in [*written, ("so 3 ", 1)]]
    response = [token for tokens, _ in passages for token in tokens]
    mask = [mask for tokens, mask in passages for _ in tokens]
    call = ToolCall(
        code="print(3)", output="3", outcome=Outcome.EXITED, success=True, start=len(passages[0][0]), seconds=0.25
    )
    values: dict[str, Any] = {
        "ticket": ticket, "group": (ticket - 1) // 2, "reward": float(right), "reward_parts": {"correct": float(right)},
        "versions": spans((0, 0, len(response))), "tool_calls": (call,) * code, "problem_id": "p7", "gold_answer": "3",
        "answer": "3" if right else "4", "issued_at": 10.0, "started_at": 11.0, "first_token_at": 12.0, "published_at": 13.5,
    }  # fmt: skip
    return trajectory(
        len(prompt), len(response), mask=mask, tokens=np.array(prompt + response, np.int32), **(values | fields)
    )


def mean_length(results: list[Trajectory | Failure], *tickets: int) -> float:
    return fmean(each.response_length for each in results if each.ticket in tickets)


def values_of(result: Trajectory | Failure) -> TokenValues:
    """Returns what a step may have made of a result: 0, 0.5, 1 ... for its sampled tokens."""
    assert isinstance(result, Trajectory)
    count = int(result.loss_mask.sum())
    return TokenValues(
        ticket=result.ticket,
        published_at=result.published_at,
        advantages=np.array([1.0 if result.reward else -1.0], "<f2"),
        log_ratios=(np.arange(count) / 2).astype("<f2"),
    )


def write_run(folder: Path, tokenizer: Any, **fields: Any) -> list[Trajectory | Failure]:
    """Writes a run after two steps of two groups of two tickets each; the third step waits for its last result.

    `fields` replace what trajectories have besides. Returns the results as they came.
    """
    (folder / "config.yaml").write_text(dump_config(CONFIG))
    archive = Archive(folder / "results")
    failed = Failure(
        ticket=5, group=2, reason="deadline passed", detail="300 s" + BAD, attempts=3, actor="a1", published_at=9.0
    )
    results: list[Trajectory | Failure] = [
        answered(tokenizer, 2, right=False, gold_answer="3" + BAD, attempts=2),
        answered(tokenizer, 1, right=True, code=True),
        answered(tokenizer, 3, right=True),
        answered(tokenizer, 4, right=True),
        failed,
        answered(tokenizer, 6, right=True, versions=spans((0, 0, 2), (1, 2, 5))),
        answered(tokenizer, 8, right=True, code=True),
        answered(tokenizer, 7, right=False, versions=spans((1, 0, 5))),
        answered(tokenizer, 9, right=False, versions=spans((1, 0, 5))),
    ]
    for index, result in enumerate(results):
        if isinstance(result, Trajectory):
            results[index] = result.model_copy(update=fields)
    for sequence, result in enumerate(results, 1):
        archive.append(0, sequence, result)
    archive.sync()
    steps = [
        {"step": 1, "filtered_by_no_signal": 2.0, "trained_length": mean_length(results, 1, 2), "time": 14.0},
        {"step": 2, "filtered_by_group_too_small": 1.0, "trained_length": mean_length(results, 7, 8), "time": 15.0},
    ]
    common = {"run": folder.name, "seq": 1, "role": "learner", "id": "learner"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(common | step) + "\n" for step in steps))
    write_values(folder / "tokens", 2, [values_of(result) for result in results if result.ticket in (7, 8)])
    return results
