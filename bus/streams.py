"""The streams and buckets of a run: their names, kinds and bounds, as one table.

Everything is named per run, so that two runs share a server and nothing else.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, NotFoundError, ServerError

from configs.bus import BusConfig
from configs.errors import UserError
from runtime.retry import Backoff

ALIVE_TTL_S = 15.0
"""A role that was silent for so long is gone."""
HOLDS_TTL_S = 300.0
"""A follower of the weights that was silent for so long reads no more."""
MAX_ENTRY_BYTES = 256 * 1024
MAX_DEAD_LETTERS = 1_000
MAX_DEAD_LETTER_BYTES = 2 * 1024**2
READY_S = 60.0
"""Servers that were just started elect a leader first."""
NO_ROOM = 10047
NO_CLUSTER = 10074
NOT_READY = (10005, 10008, 10009, NO_CLUSTER)
"""No peers for the copies; no leader yet, twice; no cluster at all."""


class StreamError(UserError):
    """A stream cannot be made; the text says what to do."""


@dataclass(frozen=True)
class Names:
    """Names of one run's streams (upper case on the server), subjects and buckets."""

    run: str

    def stream(self, kind: str) -> str:
        """Returns the name of the stream `kind`: TICKETS, RETRIES, RESULTS, WEIGHTS, METRICS or DEADLETTERS."""
        return f"zerotir-{self.run}-{kind}"

    @property
    def root(self) -> str:
        """Returns the prefix of every subject."""
        return f"zerotir.{self.run}"

    @property
    def tickets(self) -> str:
        return f"{self.root}.tickets"

    @property
    def retries(self) -> str:
        """Returns the subject of all tickets that are offered once more."""
        return self.retry("*")

    def retry(self, number: int | str) -> str:
        """Returns the subject of one ticket that is offered once more."""
        return f"{self.root}.retries.{number}"

    @property
    def results(self) -> str:
        return f"{self.root}.results"

    @property
    def weights(self) -> str:
        """Returns the prefix of the subjects of manifests and chunks."""
        return f"{self.root}.weights"

    @property
    def manifests(self) -> str:
        return f"{self.weights}.manifest"

    def chunks(self, version: str, kind: str, writing: str) -> str:
        """Returns the subject of the chunks of one weight version's snapshot or delta, as one attempt wrote them."""
        return f"{self.weights}.{kind}.{version.replace('.', '-')}.{writing}"

    @property
    def snapshot_requests(self) -> str:
        """Returns where a follower that cannot go on asks the learner for a snapshot; not a stream."""
        return f"{self.root}.snapshot-requests"

    @property
    def metrics(self) -> str:
        return f"{self.root}.metrics"

    @property
    def dead_letters(self) -> str:
        """Returns the subject of all roles' dead letters."""
        return self.dead_letter("*")

    def dead_letter(self, role: str) -> str:
        """Returns the subject of the dead letters that `role` writes."""
        return f"{self.root}.deadletters.{role}"

    @property
    def execution(self) -> str:
        """Returns the subject of the sandbox services."""
        return f"{self.root}.sandbox.execute"

    @property
    def trouble(self) -> str:
        """Returns the subject on which the bus role says what ails the bus."""
        return f"{self.root}.trouble"

    @property
    def run_bucket(self) -> str:
        return f"zerotir-{self.run}-run"

    @property
    def alive_bucket(self) -> str:
        return f"zerotir-{self.run}-alive"

    @property
    def holds_bucket(self) -> str:
        """Returns the bucket in which followers of the weights say what they are reading (`weights.holds`)."""
        return f"zerotir-{self.run}-holds"


ACTOR_CONSUMER = "actors"
"""The durable consumer, of both streams of tickets, that all actors share."""
MAX_ACK_PENDING = 100_000
"""Above any backlog that admission allows: staleness bounds outstanding work, not the consumer."""


