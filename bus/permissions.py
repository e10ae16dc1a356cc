"""Permissions in a run: one table of subjects, from which the servers' configuration is made.

A rule says what may be done, by which roles, and what they publish and subscribe to for it; everything else is refused by
the server. Anonymous clients get nothing. The role `bus` (the master: it makes the streams) is not in the table, it may do
everything within its run.

    account RUN            bus, learner: the streams and buckets
    account RUN.actor      imports the subjects of its rules from RUN, and those of executions from RUN.sandbox
    account RUN.sandbox    the execution service; imports the subjects of its rules from RUN
    account RUN.evaluator, RUN.observer    as an actor

A permission alone would not hold: who may ask the server something also names the subject of the answer, and who may make a
consumer names where it delivers, and the server checks neither. Both could be the subject of a stream, which then stores
what its writer was never allowed to write. So each role has an account of its own, and the account of the streams sees
nothing but requests on the imported subjects, with answers to subjects that the server makes up. And no role makes
consumers: logs are read by direct gets (`bus.log_reader`). Runs on one server are accounts as well, and see nothing of each
other.

What is left: credentials are a role's, not a process's, so an actor can take another actor's tickets, write metrics under
its name and answer its requests.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bus.streams import ACTOR_CONSUMER, Names

ROLES = ("learner", "actor", "sandbox", "evaluator", "observer")
"""`observer` is `zerotir up`, `status`, `metrics`, `weights`, `page` and `track`: it looks and changes nothing."""
ENGINES = ("actor", "evaluator")

API = "$JS.API"
TICKETS, RETRIES, RESULTS, WEIGHTS, METRICS, DEADLETTERS = (
    f"{{stream}}-{kind}" for kind in ("TICKETS", "RETRIES", "RESULTS", "WEIGHTS", "METRICS", "DEADLETTERS")
)
RUN, ALIVE, HOLDS = (f"KV_{{{bucket}_bucket}}" for bucket in ("run", "alive", "holds"))

MAIN = ("bus", "learner")
"""The roles of the account that holds the streams."""
SEVERAL_ANSWERS = ("MSG.NEXT", "DIRECT.GET", "$SRV.STATS")
"""Parts of the subjects whose requests have more than one answer."""
LONGEST_EXECUTION = "2h"
"""How long the server keeps the way back of an execution's answer; by itself it forgets it after two minutes. A program has
an hour at most."""


@dataclass(frozen=True)
class Rule:
    """Says what `roles` may do. Subjects are NATS patterns with the fields of `_fields` in braces."""

    what: str
    roles: tuple[str, ...]
    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    of: str = MAIN[0]
    """The role whose account the subjects are of."""


@dataclass(frozen=True)
class Permissions:
    """Patterns of the subjects that one role may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def _info(*streams: str) -> tuple[str, ...]:
    return tuple(f"{API}.STREAM.INFO.{stream}" for stream in streams)


def _read(stream: str) -> tuple[str, ...]:
    """Returns the subjects for reading a stream as a log."""
    return f"{API}.DIRECT.GET.{stream}", *_get(stream)


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
    Rule("hear what ails the bus", ROLES, subscribe=("{trouble}",)),
    Rule("see that the run is there and how it is set up", ROLES, publish=_info(TICKETS, RUN) + _get(RUN)),
    Rule("say what its model is", ("learner",), publish=("$KV.{run_bucket}.model", "$KV.{run_bucket}.template")),
    Rule("say that the run is done", ("learner",), publish=("$KV.{run_bucket}.end",)),
    Rule("raise alarms", ("learner",), publish=("$KV.{run_bucket}.alarms",)),
    Rule("say that it is alive", ROLES[:-1], publish=(*_info(ALIVE), "$KV.{alive_bucket}.{role}.*")),
    Rule("say what it measured", ROLES[:-1], publish=("{metrics}.{role}.*",)),
    Rule(
        "see who is alive",
        ("learner", *ENGINES, "observer"),
        publish=_info(ALIVE) + _get(ALIVE),
    ),
    Rule("dead-letter what it could not read", ("learner", *ENGINES, "observer"), publish=("{dead_letter}",)),
    Rule(
        "take tickets",
        ("actor",),
        publish=_work(TICKETS) + _work(RETRIES),
    ),
    Rule("hand tickets back", ("actor",), publish=("{retries}",)),
    Rule("answer tickets", ("actor",), publish=("{results}",)),
    Rule("have code executed", ENGINES, publish=("{execution}", "{execution}.cancel"), of="sandbox"),
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
        of="sandbox",
    ),
    Rule(
        "follow the weights",
        ("learner", *ENGINES, "observer"),
        publish=(*_info(WEIGHTS, HOLDS), *_read(WEIGHTS), "$KV.{holds_bucket}.{role}.*"),
        subscribe=("{manifests}",),
    ),
    Rule("ask for a snapshot", (*ENGINES, "observer"), publish=("{snapshot_requests}",)),
    Rule(
        "write the weights",
        ("learner",),
        publish=("{weights}.>", f"{API}.STREAM.PURGE.{WEIGHTS}", *_get(HOLDS)),
        subscribe=("{snapshot_requests}",),
    ),
    Rule("issue tickets", ("learner",), publish=("{tickets}", f"{API}.STREAM.PURGE.{TICKETS}")),
    Rule(
        "find lost tickets, issue and answer them",
        ("learner",),
        publish=(
            "{retries}",
            "{results}",
            *_info(RETRIES),
            *_get(TICKETS),
            *_read(RETRIES),
            f"{API}.STREAM.PURGE.{RETRIES}",
            f"{API}.STREAM.MSG.DELETE.{RETRIES}",
        ),
    ),
    Rule(
        "take results",
        ("learner",),
        publish=_info(RESULTS) + _read(RESULTS) + (f"{API}.STREAM.PURGE.{RESULTS}",),
    ),
    Rule(
        "follow the metrics",
        ("learner", "observer"),
        publish=_info(METRICS) + _read(METRICS),
    ),
    Rule("go on with metrics that the bus has lost", ("learner",), publish=(f"{API}.STREAM.PURGE.{METRICS}",)),
    Rule(
        "look at everything",
        ("observer",),
        publish=_info(RETRIES, RESULTS, DEADLETTERS)
        + _read(DEADLETTERS)
        + (f"{API}.CONSUMER.INFO.{TICKETS}.{ACTOR_CONSUMER}",),
    ),
    Rule("see what sandboxes do", ("observer",), publish=("$SRV.STATS.zerotir-sandbox",), of="sandbox"),
)


