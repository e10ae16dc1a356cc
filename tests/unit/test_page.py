"""The page's store, its server, and what it tells Prometheus; a browser opens it in test_page_browser.py."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from bus.alarms import Alarm
from bus.messages import Metrics
from page import prometheus
from page import store as store_module
from page.fits import Fits
from page.run_view import RunView
from page.server import STATIC, application
from page.store import Series, Store, thinned


def measured(role: str, id: str, step: int | None, time: float, **values: float) -> Metrics:
    return Metrics(role=role, id=id, step=step, time=time, values=values)


def learned(*steps: int, store: Store | None = None, **values: float) -> Store:
    found = store or Store()
    for step in steps:
        found.add(measured("learner", "learner", step, 1000.0 + step, accuracy=step / 100, **values))
    return found


def test_a_step_that_is_trained_again_replaces_what_was_there_from_it_on():
    found = learned(1, 2, 3, 4)
    found.add(measured("learner", "learner-2", 3, 2000.0, accuracy=0.9))
    places, times, values = found.series["learner", "", "accuracy"].points()
    assert places.tolist() == [1, 2, 3]
    assert values.tolist() == [0.01, 0.02, 0.9]
    assert times.tolist() == [1001, 1002, 2000]
    assert found.step == 3


def test_a_long_run_is_thinned_and_its_totals_are_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "MOST_POINTS", 64)
    series = Series()
    for place in range(1, 1001):
        series.add(place, float(place), float(place))
    places, _, values = series.points()
    assert 32 <= len(places) <= 64
    assert np.all(np.diff(places) > 0)
    assert values.tolist() == places.tolist()
    assert series.total == pytest.approx(500_500)


def test_a_reason_that_a_step_trained_again_has_no_more_is_taken_away():
    found = learned(1, 2, 3)
    found.add(measured("learner", "learner", 4, 1004.0, accuracy=0.1, filtered_by_overlong=2.0))
    learned(3, store=found)
    assert found.series["learner", "", "filtered_by_overlong"].total == 0


def test_names_that_somebody_makes_up_are_bounded_and_cost_others_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store_module, "MOST_SERIES", 3)
    found = Store()
    for number in range(10):
        found.add(measured("actor", f"a{number}", None, 1001.0, tokens_per_s=1.0))
    learned(1, store=found)
    assert len(found.series) == 4
    assert found.left_out == 7
    assert set(found.latest) == {("actor", "a0"), ("actor", "a1"), ("actor", "a2"), ("learner", "")}


def test_tokens_and_compute_are_summed_over_steps():
    found = learned(1, 2, 3, trained_tokens=10.0, trained_sequence_tokens=20.0, parameters=5e13)
    tokens, compute = found.axis("tokens"), found.axis("compute")
    assert tokens is not None
    assert compute is not None
    assert tokens[1].tolist() == [10, 20, 30]
    assert compute[1] == pytest.approx([6.0, 12.0, 18.0])
    assert learned(1).axis("tokens") is None


def test_a_curve_is_thinned_to_means_of_neighbours():
    x, y = thinned(*2 * (np.linspace(0.0, 999.0, 1000),), 100)
    assert len(x) == 100
    assert x.tolist() == y.tolist()
    assert x[0] == 4.5


@pytest.fixture
def run(tmp_path: Path) -> RunView:
    view = RunView(
        "r-1",
        tmp_path,
        None,
        {"learner": {"steps": 9}},
        [Alarm(name="disk", who="<i>", text="t", advice="a", since=1.0)],
    )
    learned(1, 2, store=view.store, tickets_issued=8.0, tickets_failed=2.0, failed_by_deadline_passed=1.0)
    view.store.add(measured("actor", "actor-0", None, 1003.0, tokens_per_s=7.5))
    view.store.add(measured("evaluator", "e/aime24/4", 2, 1004.0, accuracy=0.5))
    return view


def get(run: RunView, path: str, token: str | None = None, **headers: str) -> Any:
    with TestClient(application([run], token), base_url="http://127.0.0.1:1") as client:
        return client.get(path, headers=headers)


def test_now_says_what_the_folder_of_a_run_says(run: RunView):
    now = get(run, "/api/now?run=r-1").json()
    assert (now["step"], now["steps"], now["live"], now["finished"]) == (2, 9, False, False)
    assert now["failed"] == {"deadline passed": 2.0}
    assert now["tickets"] == {
        "issued": 8,
        "trained": None,
        "filtered": None,
        "failed": 2,
        "open": None,
        "ignored": None,
    }
    assert now["alarms"][0]["line"] == "ALARM disk (<i>): t. a"
    assert get(run, "/api/now?run=other").status_code == 404


NO_TOKENS = "the run's metrics do not say how many tokens its steps took"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name=learner/accuracy", {"x": [1, 2], "y": [0.01, 0.02], "unit": "step"}),
        ("name=learner/accuracy&x=time", {"x": [1001, 1002], "y": [0.01, 0.02], "unit": "time"}),
        ("name=learner/accuracy&x=seconds", {"x": [0, 1], "y": [0.01, 0.02], "unit": "seconds"}),
        ("name=learner/accuracy&x=tokens", {"x": [], "y": [], "unit": "tokens", "why": NO_TOKENS}),
        ("name=actor/actor-0/tokens_per_s", {"x": [2], "y": [7.5], "unit": "seconds"}),
        ("name=evaluator/e/aime24/4/accuracy", {"x": [2], "y": [0.5], "unit": "step"}),
        ("name=learner/accuracy&most=1", {"x": [1.5], "y": [0.015], "unit": "step"}),
        ("name=learner/accuracy&most=x&x=y", {"x": [1, 2], "y": [0.01, 0.02], "unit": "step"}),
        ("name=nothing", {"x": [], "y": [], "unit": "step", "why": "not measured, or not yet"}),
        (f"name=learner/accuracy&most={'9' * 5000}", {"x": [1, 2], "y": [0.01, 0.02], "unit": "step"}),
    ],
)
def test_a_curve_has_the_abscissa_that_is_asked_for(run: RunView, query: str, expected: dict[str, Any]):
    assert get(run, f"/api/curve?run=r-1&{query}").json() == {"final": False, "why": ""} | expected


def test_no_other_site_reaches_the_page_and_nothing_foreign_runs_on_it(run: RunView):
    index = get(run, "/")
    assert index.status_code == 200
    policy = index.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert get(run, "/api/runs", host="evil.example").status_code == 400
    assert get(run, "/static/../server.py").status_code == 404
    for name in ("page.js", "page.css", "uplot.js", "uplot.css"):
        assert get(run, f"/static/{name}").status_code == 200
    text = (STATIC / "page.js").read_text()
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in text
    ]


@pytest.mark.parametrize(
    "path", ["/api/runs", "/api/now?run=r-1", "/api/names?run=r-1", "/api/curve?run=r-1", "/metrics"]
)
def test_elsewhere_than_on_the_loopback_interface_a_token_is_needed(run: RunView, path: str):
    refused = get(run, path, "secret")
    assert refused.status_code == 401
    assert "use the address as printed" in refused.text
    assert get(run, path, "secret", authorization="Bearer wrong").status_code == 401
    assert get(run, path, "secret", authorization="Bearer secret", host="gpu-host:7787").status_code == 200
    assert get(run, f"{path}{'&' if '?' in path else '?'}token=secret", "secret").status_code == 200
    assert get(run, "/", "secret").status_code == 200


def samples(run: RunView) -> dict[str, list[tuple[dict[str, str], float]]]:
    families = text_string_to_metric_families(get(run, "/metrics").text)
    return {family.name: [(each.labels, each.value) for each in family.samples] for family in families}


def test_prometheus_reads_the_newest_of_every_process(run: RunView):
    run.store.add(measured("actor", "gone", None, 900.0, tokens_per_s=1.0))
    found = samples(run)
    assert found["zerotir_learner_accuracy"] == [({"run": "r-1"}, 0.02)]
    assert found["zerotir_learner_step"] == [({"run": "r-1"}, 2)]
    assert found["zerotir_actor_tokens_per_s"] == [({"run": "r-1", "id": "actor-0"}, 7.5)]
    assert found["zerotir_evaluator_accuracy"] == [({"run": "r-1", "id": "e/aime24/4"}, 0.5)]
    assert found["zerotir_alarm"] == [({"run": "r-1", "name": "disk"}, 1)]


def test_what_one_actor_makes_up_hides_nobody(run: RunView, monkeypatch: pytest.MonkeyPatch):
    """Numbers beyond all others, times to come, names that become one, and more of them than anybody reads."""
    monkeypatch.setattr(prometheus, "MOST_SAMPLES", 50)
    for number in range(100):
        run.store.add(measured("actor", f"liar-{number}", None, 1003.0, **{"a.b": 1.0, "a_b": 2.0, "huge": 1.7e308}))
    run.store.add(measured("actor", "liar", None, 9e10, tokens_per_s=1e299))
    run.store.add(measured("actor", "x", None, 1003.0, **{"y/z": 1.0}))
    run.store.add(measured("actor", "x/y", None, 1003.0, z=1.0))
    found = samples(run)
    assert found["zerotir_actor_tokens_per_s"] == [({"run": "r-1", "id": "actor-0"}, 7.5)]
    assert "zerotir_alarm" in found
    assert "zerotir_actor_huge" not in found
    assert get(run, "/api/now?run=r-1").status_code == 200
    assert get(run, "/api/names?run=r-1").json().count("actor/x/y/z") == 1
    assert get(run, "/api/curve?run=r-1&name=actor/x/y/z").status_code == 200


@pytest.mark.parametrize("settings", [{}, {"learner": None}, {"learner": {"steps": "many"}}, {"learner": []}])
async def test_the_configuration_of_another_version_is_no_obstacle(tmp_path: Path, settings: dict[str, Any]):
    assert (await RunView("r", tmp_path, None, settings).now())["steps"] is None


def test_the_dashboard_asks_for_what_there_is():
    root = Path(__file__).parents[2]
    known = set(re.findall(r"`(\w+)`", (root / "docs" / "metrics.md").read_text()))
    dashboard = json.loads((root / "docs" / "grafana.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    asked = set(re.findall(r"zerotir_\w+", queries))
    assert len(asked) > 15
    ours = {"zerotir_learner_step", "zerotir_alive", "zerotir_alarm", "zerotir_stream_messages"}
    assert {re.sub("^zerotir_(learner|actor|sandbox)_", "", name) for name in asked - ours} <= known


async def test_a_run_that_goes_on_after_its_page_was_started_is_said(tmp_path: Path):
    line = {"run": "r", "seq": 1, "time": 1.0, "role": "learner", "id": "learner", "step": 1, "accuracy": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    view = RunView("r", tmp_path, None, {})
    await view.follow()
    assert (view.is_final, view.is_stale, (await view.now())["trouble"]) == (True, False, "")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"seq": 2, "step": 2}) + "\n")
    assert view.is_stale
    assert "start the page again" in (await view.now())["trouble"]


# --- fits --------------------------------------------------------------------------------------------------------------


def grown(steps: int, slope: float = 0.01) -> Store:
    store = Store()
    noise = np.random.default_rng(0).normal(0.0, 0.01, steps)
    for step in range(1, steps + 1):
        values = {"accuracy": 0.1 + slope * step + noise[step - 1], "trajectories": 64.0, "trained_tokens": 1000.0}
        store.add(measured("learner", "learner", step, 1000.0 + step, **values))
    return store


async def fitted(fits: Fits, name: str = "learner/accuracy", axis: str = "step") -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (found := await fits.fit(name, axis))["computing"]:
            await asyncio.sleep(0)
    return found


@pytest.mark.parametrize(("axis", "last"), [("step", 40.0), ("tokens", 40_000.0)])
async def test_a_curve_is_fitted_with_a_band_around_it(axis: str, last: float):
    found = await fitted(Fits(grown(40)), axis=axis)
    assert (found["form"], found["why"]) == ("linear", "")
    assert found["x"][-1] == last
    assert found["y"][-1] == pytest.approx(0.5, abs=0.02)
    assert all(low < y < high for low, y, high in zip(found["low"], found["y"], found["high"], strict=True))


@pytest.mark.parametrize(
    ("store", "name", "axis", "why"),
    [
        (grown(40, 0.0), "learner/accuracy", "step", "flat"),
        (grown(10), "learner/accuracy", "step", "10 steps are too few"),
        (grown(40), "learner/accuracy", "time", "over steps, tokens or compute"),
        (grown(40), "learner/accuracy", "compute", "do not say how far"),
        (grown(40), "learner/loss", "step", "only accuracy"),
        (grown(40), "learner/code_ratio", "step", "only accuracy"),
    ],
)
async def test_what_cannot_be_fitted_has_a_reason(store: Store, name: str, axis: str, why: str):
    found = await fitted(Fits(store), name, axis)
    assert found["x"] == []
    assert why in found["why"]


async def test_a_fit_is_kept_until_there_is_a_fiftieth_more_of_steps():
    store = grown(200)
    fits = Fits(store)
    first = await fitted(fits)
    learned(201, store=store)
    assert await fitted(fits) is first
    learned(*range(202, 206), store=store)
    second = await fitted(fits)
    assert second["x"][-1] == 205
    # As many steps, but others.
    learned(*range(150, 206), store=store)
    assert (await fitted(fits))["y"] != second["y"]
    # A run that goes on from an older checkpoint.
    learned(30, store=store)
    assert (await fitted(fits))["x"][-1] == 30


def test_the_page_is_given_a_fit(run: RunView):
    found = get(run, "/api/fit?run=r-1&name=learner/accuracy&x=step").json()
    assert found["why"].startswith("2 steps are too few")
