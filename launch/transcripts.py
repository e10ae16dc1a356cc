"""`zerotir transcripts`: what a run was trained on and what it left out, as text or JSON, from its archive of results."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

from bus.codec import MessageError
from bus.messages import Failure, FinishReason, Trajectory
from bus.metrics import steps_of
from configs.errors import UserError
from configs.schema import RunConfig
from evaluation.passages import Passage, passages, pieces
from launch.past_run import config_of
from launch.screen import coloured
from learner.step_metrics import slug
from learner.tickets.archive import read_archive
from learner.tickets.audit import Ending, endings
from learner.tickets.ledger import Ledger
from runtime.models import load_tokenizer, model_folder

STYLES = {"text": "", "code": "cyan", "output": "green", "hallucinated": "red"}
"""Colour of each kind of piece, see `evaluation.passages.pieces`."""
NAMES = {"code": "code", "output": "output", "hallucinated": "output that the model made up"}


def start(arguments: argparse.Namespace) -> int:
    """Prints the results that the command line asks for, in the order in which they were used; returns the exit status.

    The tokens become text only for those. Raises UserError where there is no archive, or nothing in it is like that.
    """
    config, found = archive_of(arguments.run)
    reason = arguments.filtered.replace("_", " ").lower() if arguments.filtered else None
    tokenizer: Any = None
    shown, reasons = 0, Counter[str]()
    used: dict[int, Counter[str]] = {}
    for ending in found:
        if ending.reason is not None:
            reasons[ending.reason] += 1
        if ending.step is not None:
            of_step = used.setdefault(ending.step, Counter())
            if ending.end == "filtered":
                of_step[slug(str(ending.reason))] += 1
        if not _wanted(ending, arguments, reason):
            continue
        if tokenizer is None:
            tokenizer = load_tokenizer(model_folder(config.model.path))
        if arguments.json:
            text = json.dumps({**as_json(ending, tokenizer), "emulated": config.emulated}) + "\n"
        else:
            text = as_text(ending, tokenizer, emulated=config.emulated)
        sys.stdout.write(text)
        shown += 1
    if not shown:
        what = "none of its results is like that"
        if reason is not None and reason not in {each.lower() for each in reasons}:
            there = ", ".join(f"{name} ({count})" for name, count in reasons.most_common()) or "none at all"
            what = f"no result was left out for {reason!r}; the reasons here are: {there}"
        raise UserError(f"{quote(str(arguments.run))}: {what}")
    sys.stdout.flush()
    if differing := _filtered_otherwise(arguments.run, used):
        was = "step was" if differing == 1 else "steps were"
        sys.stderr.write(
            f"zerotir: learner.filters was changed on resume: {differing} {was} filtered by other settings than today's, by "
            "which it says here what was trained on\n"
        )
    return 0


def archive_of(run: Path) -> tuple[RunConfig, Iterator[Ending]]:
    """Returns a run's configuration, and what became of each result in its archive.

    Works while the run is on as well. Raises UserError where there is no archive; the iterator does where one is damaged.
    """
    config = config_of(run)
    folder = run / "results"
    if not folder.is_dir():
        raise UserError(f"{quote(str(run))} holds no results: they lie on the learner's host, from the first one on")

    def found() -> Iterator[Ending]:
        try:
            yield from endings(read_archive(folder), Ledger.of(config.learner))
        except (MessageError, ValueError) as error:
            raise UserError(f"{quote(str(folder))} is damaged, or another version's: {error}") from error

    return config, found()


def _wanted(ending: Ending, arguments: argparse.Namespace, reason: str | None) -> bool:
    result = ending.result
    if arguments.step not in (None, ending.step) or arguments.ticket not in (None, result.ticket):
        return False
    if reason is not None and (ending.reason or "").lower() != reason:
        return False
    if isinstance(result, Failure):
        return arguments.right is None and not arguments.code
    return arguments.right in (None, _right(result)) and (bool(result.tool_calls) or not arguments.code)


def _right(result: Trajectory) -> bool:
    return result.reward_parts.get("correct", 0.0) > 0


def _filtered_otherwise(run: Path, used: dict[int, Counter[str]]) -> int:
    """Returns in how many steps the learner, by its metrics, left out others than today's configuration does."""
    prefix = "filtered_by_"
    differing = 0
    for record in steps_of(run):
        measured = {name.removeprefix(prefix): count for name, count in record.items() if name.startswith(prefix)}
        differing += record["step"] in used and measured != used[record["step"]]
    return differing


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
        "right": _right(result),
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
    result = ending.result
    used = "waits for its batch" if ending.step is None else f"step {ending.step}"
    end = {"trained": "trained on", "filtered": f"filtered: {ending.reason}", "failed": f"failed: {ending.reason}"}
    head = [
        *["EMULATED"] * emulated,
        f"ticket {result.ticket}",
        used,
        *([end[ending.end]] if ending.end in end else []),
    ]
    if isinstance(result, Failure):
        failure = f"{result.actor}, attempt {result.attempts}, {result.detail}"
        return coloured((" \u00b7 ".join(head), "bold red"), (failure, ""), ("", ""))
    right = _right(result)
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
    lines = [
        (" \u00b7 ".join(head), "bold green" if right else "bold yellow"),
        (" \u00b7 ".join(facts), ""),
        (f"reward parts: {parts or 'none'}", ""),
        (f"right answer: {result.gold_answer} \u00b7 {taken}", ""),
        ("--- prompt", "dim"),
        (_prompt(result, tokenizer).strip("\n"), "dim"),
        ("--- response", "dim"),
    ]
    for kind, text, label in pieces(_passages(result, tokenizer), result.tool_calls):
        if kind in NAMES:
            lines.append((f"--- {NAMES[kind]}{f' ({label})' * bool(label)}", "dim"))
        if body := text.strip("\n"):
            lines.append((body, STYLES[kind]))
    return coloured(*lines, ("", ""))


def counted(number: int, what: str) -> str:
    """Returns a number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _prompt(result: Trajectory, tokenizer: Any) -> str:
    return tokenizer.decode(result.tokens[: result.prompt_length].tolist(), clean_up_tokenization_spaces=False)


def _passages(result: Trajectory, tokenizer: Any) -> Iterator[Passage]:
    return passages(result.tokens[result.prompt_length :].tolist(), result.loss_mask.tolist(), tokenizer)
