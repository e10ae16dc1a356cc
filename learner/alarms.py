"""Judges from what the roles of a run measure whether something needs a person, and raises alarms, each with advice.

    metrics log ──▶ Watch.see ──▶ Watch.alarms ──▶ the learner's log, and the run's bucket for `zerotir status` and `up`

An alarm changes nothing: what must not go on ends the run by itself. Held are the newest `alarms.steps` steps, and some
`2 * PIECES` counts of `MOST_PROCESSES` other processes at most, whatever the length of the run and whatever they send.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

from bus.alarms import Alarm
from bus.messages import MAX_TEXT
from configs.alarms import AlarmsConfig
from learner.tickets.filters import why_untrained
from runtime.words import how_long

LEAST_TICKETS = 8
"""Tickets of an actor, or executions of a sandbox, below which a share of them says nothing."""
LEAST_STALL_S = 60.0
MOST_PROCESSES = 1000
"""Actors and sandboxes that are looked at."""
PIECES = 60
"""Parts of `alarms.minutes`, of each of which one or two counts are held."""
MOST_ALARMS = 20
"""Alarms of one kind that are raised: the first processes stand for the others."""


class _Found(NamedTuple):
    name: str
    who: str
    text: str
    advice: str


class _Counts(NamedTuple):
    """A process's counts since its start."""

    time: float
    done: float
    failed: float


