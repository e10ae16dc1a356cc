"""Writes the weight log: versions as deltas, a snapshot now and then, each closed by a conditional manifest.

    chunk chunk ... manifest (delta n)   chunk ... manifest (delta n+1)   [chunk ... manifest (snapshot n+1)]   ...

A manifest is accepted only if the head is still the one that this writer knows. If it is refused, the writer reads the head:
its own manifest means success (the acknowledgement was lost), another's means that this writer was deposed. A writer that
opens a log claims the next epoch at once, by a delta without content, so that an earlier writer can write no more. A resumed
learner trains steps again whose versions the log already holds. While their checksums agree with the log's, nothing is
written; at the first difference a snapshot is.

A snapshot follows a delta of the same version, so followers that are up to date never read one, and nothing waits for it.
The two newest snapshots and everything after the older of them stay on the stream. That is at most four times the weights,
since a snapshot is due once the deltas since the last outweigh it. From where a hold began everything stays as well, until
it is released or `HOLD_S` have passed, or the stream holds `MOST_IMAGES` times the weights. A follower that needs as long
for one version as the learner for k keeps k more on the stream, and loses none.

Cost of a version: two images of the weights in host memory, one pass over both (`weights.codec`), and a delta on the wire,
however many followers there are.
"""

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import nats.js.errors
import structlog
from nats.js.api import PubAck

from bus.codec import encode
from bus.connection import TRANSIENT_ERRORS, Bus, acknowledgement_timeouts
from bus.messages import Manifest, ManifestKind, Segment, WeightVersion
from configs.bus import WeightsConfig
from configs.errors import UserError
from runtime.retry import Backoff
from weights.codec import Layout, WeightsError, WeightState
from weights.files import file_name, remove_file, write_file
from weights.holds import held_from
from weights.log import newest, read_manifests
from weights.packing import Chunks, Weights, epoch_of, make_manifest, pack_chunks

log = structlog.get_logger()

BYTES_IN_FLIGHT = 16 * 2**20
"""Most bytes of chunks that are sent and not yet stored: a stream that gets more than it can write drops messages."""
LONGEST_PAUSE_S = 5.0
"""Seconds between two attempts at most; they go on for `bus.reconnect_s` seconds."""
SNAPSHOTS_KEPT = 2
ATTEMPTS = 5
"""Most attempts in a row to begin anew a log that has lost messages."""
HOLD_S = 3600.0
"""How long a follower may read one version before it is purged under it: far above any fetch."""
MOST_IMAGES = 32
"""How many times the weights the stream may hold before it is purged whatever is being read: this bounds it."""


class DeposedError(UserError):
    """Another learner has written a manifest since: this one must stop."""


@dataclass(frozen=True)
class Published:
    """Says what became of one version."""

    version: WeightVersion
    wire_bytes: int
    """Bytes of its delta, or of its snapshot where it has no delta; 0 where the log held it already."""
    same: frozenset[WeightVersion]
    """Under which names the log holds these very weights: of every epoch that published them."""
    seconds: float


class _LogLostError(Exception):
    """The log ends before the manifest that this writer wrote or found last: the bus has lost messages."""


@dataclass(frozen=True)
class _Snapshot:
    """A snapshot in the log: where it begins, and its file if it lies outside the bus."""

    position: int
    location: str | None


