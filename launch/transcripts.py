"""`zerotir transcripts`: what a run was trained on and what it left out, as text or JSON, from its archive of results."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from shlex import quote
from textwrap import indent
from typing import Any

from bus.messages import Failure, FinishReason, Trajectory
from bus.metrics import slug
from configs.errors import UserError
from launch.archive_view import archive_of
from launch.screen import coloured
from learner.tickets.audit import Ending
from runtime.models import tokenizer_of
from runtime.terminal import printable
from runtime.words import counted
from transcripts.passages import Passage, passages, pieces

STYLES = {"text": "", "code": "cyan", "output": "green", "hallucinated": "red"}
"""Colour of each kind of piece, see `transcripts.passages.Piece`."""
NAMES = {"code": "code", "output": "output", "hallucinated": "output that the model made up"}
INDENT = "  | "


def start(arguments: argparse.Namespace) -> int:
    """Prints the results that the command line asks for, in the order in which they were used; returns the exit status.

    The tokens become text only for those. Raises UserError where there is no archive, where it is damaged, and where nothing
    in it is like that.
    """
    config, found = archive_of(arguments.run)
    reason = None if arguments.filtered is None else slug(arguments.filtered)
    tokenizer: Any = None
    seen = shown = 0
    reasons = Counter[str]()
    uncertain: set[int | None] = set()
    for ending in found:
        seen += 1
        if ending.reason is not None:
            reasons[ending.reason] += 1
        if not ending.is_known:
            uncertain.add(ending.step)
        if not _wanted(ending, arguments, reason):
            continue
        if tokenizer is None:
            tokenizer = tokenizer_of(config.model.path)
        if arguments.json:
            text = json.dumps({**as_json(ending, tokenizer), "emulated": config.emulated}) + "\n"
        else:
            text = as_text(ending, tokenizer, emulated=config.emulated)
        sys.stdout.write(text)
        shown += 1
    sys.stdout.flush()
    if uncertain:
        sys.stderr.write(
            f"zerotir: of {counted(len(uncertain), 'step')} it is not known which results were trained on: learner.filters "
            "was changed on resume, or the step is not in metrics.jsonl (yet)\n"
        )
    if not shown:
        raise UserError(f"{quote(str(arguments.run))}: {_why_nothing(seen, reason, reasons)}")
    return 0


def _why_nothing(seen: int, reason: str | None, reasons: Counter[str]) -> str:
    if not seen:
        return "it has no results yet"
    if reason is not None and reason not in map(slug, reasons):
        there = ", ".join(f"{name} ({count})" for name, count in reasons.most_common()) or "none at all"
        return f"no result was left out for {reason!r}; the reasons here are: {there}"
    return "none of its results is like that"


def _wanted(ending: Ending, arguments: argparse.Namespace, reason: str | None) -> bool:
    result = ending.result
    if arguments.step not in (None, ending.step) or arguments.ticket not in (None, result.ticket):
        return False
    if reason is not None and slug(ending.reason or "") != reason:
        return False
    if isinstance(result, Failure):
        return arguments.right is None and not arguments.code
    return arguments.right in (None, is_right(result)) and (bool(result.tool_calls) or not arguments.code)


def is_right(result: Trajectory) -> bool:
    """Returns whether the grader took its answer for right."""
    return result.reward_parts.get("correct", 0.0) > 0


def as_json(ending: Ending, tokenizer: Any) -> dict[str, Any]:
    """Returns a result for programs; `docs/transcripts.md` lists the fields."""
    result = ending.result
    values: dict[str, Any] = {
        "ticket": result.ticket,
        "group": result.group,
        "step": ending.step,
        "end": ending.end,
        "reason": ending.reason,
        "actor": result.actor,
        "attempts": result.attempts,
        "published_at": result.published_at,
    }
    if isinstance(result, Failure):
        return values | {"detail": result.detail, "response_length": result.response_length}
    return values | {
        "problem_id": result.problem_id,
        "gold_answer": result.gold_answer,
        "answer": result.answer,
        "right": is_right(result),
        "reward": result.reward,
        "reward_parts": result.reward_parts,
        "staleness": ending.staleness,
        "versions": [{"version": str(span.version), "start": span.start, "end": span.end} for span in result.versions],
        "finish_reason": result.finish_reason,
        "prompt_length": result.prompt_length,
        "response_length": result.response_length,
        "prompt": _prompt(result, tokenizer),
        "response": [passage.model_dump() for passage in _passages(result, tokenizer)],
        "tool_calls": [call.model_dump(mode="json") for call in result.tool_calls],
        "issued_at": result.issued_at,
        "started_at": result.started_at,
        "first_token_at": result.first_token_at,
    }


def as_text(ending: Ending, tokenizer: Any, *, emulated: bool) -> str:
    """Returns a result for people, in colours where standard output is a terminal."""
    return coloured(*_lines(ending, tokenizer, emulated=emulated))


def as_plain_text(ending: Ending, tokenizer: Any, *, emulated: bool) -> str:
    """Returns a result for people, without colours; what a terminal would obey is escaped."""
    lines = "\n".join(text for text, _ in _lines(ending, tokenizer, emulated=emulated)).split("\n")
    return "\n".join(printable(line.expandtabs(4)) for line in lines)


def _lines(ending: Ending, tokenizer: Any, *, emulated: bool) -> list[tuple[str, str]]:
    """Returns a result's texts, each beginning a line, with their styles."""
    result = ending.result
    used = "waits for its batch" if ending.step is None else f"step {ending.step}"
    end = {
        "trained": "trained on",
        "filtered": f"filtered: {ending.reason}",
        "failed": f"failed: {ending.reason}",
        "unknown": "trained on or filtered, which is not known",
    }
    head = [
        *["EMULATED"] * emulated,
        f"ticket {result.ticket}",
        used,
        *([end[ending.end]] if ending.end in end else []),
    ]
    if isinstance(result, Failure):
        failure = f"{result.actor}, attempt {result.attempts}, {result.detail}"
        return [(printable(" \u00b7 ".join(head)), "bold red"), (printable(failure), ""), ("", "")]
    right = is_right(result)
    head += ["right" if right else "wrong", f"reward {result.reward:g}"]
    parts = ", ".join(f"{name} {value:g}" for name, value in result.reward_parts.items())
    versions = " and ".join(dict.fromkeys(str(span.version) for span in result.versions))
    failed = sum(not call.success for call in result.tool_calls)
    facts = [
        f"problem {result.problem_id} (group {result.group})",
        f"{result.actor}, attempt {result.attempts}",
        f"weights {versions}"
        + ("" if ending.staleness is None else f", {counted(ending.staleness, 'version')} behind"),
        counted(result.response_length, "token") + ", cut by the limit" * (result.finish_reason is FinishReason.LENGTH),
        counted(len(result.tool_calls), "call") + f", {failed} failed" * bool(failed),
    ]
    taken = "no answer" if result.answer is None else f"taken for the answer: {result.answer}"
    # What a model or an actor wrote is indented, or in a line with what it is: it cannot look like a line of ours.
    lines = [
        (printable(" \u00b7 ".join(head)), "bold green" if right else "bold yellow"),
        (printable(" \u00b7 ".join(facts)), ""),
        (printable(f"reward parts: {parts or 'none'}"), ""),
        (printable(f"right answer: {result.gold_answer} \u00b7 {taken}"), ""),
        ("prompt", "dim"),
        (indent(_prompt(result, tokenizer).strip("\n"), INDENT), "dim"),
        ("response", "dim"),
    ]
    for kind, text, label, *_ in pieces(_passages(result, tokenizer), result.tool_calls):
        if kind in NAMES:
            lines.append((f"{NAMES[kind]}{f' ({label})' * bool(label)}", "dim"))
        if body := text.strip("\n"):
            lines.append((indent(body, INDENT), STYLES[kind]))
    return [*lines, ("", "")]


def _prompt(result: Trajectory, tokenizer: Any) -> str:
    return tokenizer.decode(result.tokens[: result.prompt_length].tolist(), clean_up_tokenization_spaces=False)


def _passages(result: Trajectory, tokenizer: Any) -> Iterator[Passage]:
    return passages(result.tokens[result.prompt_length :].tolist(), result.loss_mask.tolist(), tokenizer)
