"""The page on which people read transcripts: one HTML file that loads nothing and runs nothing but its own script.

Transcripts are hostile text. They stand in the page as JSON in which nothing can end the element around it, the script
makes text nodes of them and never markup, and a content security policy allows that one script, by its hash, and no
resource at all.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transcripts
from evaluation.plan import Plan
from evaluation.records import Key, Sample
from transcripts.passages import pieces
from transcripts.typeset import Mark, formulas, marks

TEMPLATE = Path(__file__).with_name("page.html")
VIEW = Path(transcripts.__file__).parent
MAX_CHARACTERS = 24_000_000
"""Most characters of all transcripts together, as JSON: browsers are slow to open more."""

_Piece = tuple[str, str, str, list[Mark]]
"""Kind, text and label, see `transcripts.passages.Piece`; how it is drawn, see `transcripts.typeset`."""

_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")
_SCRIPT = re.compile(r"<script>(.*)</script>", re.DOTALL)


def page(
    title: str, plan: Plan, table: Sequence[Sequence[str]], notes: Sequence[str], samples: Mapping[Key, Sample]
) -> str:
    """Returns the whole page; where the transcripts are too long for one, as many samples of every problem as fit."""
    shown, whole = _transcripts(plan, samples)
    remarks = list(notes)
    if len(shown) < whole:
        remarks.append(f"This page shows {len(shown)} of {whole} transcripts; all are in samples.jsonl.")
    template = TEMPLATE.read_text(encoding="utf-8")
    for name in ("view.css", "view.js"):
        template = template.replace(f"{{{{{name}}}}}", (VIEW / name).read_text(encoding="utf-8"))
    script = _SCRIPT.search(template)
    assert script is not None
    values = {
        "title": html.escape(title),
        "script_hash": base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode(),
        "table": _table(table),
        "notes": "".join(f"<p>{html.escape(remark)}</p>" for remark in remarks),
        "data": inert_json({"problems": _problems(plan), "samples": shown}),
    }
    # In one pass: what is put in is not looked at again.
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def inert_json(value: Any) -> str:
    """Returns JSON that contains nothing that means something to an HTML parser."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _problems(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "data": data.name,
            "id": problem.id,
            "text": problem.text,
            "marks": formulas(problem.text),
            "answer": problem.answer,
        }
        for data in plan.data
        for problem in data.problems
    ]


def _transcripts(plan: Plan, samples: Mapping[Key, Sample]) -> tuple[list[dict[str, Any]], int]:
    """Returns the samples that are shown, in the plan's order, and how many there are."""
    order = {
        key: index
        for index, key in enumerate((data.name, problem.id) for data in plan.data for problem in data.problems)
    }
    there = [samples[job.key] for job in plan.jobs() if job.key in samples]
    shown: list[tuple[Sample, list[_Piece]]] = []
    characters = 0
    for sample in sorted(there, key=lambda sample: sample.number):
        drawn = [
            (piece.kind, piece.text, piece.label, marks(piece.kind, piece.text))
            for piece in pieces(sample.passages, sample.tool_calls)
        ]
        characters += len(json.dumps(drawn))
        if characters > MAX_CHARACTERS and shown:
            break
        shown.append((sample, drawn))
    shown.sort(key=lambda each: (order[each[0].key[:2]], each[0].max_tool_calls, each[0].number))
    return [
        {
            "problem": order[sample.key[:2]],
            "maxToolCalls": sample.max_tool_calls,
            "number": sample.number,
            "correct": sample.correct,
            "calls": len(sample.tool_calls),
            "failedCalls": sum(not call.success for call in sample.tool_calls),
            "refused": sample.refused_calls,
            "answered": sample.parts["answered"] > 0,
            "answer": sample.answer,
            "finish": sample.finish_reason,
            "tokens": sample.response_tokens,
            "pieces": drawn,
        }
        for sample, drawn in shown
    ], len(there)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rest = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    return f"<thead><tr>{first}</tr></thead><tbody>{rest}</tbody>"