def permissions(run: str, role: str) -> Permissions:
    """Returns what `role` may do in `run`."""
    fields = _fields(Names(run), role)
    rules = [rule for rule in TABLE if role in rule.roles]
    return Permissions(
        publish=_filled((subject for rule in rules for subject in rule.publish), fields),
        subscribe=(_inbox(role), *_filled((subject for rule in rules for subject in rule.subscribe), fields)),
    )


def accounts(run: str, public_keys: dict[str, str]) -> dict[str, Any]:
    """Returns a run's accounts as nats-server's configuration takes them; a role's key is public and by its name."""
    found: dict[str, dict[str, Any]] = {}
    for role, key in public_keys.items():
        account = found.setdefault(account_of(run, role), {"users": [], "imports": [], "exports": []})
        account["users"].append(_user(run, role, key))
    found[run]["jetstream"] = "enabled"
    for (owner, kind, subject), importers in _crossings(run).items():
        export: dict[str, Any] = {kind: subject, "accounts": importers}
        if any(part in subject for part in SEVERAL_ANSWERS):
            export["response_type"] = "stream"
        elif subject == Names(run).execution:
            export["response_threshold"] = LONGEST_EXECUTION
        found[owner]["exports"].append(export)
        for importer in importers:
            found[importer]["imports"].append({kind: {"account": owner, "subject": subject}})
    return found


def account_of(run: str, role: str) -> str:
    """Returns the account of `role`; a run's id has no dot, so no other run has an account of this name."""
    return run if role in MAIN else f"{run}.{role}"


def _user(run: str, role: str, key: str) -> dict[str, Any]:
    user: dict[str, Any] = {"nkey": key}
    if role in ROLES:
        allowed = permissions(run, role)
        user["permissions"] = {
            "publish": {"allow": list(allowed.publish)},
            "subscribe": {"allow": list(allowed.subscribe)},
        }
        if role == "sandbox":
            # One answer to each request, and to nothing else.
            user["permissions"]["allow_responses"] = {"max": 1, "expires": LONGEST_EXECUTION}
    return user


def _crossings(run: str) -> dict[tuple[str, str, str], list[str]]:
    """Returns which accounts import what: by the account that it is of, its kind (service or stream) and its subject."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for role in ROLES:
        importer = account_of(run, role)
        if importer == run:
            continue
        # Without it the server answers requests to JetStream itself as well: that this account has none.
        found.setdefault((run, "service", f"{API}.INFO"), []).append(importer)
        for rule in TABLE:
            owner = account_of(run, rule.of)
            if role not in rule.roles or owner == importer:
                continue
            for kind, subjects in (("service", rule.publish), ("stream", rule.subscribe)):
                for subject in _filled(subjects, _fields(Names(run), role)):
                    importers = found.setdefault((owner, kind, subject), [])
                    if importer not in importers:
                        importers.append(importer)
    return found


def _inbox(role: str) -> str:
    return f"_INBOX.{role}.>"


def _fields(names: Names, role: str) -> dict[str, str]:
    return {
        "role": role,
        "stream": names.stream("").removesuffix("-"),
        "run_bucket": names.run_bucket,
        "alive_bucket": names.alive_bucket,
        "holds_bucket": names.holds_bucket,
        "tickets": names.tickets,
        "retries": names.retries,
        "results": names.results,
        "weights": names.weights,
        "manifests": names.manifests,
        "snapshot_requests": names.snapshot_requests,
        "metrics": names.metrics,
        "dead_letter": names.dead_letter(role),
        "execution": names.execution,
        "trouble": names.trouble,
    }


def _filled(subjects: Iterable[str], fields: dict[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subject.format_map(fields) for subject in subjects))
