"""The files of an evaluation: results.json for programs, results.md for documents, index.html for people.

All three are written anew from the journal each time. If the evaluation was stopped, they say so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.evaluator import LeftOut
from evaluation.page import page
from evaluation.plan import Plan
from evaluation.records import Key, Sample
from evaluation.statistics import LEVEL, Estimate
from evaluation.summary import Row, summarise
from runtime.files import write_whole

FORMAT = 2


def write_report(
    folder: Path,
    title: str,
    plan: Plan,
    settings: Mapping[str, Any],
    samples: Mapping[Key, Sample],
    left_out: Sequence[LeftOut],
) -> list[Row]:
    """Writes the three files to `folder` and returns the rows that they hold; `title` names the weights for people."""
    unasked = {(each.data, each.problem) for each in left_out}
    rows = summarise(plan, samples, unasked)
    missing = sum(job.key[:2] not in unasked and job.key not in samples for job in plan.jobs())
    remarks = notes(plan, rows, left_out, missing)
    results = {
        "format": FORMAT,
        "title": title,
        "complete": missing == 0,
        "samples_per_problem": plan.samples,
        "interval": LEVEL,
        "settings": settings,
        "left_out": [asdict(each) for each in left_out],
        "rows": [asdict(row) for row in rows],
    }
    write_whole(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_whole(folder / "results.md", markdown(title, rows, remarks))
    write_whole(folder / "index.html", page(title, plan, table(rows), remarks, samples))
    return rows


def markdown(title: str, rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """Returns the table with what must be known to read it."""
    head, *body = table(rows)
    lines = [f"# {title}", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
    return "\n".join([*lines, "", *remarks, ""])


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the table as text, its head first."""
    head = ["data set", "problems", "calls allowed", "avg@k", "pass@k", "against fewest calls", "code ratio"]
    head += ["calls/response", "calls ok", "tokens", "truncated"]
    rewarded = any(row.reward is not None for row in rows)
    head += ["reward"] * rewarded
    body = []
    for row in rows:
        k = max(row.pass_at)
        body.append(
            [
                row.data,
                str(row.accuracy.problems),
                str(row.max_tool_calls),
                f"@{k}: {_percent(row.accuracy)}",
                f"@{k}: {_percent(row.pass_at[k])}",
                _percent(row.difference, sign="+") if row.difference else "-",
                f"{row.code_ratio.value:.0%}",
                f"{row.calls_per_response:.2f}",
                "-" if row.successful_call_ratio is None else f"{row.successful_call_ratio:.0%}",
                f"{row.response_length:.0f}",
                f"{row.truncated_ratio:.0%}",
                *(["-" if row.reward is None else f"{row.reward:.3f}"] if rewarded else []),
            ]
        )
    return [head, *body]


def notes(plan: Plan, rows: Sequence[Row], left_out: Sequence[LeftOut], missing: int) -> list[str]:
    """Returns the sentences below the table; `missing` samples of the plan are not there."""
    rollout = plan.rollout
    sentences = [
        f"{plan.samples} samples a problem at temperature {rollout.temperature:g}, top-p {rollout.top_p:g}, at most "
        f"{rollout.max_response_tokens} tokens, prompt {plan.prompt.template}{' in the chat template' * plan.prompt.chat}. "
        f"In brackets: {LEVEL:.0%} bootstrap intervals over problems."
    ]
    if missing:
        sentences.append(f"INCOMPLETE: {missing} samples are missing, which these numbers leave out.")
    if retries := sum(row.retries for row in rows):
        sentences.append(f"{retries} rollouts were lost to infrastructure and done again.")
    if left_out:
        named = ", ".join(f"{each.data}/{each.problem}" for each in left_out[:10])
        sentences.append(f"{len(left_out)} problems were left out, see left_out in results.json: {named}.")
    return sentences


def _percent(estimate: Estimate, sign: str = "") -> str:
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} % [{low}, {high}]"
