"""A run's newest measurements in the text format of Prometheus.

    zerotir_learner_accuracy{run="..."} 0.75
    zerotir_actor_tokens_per_s{run="...",id="actor-0"} 812.5
    zerotir_alarm{run="...",name="stalled"} 1
    zerotir_alive{run="...",role="actor"} 4

What a process measured more than `SILENT_S` seconds ago is left out, but for the learner's, whose steps may take longer.
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
MOST_SAMPLES = 100_000
"""Samples of one answer: anybody may make up names."""


class _Runs(Collector):
    def __init__(self, runs: Sequence[tuple[RunView, dict[str, Any]]]) -> None:
        self._runs = runs

    def collect(self) -> Iterable[Metric]:
        """Yields all gauges, each with the samples of all runs."""
        families: dict[str, GaugeMetricFamily] = {}

        left = MOST_SAMPLES

        def put(name: str, labels: dict[str, str], value: float) -> None:
            nonlocal left
            if left <= 0:
                return
            left -= 1
            family = families.get(name)
            if family is None:
                text = name.removeprefix("zerotir_").replace("_", " ")
                family = families[name] = GaugeMetricFamily(name, text, labels=list(labels))
            family.add_metric(list(labels.values()), value)

        for view, now in self._runs:
            newest = max((time for time, _, _ in view.store.latest.values()), default=0.0)
            for (role, id), (time, step, values) in view.store.latest.items():
                if role != "learner" and newest - time > SILENT_S and step is None:
                    continue
                of_process = {"run": view.name} if role == "learner" and not id else {"run": view.name, "id": id}
                for name, value in values.items():
                    put(f"zerotir_{_part(role)}_{_part(name)}", of_process, value)
                if role == "learner" and step is not None:
                    put("zerotir_learner_step", of_process, step)
            alarms = Counter(alarm["name"] for alarm in now["alarms"])
            for name, count in alarms.items():
                put("zerotir_alarm", {"run": view.name, "name": name}, count)
            for role, count in Counter(each["role"] for each in now["roles"]).items():
                put("zerotir_alive", {"run": view.name, "role": role}, count)
            for stream, state in now["streams"].items():
                for what, value in state.items():
                    put(f"zerotir_stream_{what}", {"run": view.name, "stream": stream}, value)
        yield from families.values()


def _part(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


async def exposition(views: Sequence[RunView]) -> bytes:
    """Returns what Prometheus reads of all runs."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Runs([(view, await view.now()) for view in views]))
    return generate_latest(registry)
