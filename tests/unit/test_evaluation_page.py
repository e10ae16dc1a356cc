"""The page of transcripts: hostile text stays text, everything that is shown is there, nothing is loaded."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from bus.messages import FinishReason, Outcome, ToolCall
from configs.schema import RolloutConfig
from configs.tasks import GradingConfig, PromptConfig
from evaluation import page as page_module
from evaluation.page import inert_json, page
from evaluation.plan import DataSet, Plan
from evaluation.records import Sample
from tasks.problems import Problem
from tests.unit.samples import sample
from transcripts.passages import Passage, pieces

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;b&gt; <!-- --> ]]> \u2028 {{table}} {{data}} "
    "\\u003c/script> '\" <style>body{display:none}</style> <base href=//evil> \x00 \U0001f600"
)


class Parsed(HTMLParser):
    """Elements, attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data


def plan(text: str = "What?", samples: int = 2) -> Plan:
    problems = (Problem("p0", text, "42"), Problem("p1", "Other", "43"))
    return Plan(
        data=(DataSet("set", problems, GradingConfig(), "d"),),
        max_tool_calls=(1,),
        samples=samples,
        prompt=PromptConfig(),
        template="{problem}",
        rollout=RolloutConfig(),
    )


def rendered(*samples: Sample, title: str = "title", text: str = "What?", notes=("note",)) -> str:
    return page(title, plan(text), [["head"], ["cell"]], notes, {each.key: each for each in samples})


def test_hostile_text_is_inert_wherever_it_stands():
    clean = Parsed(rendered(sample()))
    hostile = page(
        HOSTILE,
        plan(HOSTILE),
        [["head"], [HOSTILE]],
        [HOSTILE],
        {each.key: each for each in [sample(text=HOSTILE, answer=HOSTILE)]},
    )
    parsed = Parsed(hostile)
    assert parsed.tags == clean.tags
    assert {name for _, name, _ in parsed.attributes} == {name for _, name, _ in clean.attributes}
    data = json.loads(parsed.scripts[0])
    assert data["samples"][0]["pieces"][0][1] == HOSTILE
    assert data["samples"][0]["pieces"][0][3] == []
    assert data["problems"][0]["text"] == HOSTILE
    assert data["samples"][0]["answer"] == HOSTILE
    # Title (twice), table and note show it as it is; nothing in it was taken for a placeholder.
    assert parsed.text.count(HOSTILE) == 4


def test_the_policy_allows_the_page_s_own_script_and_nothing_else():
    parsed = Parsed(rendered(sample(text=HOSTILE)))
    policy = next(value for tag, name, value in parsed.attributes if name == "content" and "default-src" in value)
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy
    loading = {"src", "href", "srcset", "data", "action", "poster", "background"}
    assert not [name for _, name, _ in parsed.attributes if name in loading or name.startswith("on")]
    style = re.search("<style>(.*?)</style>", page_module.TEMPLATE.read_text(), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


@pytest.mark.parametrize(
    "way", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_the_script_has_no_way_from_text_to_markup_or_code(way: str):
    assert way not in page_module.TEMPLATE.read_text()


def test_inert_json_is_json():
    value = {"text": HOSTILE, "number": 0.5, "nothing": None}
    assert json.loads(inert_json(value)) == value
    assert not set("<>&") & set(inert_json(value))


def test_a_transcript_s_pieces_tell_code_output_and_made_up_output_apart():
    call = ToolCall(
        code="print(6)", output="6 ```python\nx\n```", outcome=Outcome.EXITED, success=True, start=30, seconds=0.25
    )
    given = (
        Passage(sampled=True, start=0, text="Let me see ```python\nprint(6)\n```"),
        Passage(sampled=False, start=30, text="\n```output\n6 ```python\nx\n```\n```\n"),
        Passage(sampled=True, start=60, text="so ```output\n7\n``` then ```python\nprint(7)"),
        Passage(sampled=False, start=90, text="\n```output\nno more\n```\n"),
        Passage(sampled=True, start=99, text="6"),
    )
    found = list(pieces(given, [call]))
    assert all(given[piece.passage].text[piece.begin :].startswith(piece.text) for piece in found)
    assert [piece[:3] for piece in found] == [
        ("text", "Let me see ", ""),
        ("code", "```python\nprint(6)\n```", ""),
        # What a program printed is one piece, whatever fences are in it.
        ("output", "```output\n6 ```python\nx\n```\n```", "exited, 0.2 s"),
        ("text", "so ", ""),
        ("hallucinated", "```output\n7\n```", ""),
        ("text", " then ", ""),
        ("code", "```python\nprint(7)", ""),
        ("output", "```output\nno more\n```", "not run"),
        ("text", "6", ""),
    ]


def test_filters_find_what_the_samples_say():
    failed = ToolCall(code="x", output="NameError", outcome=Outcome.EXITED, success=False, start=3, seconds=1.0)
    given = [
        sample(0),
        sample(1, correct=False, tool_calls=(failed,), refused_calls=1, finish_reason=FinishReason.LENGTH),
    ]
    shown = json.loads(Parsed(rendered(*given)).scripts[0])["samples"]
    assert [(s["correct"], s["calls"], s["failedCalls"], s["refused"], s["finish"]) for s in shown] == [
        (True, 0, 0, 0, "stop"),
        (False, 1, 1, 1, "length"),
    ]


def test_transcripts_that_are_too_long_together_are_thinned_evenly_and_said_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_module, "MAX_CHARACTERS", 70)
    given = [sample(number, problem=problem, text="x" * 10) for problem in ("p0", "p1") for number in range(2)]
    parsed = Parsed(rendered(*given))
    shown = json.loads(parsed.scripts[0])["samples"]
    # The first sample of each problem, rather than all of the first problem.
    assert [(s["problem"], s["number"]) for s in shown] == [(0, 0), (1, 0)]
    assert "shows 2 of 4 transcripts; all are in samples.jsonl" in parsed.text