class Watch:
    """Judges one run."""

    def __init__(self, config: AlarmsConfig, learner: str, begun: float = 0.0) -> None:
        """Begins without having seen anything.

        Args:
            learner: the learner's id.
            begun: when it began to wait for results, in the run's time: a step before says nothing of how late it is.
        """
        self._config = config
        self._learner = learner
        self._begun = begun
        self._steps: deque[Mapping[str, Any]] = deque(maxlen=config.steps)
        self._trained: int | None = None
        """The newest step that had something to train on, or the one before the first that was seen."""
        self._lowest_truncated: float | None = None
        self._counts: dict[tuple[str, str], deque[_Counts]] = {}
        self._raised: dict[tuple[str, str], float] = {}
        """When each alarm that is raised now was raised, by its name and whom it is about."""

    def see(self, record: Mapping[str, Any]) -> None:
        """Takes in one record of the metrics log, as `bus.metrics.record_of` makes it."""
        role = record["role"]
        if role == "learner" and record["step"] is not None:
            self._see_step(record)
        elif role == "actor" and {"finished", "failed"} <= record.keys():
            self._see_counts(record, record["finished"], record["failed"])
        elif role == "sandbox" and {"executions", "failures"} <= record.keys():
            self._see_counts(record, record["executions"] - record["failures"], record["failures"])

    def alarms(self, now: float, state: str | None = None, disk_free_gib: float | None = None) -> list[Alarm]:
        """Returns the alarms that are raised at the time `now` of the run.

        Args:
            state: what the learner is doing; None: no step is to come, and so none is late.
            disk_free_gib: GiB that are free on the disk of the run's folder; None: as the newest step found it.
        """
        found = [
            *self._of_training(),
            *self._of_disk(disk_free_gib),
            *self._of_policy(),
            *self._of_processes("actor", self._config.actor_failed, now),
            *self._of_processes("sandbox", self._config.sandbox_failed, now),
        ]
        if state is not None:
            found += self._of_stalls(now, state)
        self._raised = {(each.name, each.who): self._raised.get((each.name, each.who), now) for each in found}
        return [
            Alarm(
                name=each.name,
                who=each.who,
                text=each.text[:MAX_TEXT],
                advice=each.advice[:MAX_TEXT],
                since=self._raised[each.name, each.who],
            )
            for each in found
        ]

    def _see_step(self, record: Mapping[str, Any]) -> None:
        while self._steps and self._steps[-1]["step"] >= record["step"]:
            # The learner has gone back to its checkpoint.
            self._steps.pop()
        self._steps.append(record)
        number = record["step"]
        if record.get("trained_trajectories"):
            self._trained = number
        else:
            self._trained = number - 1 if self._trained is None else min(self._trained, number - 1)
        truncated = self._mean("truncated_ratio")
        if truncated is not None and (self._lowest_truncated is None or truncated < self._lowest_truncated):
            self._lowest_truncated = truncated

    def _see_counts(self, record: Mapping[str, Any], done: float, failed: float) -> None:
        key, time = (record["role"], record["id"]), record["time"]
        if key not in self._counts and len(self._counts) >= MOST_PROCESSES:
            return
        counts = self._counts.setdefault(key, deque())
        if counts and (done < counts[-1].done or failed < counts[-1].failed):
            # It was started again.
            counts.clear()
        if len(counts) > 1 and time < counts[-2].time + self._window_s / PIECES:
            counts.pop()
        counts.append(_Counts(time, done, failed))
        while len(counts) > 1 and counts[1].time <= time - self._window_s:
            counts.popleft()

    @property
    def _window_s(self) -> float:
        return 60 * self._config.minutes

    def _mean(self, name: str) -> float | None:
        """Returns a metric's mean over the newest steps; None before there are `alarms.steps`, half of which measured it."""
        values = [record[name] for record in self._steps if name in record]
        enough = len(self._steps) == self._config.steps and 2 * len(values) >= len(self._steps)
        return fmean(values) if enough else None

    def _of_training(self) -> Iterator[_Found]:
        """Yields what keeps results from being trained on."""
        bounds, newest = self._config, self._steps[-1] if self._steps else {}
        untrained = newest["step"] - self._trained if self._trained is not None else 0
        if bounds.untrained_steps is not None and untrained >= bounds.untrained_steps:
            reasons = _reasons([newest], "filtered_by_", "failed_by_")
            why = why_untrained(reasons) if reasons else "its tickets have no results"
            text = f"the last {untrained} steps had nothing to train on"
            yield _Found("untrained", self._learner, text, f"Of the last one: {why}")
        no_signal = self._share("filtered_by_no_signal", "trajectories")
        failed = self._share("failures", "trajectories", "failures")
        if _beyond(no_signal, bounds.no_signal):
            yield _Found(
                "no_signal",
                self._learner,
                f"{no_signal:.0%} of the trajectories of {self._last} are in groups that are all right or all wrong",
                "If it stays so, start a run with problems that the model solves now and then (tasks.problems), more "
                "samples of each (learner.group_size), or an example in the prompt (tasks.prompt.template)",
            )
        if _beyond(failed, bounds.failed):
            reasons = _reasons(self._steps, "failed_by_")
            named = ", ".join(f"{reason} {count:.0f}" for reason, count in reasons.most_common(3))
            yield _Found(
                "failed",
                self._learner,
                f"{failed:.0%} of the tickets of {self._last} ended as failures ({named})",
                "The actors' logs say why (`ticket failed`), the dead letters what `no usable result` was",
            )

    def _of_disk(self, free: float | None) -> Iterator[_Found]:
        if free is None and self._steps:
            free = self._steps[-1].get("disk_free_gib")
        if _beyond(self._config.disk_free_gib, free):
            yield _Found(
                "disk",
                self._learner,
                f"{free:.1f} GiB are free on the disk of the run's folder",
                "Make room: a learner whose disk is full ends. Fewer checkpoints (learner.checkpoint.keep) take less",
            )

    def _of_policy(self) -> Iterator[_Found]:
        """Yields where the policy drifts off."""
        bounds = self._config
        behaviour_kl, clip_fraction = self._mean("behaviour_kl"), self._mean("clip_fraction")
        if _beyond(behaviour_kl, bounds.behaviour_kl):
            yield _Found(
                "behaviour_kl",
                self._learner,
                f"behaviour_kl is {behaviour_kl:.3g} over {self._last}: trained on is what another policy sampled",
                "Go on with a lower learner.optimizer.lr (`--resume`), or start a run with a smaller learner.max_staleness",
            )
        if _beyond(clip_fraction, bounds.clip_fraction):
            yield _Found(
                "clip_fraction",
                self._learner,
                f"{clip_fraction:.0%} of the tokens of {self._last} had their gradient clipped",
                "Go on with a lower learner.optimizer.lr (`--resume`), or start a run with fewer "
                "learner.algorithm.minibatches",
            )
        truncated, lowest = self._mean("truncated_ratio"), self._lowest_truncated
        if truncated is not None and lowest is not None and _beyond(truncated - lowest, bounds.truncated_rise):
            yield _Found(
                "truncated",
                self._learner,
                f"{truncated:.0%} of the responses of {self._last} hit their token budget, and {lowest:.0%} did before",
                "Read some (`zerotir transcripts`). Where they repeat themselves, go on with a lower learner.optimizer.lr "
                "(`--resume`), or start a run with tasks.grading.overlong_penalty; where they think longer, one with a "
                "larger rollout.max_response_tokens",
            )

    def _of_processes(self, role: str, bound: float | None, now: float) -> Iterator[_Found]:
        """Yields those of a role that fail at what they are given; forgets who has measured nothing of late."""
        # A time that is still to come is no time.
        self._counts = {
            key: counts
            for key, counts in self._counts.items()
            if now - self._window_s < counts[-1].time < now + self._window_s
        }
        found = 0
        for id, counts in sorted((id, counts) for (of, id), counts in self._counts.items() if of == role):
            first, last = counts[0], counts[-1]
            done, failed = last.done - first.done, last.failed - first.failed
            ended = done + failed
            if found == MOST_ALARMS or ended < LEAST_TICKETS or not _beyond(failed / ended, bound):
                continue
            found += 1
            what, advice = {
                "actor": ("tickets", f"See `ticket failed` in logs/{id}.jsonl; stop this actor if others do better"),
                "sandbox": ("executions", f"See logs/{id}.jsonl, and `zerotir sandbox CONFIG --check` on its host"),
            }[role]
            text = f"it fails at {failed:.0f} of {ended:.0f} {what} in {how_long(last.time - first.time)}"
            yield _Found(f"{role}_failed", id, text, advice)

    def _of_stalls(self, now: float, state: str) -> Iterator[_Found]:
        seconds = [record["step_seconds"] for record in self._steps if "step_seconds" in record]
        factor = self._config.stalled_factor
        if not seconds or factor is None or self._steps[-1]["time"] < self._begun:
            return
        usual, since = median(seconds), now - self._steps[-1]["time"]
        if since > max(LEAST_STALL_S, factor * usual):
            yield _Found(
                "stalled",
                self._learner,
                f"no step for {how_long(since)}, and one takes {how_long(usual)}; the learner is {state}",
                "Are actors and sandboxes alive, and do they have tickets in flight (`zerotir status`)? Their logs say more",
            )

    @property
    def _last(self) -> str:
        return "the last step" if len(self._steps) == 1 else f"the last {len(self._steps)} steps"

    def _share(self, name: str, *whole: str) -> float | None:
        """Returns the share that a metric counts of what the metrics `whole` count in the newest steps; None as `_mean`."""
        count, of_all = (
            sum(record.get(each, 0) for record in self._steps for each in some) for some in ([name], whole)
        )
        return count / of_all if of_all and len(self._steps) == self._config.steps else None


def _beyond(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound


def _reasons(steps: Iterable[Mapping[str, Any]], *kinds: str) -> Counter[str]:
    """Returns how many results of `steps` were not trained on, by reason."""
    found = Counter[str]()
    for record in steps:
        for name, count in record.items():
            if name.startswith(kinds) and count:
                found[name.partition("_by_")[2].replace("_", " ")] += count
    return found