async def create_streams(js: JetStreamContext, names: Names, config: BusConfig, lease_s: float) -> None:
    """Makes the run's streams, buckets and actors' consumers; where they exist, takes over changed bounds and leases.

    Waits for the servers of a cluster. Raises StreamError where they are not ready within `READY_S` seconds, are too few for
    the copies, or have no room.
    """

    def bucket(name: str, ttl_s: float | None = None) -> StreamConfig:
        # As the client would make it, but for what lets a message take others with it (roll-ups), or outlive them.
        return StreamConfig(
            name=f"KV_{name}",
            subjects=[f"$KV.{name}.>"],
            storage=StorageType.FILE,
            num_replicas=config.replicas,
            max_msgs_per_subject=1,
            max_age=ttl_s,
            max_msg_size=MAX_ENTRY_BYTES,
            discard=DiscardPolicy.NEW,
            deny_delete=True,
        )

    def stream(kind: str, subjects: list[str], **settings: object) -> StreamConfig:
        return StreamConfig(
            name=names.stream(kind),
            subjects=subjects,
            storage=StorageType.FILE,
            num_replicas=config.replicas,
            allow_direct=True,
            **settings,  # type: ignore[arg-type]
        )

    streams = [
        # A work queue: an acknowledged ticket is gone, its sequence number stays used.
        stream("TICKETS", [names.tickets], retention=RetentionPolicy.WORK_QUEUE, discard=DiscardPolicy.NEW),
        # Tickets that were handed back, or whose results could not be used: here numbers are parts of subjects.
        stream("RETRIES", [names.retries], retention=RetentionPolicy.WORK_QUEUE, discard=DiscardPolicy.NEW),
        stream(
            "RESULTS",
            [names.results],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
            max_bytes=config.max_results_bytes,
        ),
        stream(
            "WEIGHTS",
            [names.manifests, names.chunks("*", "*", "*")],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.NEW,
        ),
        stream(
            "METRICS",
            [f"{names.metrics}.*.*"],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.OLD,
            max_age=config.metrics_age_s,
            max_bytes=config.max_metrics_bytes,
        ),
        stream(
            "DEADLETTERS",
            [names.dead_letters],
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.OLD,
            max_msgs=MAX_DEAD_LETTERS,
            max_msg_size=MAX_DEAD_LETTER_BYTES,
        ),
        bucket(names.run_bucket),
        bucket(names.alive_bucket, ALIVE_TTL_S),
        bucket(names.holds_bucket, HOLDS_TTL_S),
    ]
    backoff = Backoff(READY_S)
    for settings in streams:
        try:
            await _once_ready(partial(_make_stream, js, settings), config, backoff)
        except ServerError as error:
            if error.err_code != NO_ROOM:
                raise
            raise StreamError(
                f"the server has no room for {settings.name}: the streams of a run reserve "
                f"{config.max_results_bytes / 2**20:.0f} MiB of its disk for results (bus.max_results_bytes) and "
                f"{config.max_metrics_bytes / 2**20:.0f} MiB for metrics (bus.max_metrics_bytes): lower these, or give its "
                "store a larger disk"
            ) from error
    for kind, subject in (("TICKETS", names.tickets), ("RETRIES", names.retries)):
        consumer = ConsumerConfig(
            durable_name=ACTOR_CONSUMER,
            filter_subject=subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=lease_s,
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
        )
        await _once_ready(partial(js.add_consumer, names.stream(kind), config=consumer), config, backoff)


async def _make_stream(js: JetStreamContext, settings: StreamConfig) -> None:
    """Makes a stream, or changes it where it is there with other settings.

    One that is there as it should be is left alone: the server would ask for its room a second time.
    """
    assert settings.name is not None
    try:
        there = (await js.stream_info(settings.name)).config
    except NotFoundError:
        await js.add_stream(config=settings)
        return
    # What is not set is the server's default.
    if any(value and getattr(there, name) != value for name, value in vars(settings).items()):
        await js.update_stream(config=settings)


async def _once_ready(make: Callable[[], Awaitable[object]], config: BusConfig, backoff: Backoff) -> None:
    """Tries until the cluster has a leader and as many servers as there are to be copies."""
    hopeless = False
    while True:
        try:
            await make()
            return
        except APIError as error:
            if error.err_code not in NOT_READY:
                raise
            reason = str(error)
            hopeless = error.err_code == NO_CLUSTER
        except (TimeoutError, NoRespondersError) as error:
            reason = f"{type(error).__name__}: {error}"
        if backoff.over or hopeless:
            raise StreamError(
                f"the servers of bus.url did not become ready in {READY_S:.0f} s ({reason}): bus.replicas is "
                f"{config.replicas}, are so many of them up, in one cluster?"
            )
        await backoff.pause()