class WeightWriter:
    """Writes the versions of one epoch. `open` comes first; `publish` and the snapshots may not overlap."""

    def __init__(self, bus: Bus, config: WeightsConfig) -> None:
        self._bus = bus
        self._config = config
        self._head: Manifest | None = None
        self._head_sequence = 0
        self._checksums: dict[WeightVersion, str] = {}
        """Checksums of all versions, as far back as the log goes."""
        self._logged: dict[int, str] = {}
        """Checksums of the head's version and of those that led to it, as far back as the log goes."""
        self._snapshots: deque[_Snapshot] = deque()
        self._held_since: dict[tuple[str, int], float] = {}
        """When each hold, by key and start, was first seen, on the monotonic clock: not on another host's."""
        self._since_snapshot = self._delta_bytes = 0
        self._base: WeightState | None = None
        """The state of the newest version that was published or found in the log."""
        self._spare: WeightState | None = None
        self._claimed = False
        self.epoch = 0
        self.sequence = 0
        """The highest sequence of a manifest that this writer knows of, whether the log holds it still or has lost it."""

    async def open(self, last_epoch: int = -1, last_sequence: int = 0) -> None:
        """Reads the log and claims the epoch after its head's and after `last_epoch`.

        `last_epoch` and `last_sequence` are those of the run's last manifest. Where the log has lost it, the log is emptied
        and goes on behind. Raises DeposedError, WeightsError, UnreadError, BusError, what nats-py raises.
        """
        self.epoch = last_epoch + 1
        await self._claim(last_sequence)
        self._claimed = True

    async def _claim(self, last_sequence: int) -> None:
        self._head_sequence, _ = await newest(self._bus)
        if self._head_sequence < last_sequence:
            self.sequence = last_sequence
            await self._begin_anew()
            return
        for sequence, manifest in await read_manifests(self._bus, 1, self._head_sequence):
            self._note(sequence, manifest)
        if self._head is not None:
            self.epoch = max(self.epoch, self._head.version.epoch + 1)
            # The head's weights again, under this writer's epoch.
            version = WeightVersion(epoch=self.epoch, n=self._head.version.n)
            await self._write_manifest(
                make_manifest(version, Weights.of(self._head), Chunks(), self._bus.clock.now(), parent=self._head)
            )
            log.info("took over the weight log", epoch=self.epoch, head=str(self._head.version))

    def spare_state(self, layout: Layout) -> WeightState:
        """Returns a state to be filled with the next version; valid until it is published."""
        if self._spare is None or self._spare.layout.digest != layout.digest:
            self._spare = WeightState(layout)
        return self._spare

    async def publish(self, n: int, state: WeightState) -> Published:
        """Makes `state`, which came from `spare_state`, version `n`; it belongs to the writer from then on.

        Raises DeposedError if another writer has taken over, WeightsError if the bus did not take it.
        """
        started = time.monotonic()
        try:
            wire_bytes = await self._put(n, state)
        except _LogLostError:
            wire_bytes = await self._write_anew(n, state)
        self._base, self._spare = state, self._base
        assert self._head is not None
        same = frozenset(
            version for version, checksum in self._checksums.items() if version.n == n and checksum == state.checksum
        )
        return Published(self._head.version, wire_bytes, same, time.monotonic() - started)

    async def _put(self, n: int, state: WeightState) -> int:
        """Does what `publish` says; returns the version's bytes. Raises _LogLostError where the log has lost its head."""
        before = self._head
        if before is not None and n <= before.version.n and await self._reproduces(n, state):
            # Nothing is written, so nothing would be refused: what follows a publish must not be done by a deposed learner.
            await self._look_at_head()
            log.info("weights reproduce what the log holds", n=n)
            return 0
        if not self._continues(n, state):
            if before is not None:
                log.warning("weights do not continue the log: a snapshot begins anew", n=n, head=str(before.version))
            return await self._write_snapshot(n, state)
        return await self._write_delta(n, state)

    async def snapshot_if_due(self) -> int:
        """Writes a snapshot of the newest version if one is due, and with it purges what is old; returns its bytes."""
        if self._head is None:
            return 0
        if self._since_snapshot < self._config.snapshot_every and self._delta_bytes < self._head.nbytes:
            return 0
        return await self.snapshot()

    async def snapshot(self) -> int:
        """Writes a snapshot of the newest version, for a follower that cannot go on without one; returns its bytes.

        Does nothing where the log holds a newer version than this writer does.
        """
        if self._head is None or self._base is None or self._base.checksum != self._head.checksum:
            return 0
        n, state = self._head.version.n, self._base
        try:
            return await self._write_snapshot(n, state)
        except _LogLostError:
            return await self._write_anew(n, state)

    async def require_head(self) -> bool:
        """Returns whether the log holds what this writer wrote; where it has lost it, the newest version is written again.

        Raises DeposedError where another writer has taken over, WeightsError where the bus does not say.
        """
        try:
            await self._look_at_head()
        except _LogLostError:
            # Without the newest version's weights, the next publish begins with a snapshot.
            head, state = self._head, self._base
            if head is not None and state is not None and state.checksum == head.checksum:
                await self._write_anew(head.version.n, state)
            else:
                await self._begin_anew()
            return False
        return True

    async def _look_at_head(self) -> None:
        self._require_head(*await self._newest())

    async def _newest(self) -> tuple[int, bytes]:
        return await self._until_done(lambda: newest(self._bus), "read the head of the weight log")

    async def _write_anew(self, n: int, state: WeightState) -> int:
        """Empties a log that has lost messages, and writes version `n` as a snapshot; returns its bytes.

        An earlier learner that still lives may come between, and is deposed by this.
        """
        for _ in range(ATTEMPTS):
            await self._begin_anew()
            with contextlib.suppress(_LogLostError):
                return await self._write_snapshot(n, state)
        raise WeightsError(f"what is written to the weight log at {self._bus.address.url} is lost again and again")

    async def _begin_anew(self) -> None:
        """Empties a log that has lost messages, and goes on behind the last sequence that followers may have seen."""
        self.sequence = max(self.sequence, (await self._newest())[0])
        log.warning("the bus has lost weights: the log begins anew with a snapshot", sequence=self.sequence + 1)
        await self._bus.skip_to("WEIGHTS", self.sequence + 1)
        self._head, self._head_sequence = None, 0
        self._logged.clear()
        self._snapshots.clear()

    async def _reproduces(self, n: int, state: WeightState) -> bool:
        await asyncio.to_thread(state.digest_all)
        # What was purged since cannot be compared; a difference shows at the first version that can.
        return self._logged.get(n, state.checksum) == state.checksum

    def _continues(self, n: int, state: WeightState) -> bool:
        """Returns whether the head is version n - 1 and this writer holds its state."""
        return (
            self._head is not None
            and self._base is not None
            and self._head.version.n == n - 1
            and self._base.checksum == self._head.checksum
            and self._base.layout.digest == state.layout.digest
        )

    async def _write_delta(self, n: int, state: WeightState) -> int:
        head, base = self._head, self._base
        assert head is not None
        assert base is not None
        version = WeightVersion(epoch=self.epoch, n=n)
        written = await self._write_chunks(version, ManifestKind.DELTA, lambda: base.changes(state))
        await self._write_manifest(
            make_manifest(version, Weights.of(state), written, self._bus.clock.now(), parent=head)
        )
        return written.nbytes

    async def _write_snapshot(self, n: int, state: WeightState) -> int:
        version = WeightVersion(epoch=self.epoch, n=n)
        await asyncio.to_thread(state.digest_all)
        location = None
        written = Chunks(nbytes=state.layout.nbytes)
        if self._config.snapshot_location is None:
            written = await self._write_chunks(version, ManifestKind.SNAPSHOT, state.full)
        else:
            name = file_name(self._bus.address.run, version)
            location = f"{self._config.snapshot_location.rstrip('/')}/{name}"
            await asyncio.to_thread(write_file, location, state)
        await self._write_manifest(
            make_manifest(
                version,
                Weights.of(state),
                written,
                self._bus.clock.now(),
                tensors=state.layout.tensors,
                location=location,
            )
        )
        await self._purge()
        return written.nbytes

    async def _purge(self) -> None:
        """Takes away what lies before the oldest snapshot that is kept and before all that is being read.

        Only after a manifest of ours was taken.
        """
        stream = self._bus.names.stream("WEIGHTS")
        oldest = self._snapshots[max(0, len(self._snapshots) - SNAPSHOTS_KEPT)].position
        try:
            held = await self._held_from()
            if held and await self._too_much_is_held(stream):
                log.warning("holds on the weight log are not heeded: it holds too much", images=MOST_IMAGES)
                held = []
            first = min([oldest, *held])
            await self._bus.js.purge_stream(stream, seq=first)
        except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
            log.warning("old weights were not purged, the next snapshot does it", error=str(error))
            return
        while self._snapshots[0].position < first:
            old = self._snapshots.popleft()
            if old.location is not None:
                await asyncio.to_thread(remove_file, old.location)

    async def _too_much_is_held(self, stream: str) -> bool:
        assert self._head is not None
        held = (await self._bus.js.stream_info(stream)).state.bytes
        return held > MOST_IMAGES * (self._head.nbytes + 2**20)

    async def _held_from(self) -> list[int]:
        """Returns where each hold on the stream begins that is not older than `HOLD_S`."""
        now = time.monotonic()
        # A follower that goes on to another version begins a new hold.
        self._held_since = {hold: self._held_since.get(hold, now) for hold in (await held_from(self._bus)).items()}
        return [start for (_, start), since in self._held_since.items() if now - since < HOLD_S]

    async def _write_chunks(
        self, version: WeightVersion, kind: ManifestKind, segments: Callable[[], Iterator[Segment]]
    ) -> Chunks:
        """Writes all chunks; raises WeightsError where the stream does not take them in `bus.reconnect_s` seconds."""

        async def write() -> Chunks:
            writing = secrets.token_hex(4)
            subject = self._bus.names.chunks(str(version), kind, writing)
            chunks = pack_chunks(segments(), self._config.chunk_bytes)
            first = count = size = 0
            flight: deque[tuple[asyncio.Future[PubAck], int]] = deque()
            acknowledged = 0
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                flight.append((await self._bus.js.publish_async(subject, chunk), len(chunk)))
                count, size = count + 1, size + len(chunk)
                while size - acknowledged > BYTES_IN_FLIGHT:
                    oldest, length = flight.popleft()
                    sequence = await self._stored(oldest)
                    first, acknowledged = first or sequence, acknowledged + length
            for future, _ in flight:
                sequence = await self._stored(future)
                first = first or sequence
            return Chunks(writing, first, count, size)

        return await self._until_done(write, f"store the {kind} of {version}")

    async def _until_done[T](self, work: Callable[[], Awaitable[T]], what: str) -> T:
        """Tries again and again while the bus is away, slow or full. Raises WeightsError after `bus.reconnect_s` seconds."""
        backoff = Backoff(self._bus.config.reconnect_s, longest_s=LONGEST_PAUSE_S)
        while True:
            try:
                return await work()
            except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
                if backoff.over or self._bus.lost.is_set():
                    raise WeightsError(
                        f"could not {what} at {self._bus.address.url} in {self._bus.config.reconnect_s:.0f} s "
                        f"({type(error).__name__}: {error}): is the server up, and has its disk room?"
                    ) from error
                log.warning("the weight log is away, will try again", what=what, error=str(error))
            await backoff.pause()

    async def _stored(self, acknowledgement: asyncio.Future[PubAck]) -> int:
        return (await asyncio.wait_for(acknowledgement, self._bus.config.timeout_s)).seq

    async def _write_manifest(self, manifest: Manifest) -> None:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self._head_sequence)}
        timeouts = acknowledgement_timeouts(self._bus.config)

        async def write() -> int:
            try:
                return await self._bus.publish(self._bus.names.manifests, manifest, headers, next(timeouts))
            except (*TRANSIENT_ERRORS, nats.js.errors.APIError):
                # Refused, or only its acknowledgement was lost: the head tells.
                sequence, data = await newest(self._bus)
                if data == encode(manifest):
                    return sequence
                self._require_head(sequence, data)
                raise

        self._head_sequence = await self._until_done(write, f"store the manifest of {manifest.version}")
        self._note(self._head_sequence, manifest)

    def _require_head(self, sequence: int, data: bytes) -> None:
        """Raises DeposedError or _LogLostError where the newest manifest, `data`, is not this writer's."""
        if sequence == self._head_sequence:
            return
        # Behind this learner's claim an earlier one can write only if the log has lost the claim.
        if self._claimed and (epoch_of(data), sequence) < (self.epoch, self._head_sequence):
            raise _LogLostError
        raise DeposedError(
            f"another learner has written to the weight log of run {self._bus.address.run}: this one (epoch "
            f"{self.epoch}) was deposed and stops"
        )

    def _note(self, sequence: int, manifest: Manifest) -> None:
        """Takes a manifest of the log, read or just written, into account."""
        self._head = manifest
        self.sequence = max(self.sequence, sequence)
        self._checksums[manifest.version] = manifest.checksum
        if manifest.kind is ManifestKind.SNAPSHOT:
            self._snapshots.append(_Snapshot(manifest.first_chunk or sequence, manifest.location))
            self._since_snapshot = self._delta_bytes = 0
        elif manifest.chunks:
            self._since_snapshot += 1
            self._delta_bytes += manifest.wire_bytes
        # Where an earlier learner had gone further on another way, that counts no longer.
        n = manifest.version.n
        self._logged = {known: checksum for known, checksum in self._logged.items() if known < n} | {
            n: manifest.checksum
        }
