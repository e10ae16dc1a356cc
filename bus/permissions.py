"""Permissions in a run: one table of subjects, from which the servers' configuration is made.

A rule says what may be done, by which roles, and what they publish and subscribe to for it; everything else is refused by
the server. Anonymous clients get nothing. The role `bus` (the master: it makes the streams) is not in the table, it may do
everything within its run; runs are accounts of their own on the server and see nothing of each other.

Credentials are a role's, not a process's: an actor can take another actor's tickets and write metrics under its name. A
role that may use a stream's consumers can disturb others that do (delete their consumers, have the server deliver what the
stream holds to any subject), but it can forge nothing: what it did not write itself decodes as what it is, or not at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bus.streams import ACTOR_CONSUMER, Names

ROLES = ("learner", "actor", "sandbox", "evaluator", "observer")
"""`observer` is `zerotir up`, `status`, `metrics` and `weights`: it looks and changes nothing."""
ENGINES = ("actor", "evaluator")

API = "$JS.API"
TICKETS, RETRIES, RESULTS, WEIGHTS, METRICS, DEADLETTERS = (
    f"{{stream}}-{kind}" for kind in ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS")
)
RUN, ALIVE = "KV_{run_bucket}", "KV_{alive_bucket}"


@dataclass(frozen=True)
class Rule:
    """Says what `roles` may do. Subjects are NATS patterns with the fields of `_fields` in braces."""

    what: str
    roles: tuple[str, ...]
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


@dataclass(frozen=True)
class Permissions:
    """Patterns of the subjects that one role may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def _info(*streams: str) -> tuple[str, ...]:
    return tuple(f"{API}.STREAM.INFO.{stream}" for stream in streams)


def _read(stream: str, subject: str) -> tuple[str, ...]:
    """Returns the subjects for reading a stream as a log, with consumers of one's own."""
    return (
        f"{API}.CONSUMER.CREATE.{stream}.*.{subject}",
        *(f"{API}.CONSUMER.{verb}.{stream}.*" for verb in ("INFO", "DELETE", "MSG.NEXT")),
    )


def _get(*streams: str) -> tuple[str, ...]:
    """Returns the subjects for getting single messages: a key's value, the newest manifest."""
    return tuple(f"{API}.STREAM.MSG.GET.{stream}" for stream in streams)


def _work(stream: str) -> tuple[str, ...]:
    """Returns the subjects for taking messages from the consumer that all actors share."""
    return (
        *(f"{API}.CONSUMER.{verb}.{stream}.{ACTOR_CONSUMER}" for verb in ("INFO", "MSG.NEXT")),
        f"$JS.ACK.{stream}.{ACTOR_CONSUMER}.>",
    )


