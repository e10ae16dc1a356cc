"""A run's newest measurements in the text format of Prometheus.

    zerotir_learner_accuracy{run="..."} 0.75
    zerotir_actor_tokens_per_s{run="...",id="actor-0"} 812.5
    zerotir_alarm{run="...",name="stalled"} 1
    zerotir_alive{run="...",role="actor"} 4
    zerotir_bus_up{run="..."} 1

While the bus does not answer, what only it knows is left out. So is what a process measured more than `SILENT_S` seconds
ago, but for steps, which may take longer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from page.run_view import RunView

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SILENT_S = 60.0
MOST_SAMPLES = 50_000
"""Samples of all processes of a run but the learner: anybody may make up names."""
MOST_VALUES = 100
"""Of one process."""
ROLES = ("learner", "actor", "sandbox", "evaluator", "bus")


class _Runs(Collector):
    def __init__(self, runs: Sequence[tuple[RunView, dict[str, Any]]]) -> None:
        self._runs = runs

    def collect(self) -> Iterable[Metric]:
        """Yields all gauges, each with the samples of all runs."""
        families: dict[str, GaugeMetricFamily] = {}

        seen = set[tuple[str, ...]]()

        def put(name: str, labels: dict[str, str], value: float) -> None:
            # Two names may become one.
            key = name, *labels.values()
            if key in seen:
                return
            seen.add(key)
            family = families.get(name)
            if family is None:
                text = name.removeprefix("zerotir_").replace("_", " ")
                family = families[name] = GaugeMetricFamily(name, text, labels=list(labels))
            family.add_metric(list(labels.values()), value)

        for view, now in self._runs:
            run = {"run": view.name}
            if view.is_live:
                put("zerotir_bus_up", run, float(view.answers))
            if latest := view.store.learner:
                put("zerotir_learner_step", run, view.store.step)
                for name, value in latest.values.items():
                    put(f"zerotir_learner_{_part(name)}", run, value)
            if view.answers or not view.is_live:
                for name, count in Counter(alarm["name"] for alarm in now["alarms"]).items():
                    put("zerotir_alarm", {**run, "name": name}, count)
            if view.answers:
                for role in ROLES:
                    count = sum(each["role"] == role for each in now["roles"])
                    put("zerotir_alive", {**run, "role": role}, count)
                for stream, state in now["streams"].items():
                    for what, value in state.items():
                        put(f"zerotir_stream_{what}", {**run, "stream": stream}, value)
            left = MOST_SAMPLES
            for (role, id), latest in view.store.latest.items():
                is_silent = latest.step is None and abs(view.time() - latest.time) > SILENT_S
                if not id or is_silent:
                    continue
                for name, value in list(latest.values.items())[:MOST_VALUES]:
                    if left > 0:
                        put(f"zerotir_{_part(role)}_{_part(name)}", {**run, "id": id}, value)
                        left -= 1
        yield from families.values()


def _part(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


async def exposition(views: Sequence[RunView]) -> bytes:
    """Returns what Prometheus reads of all runs."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs([(view, await view.now()) for view in views]))
    return generate_latest(registry)
