"""Shows how a run's tickets ended: the balance, and what was left out beside what was trained on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from learner.tickets.ledger import BalanceError

BALANCE = ("trained", "filtered", "failed", "open")
COUNTS = {"trained": "trained_trajectories", "filtered": "filtered", "failed": "failures"}
"""The metric that counts each end in a step."""


def account_lines(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the lines for people from the values of all steps in order; none before the first step.

    Raises BalanceError where the newest step's tickets do not add up.
    """
    if not steps:
        return []
    total = {name: round(steps[-1].get(f"tickets_{name}", 0)) for name in ("issued", "ignored", *BALANCE)}
    ends = " + ".join(f"{total[name]} {name}" for name in BALANCE)
    if total["issued"] != sum(total[name] for name in BALANCE):
        raise BalanceError(f"the balance of tickets does not close: {total['issued']} issued, but {ends}")
    lines = [f"tickets            {total['issued']} issued = {ends}; {total['ignored']} results changed nothing"]
    for end, count in COUNTS.items():
        seen = sum(step.get(count, 0) for step in steps)
        if seen:
            lines.append(f"  {end:<16} {_means(steps, end, count)}{_reasons(steps, end)}")
    return lines


def _means(steps: Sequence[Mapping[str, Any]], end: str, count: str) -> str:
    parts = []
    for name, text in (
        ("length", "length {:.0f}"),
        ("reward", "reward {:.2f}"),
        ("attempts", "after {:.1f} deliveries"),
        ("age_seconds", "age {:.0f} s"),
    ):
        having = [step for step in steps if f"{end}_{name}" in step]
        members = sum(step[count] for step in having)
        if members:
            parts.append(text.format(sum(step[f"{end}_{name}"] * step[count] for step in having) / members))
    return "  ".join(parts)


def _reasons(steps: Sequence[Mapping[str, Any]], end: str) -> str:
    reasons: Counter[str] = Counter()
    for step in steps:
        for name, value in step.items():
            if name.startswith(prefix := f"{end}_by_"):
                reasons[name.removeprefix(prefix).replace("_", " ")] += round(value)
    return "".join(f"  [{reason}: {number}]" for reason, number in reasons.most_common())