TABLE = (
    Rule("hear answers, and what ails the bus", ROLES, subscribe=("_INBOX.{role}.>", "{trouble}")),
    Rule("see that the run is there and how it is set up", ROLES, publish=_info(TICKETS, RUN) + _get(RUN)),
    Rule("say what its model is", ("learner",), publish=("$KV.{run_bucket}.model", "$KV.{run_bucket}.template")),
    Rule("say that it is alive", ROLES[:-1], publish=(*_info(ALIVE), "$KV.{alive_bucket}.{role}.*")),
    Rule("say what it measured", ROLES[:-1], publish=("{metrics}.{role}.*",)),
    Rule(
        "see who is alive",
        ("learner", *ENGINES, "observer"),
        publish=_info(ALIVE) + _get(ALIVE),
    ),
    Rule("dead-letter what it could not read", ("learner", *ENGINES, "observer"), publish=("{dead_letters}",)),
    Rule(
        "take tickets",
        ("actor",),
        publish=_work(TICKETS) + _work(RETRIES),
    ),
    Rule("hand tickets back", ("actor",), publish=("{retries}",)),
    Rule("answer tickets", ("actor",), publish=("{results}",)),
    Rule("have code executed", ENGINES, publish=("{execution}", "{execution}.cancel")),
    Rule(
        "execute code",
        ("sandbox",),
        subscribe=(
            "{execution}",
            "{execution}.cancel",
            "$SRV.*",
            "$SRV.*.zerotir-sandbox",
            "$SRV.*.zerotir-sandbox.*",
        ),
        publish=tuple(f"_INBOX.{role}.>" for role in (*ENGINES, "observer")),
    ),
    Rule(
        "follow the weights",
        ("learner", *ENGINES, "observer"),
        publish=_info(WEIGHTS) + _get(WEIGHTS) + _read(WEIGHTS, "{weights}.>"),
        subscribe=("{manifests}",),
    ),
    Rule("ask for a snapshot", (*ENGINES, "observer"), publish=("{snapshot_requests}",)),
    Rule(
        "write the weights",
        ("learner",),
        publish=("{weights}.>", f"{API}.STREAM.PURGE.{WEIGHTS}", f"{API}.CONSUMER.LIST.{WEIGHTS}"),
        subscribe=("{snapshot_requests}",),
    ),
    Rule("issue tickets", ("learner",), publish=("{tickets}", f"{API}.STREAM.PURGE.{TICKETS}")),
    Rule(
        "find lost tickets, issue and answer them",
        ("learner",),
        publish=("{retries}", "{results}", *_info(RETRIES), *_get(TICKETS, RETRIES)),
    ),
    Rule(
        "take results",
        ("learner",),
        publish=_info(RESULTS) + _read(RESULTS, "{results}") + (f"{API}.STREAM.PURGE.{RESULTS}",),
    ),
    Rule(
        "follow the metrics",
        ("learner", "observer"),
        publish=_info(METRICS)
        + _get(METRICS)
        + _read(METRICS, "{metrics}.*.*")
        + _read(METRICS, "{metrics}.learner.*"),
    ),
    Rule("go on with metrics that the bus has lost", ("learner",), publish=(f"{API}.STREAM.PURGE.{METRICS}",)),
    Rule(
        "look at everything",
        ("observer",),
        publish=_info(RETRIES, RESULTS, DEADLETTERS)
        + _read(DEADLETTERS, "{dead_letters}")
        + (f"{API}.CONSUMER.INFO.{TICKETS}.{ACTOR_CONSUMER}", "$SRV.STATS.zerotir-sandbox"),
    ),
)


def permissions(run: str, role: str) -> Permissions:
    """Returns what `role` may do in `run`."""
    fields = _fields(Names(run), role)
    rules = [rule for rule in TABLE if role in rule.roles]
    return Permissions(
        publish=_filled((subject for rule in rules for subject in rule.publish), fields),
        subscribe=_filled((subject for rule in rules for subject in rule.subscribe), fields),
    )


def account(run: str, public_keys: dict[str, str]) -> dict[str, Any]:
    """Returns a run's account as nats-server's configuration takes it; a role's key is public and by its name."""
    users: list[dict[str, Any]] = []
    for role, key in public_keys.items():
        user: dict[str, Any] = {"nkey": key}
        if role in ROLES:
            allowed = permissions(run, role)
            user["permissions"] = {
                "publish": {"allow": list(allowed.publish)},
                "subscribe": {"allow": list(allowed.subscribe)},
            }
        users.append(user)
    return {"jetstream": "enabled", "users": users}


def _fields(names: Names, role: str) -> dict[str, str]:
    return {
        "role": role,
        "stream": names.stream("").removesuffix("-"),
        "run_bucket": names.run_bucket,
        "alive_bucket": names.alive_bucket,
        "tickets": names.tickets,
        "retries": names.retries,
        "results": names.results,
        "weights": names.weights,
        "manifests": names.manifests,
        "snapshot_requests": names.snapshot_requests,
        "metrics": names.metrics,
        "dead_letters": names.dead_letters,
        "execution": names.execution,
        "trouble": names.trouble,
    }


def _filled(subjects: Iterable[str], fields: dict[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subject.format_map(fields) for subject in subjects))
