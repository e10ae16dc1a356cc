"""Follows the weight log: from whatever a reader holds to the newest version, bit for bit.

    newest manifest ──▶ route: deltas from what is held, or a snapshot and the deltas after it, whichever is shorter
                    ──▶ fetch and apply, each segment checked against its digest, each version against its checksum
                    ──▶ damaged or gone: another route without it; no route at all: ask the learner for a snapshot, and wait

A delta without content (a learner took over), or a snapshot of the version that is held, costs no byte. `held` names a
version only while every bit of `state` belongs to it; it is None during a change.

A follower may be slower than the learner. While it reads it holds the stream, and the writer purges nothing from where a
hold begins (`weights.holds`). Versions that came meanwhile are taken together. A fetch ends only after `bus.reconnect_s`
seconds of silence, and continues after an outage. If a chunk is gone nevertheless, the follower notices as soon as the
server has nothing more to send.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats.js.errors
import structlog
from nats.aio.msg import Msg

from bus.codec import MessageError, decode
from bus.connection import TRANSIENT_ERRORS, Bus
from bus.log_reader import LogReader
from bus.messages import Manifest, ManifestKind, WeightChunk, WeightVersion
from weights.codec import Layout, WeightsError, WeightState
from weights.files import read_file, require_below
from weights.holds import Hold
from weights.log import newest, read_manifests

log = structlog.get_logger()

POLL_S = 5.0
"""A manifest wakes its followers; behind a mirror that does not, and then this is how long one goes unseen."""
CHUNKS_AT_ONCE = 256
"""Chunks that are asked for together, if they are not more than `bus.log_reader.BATCH_BYTES`."""
WAKE_S = 0.05
"""A manifest may wake its followers before the stream has stored it: they look again after this long, and twice as long."""

Logged = tuple[int, Manifest]
"""A manifest and its stream sequence."""


@dataclass(frozen=True)
class _Route:
    """Manifests to take one after another."""

    path: list[Logged]
    reached: int
    """Sequence of the last manifest that it leads to: the last of `path`, or a later one of the same weights."""

    @property
    def wire_bytes(self) -> int:
        """Returns the bytes that it costs."""
        return sum(manifest.wire_bytes for _, manifest in self.path)


class WeightFollower:
    """Holds one state of the weights and brings it forward."""

    def __init__(
        self,
        bus: Bus,
        snapshot_location: str | None = None,
        allocate: Callable[[int], memoryview] = lambda n: memoryview(bytearray(n)),
    ) -> None:
        """`snapshot_location` is the configuration's; `allocate` makes the memory, of so many bytes, for the state."""
        self._bus = bus
        self._snapshot_location = snapshot_location
        self._hold = Hold(bus)
        self._allocate = allocate
        self._sequence = 0
        """Sequence of the manifest up to which the log was followed."""
        self._given: tuple[WeightVersion, str] | None = None
        """Version and checksum of what was given out last."""
        self._given_at = 0
        """Sequence up to which the log was followed then: what comes from further on is newer, whatever its epoch."""
        self._damaged: set[int] = set()
        self._woken: asyncio.Event | None = None
        self._last_request = 0.0
        self.state: WeightState | None = None
        self.held: Manifest | None = None
        """What `state` is; None before the first version and while it is being changed."""
        self.fallbacks = 0
        """Manifests that could not be followed: damaged, incomplete or purged meanwhile."""
        self.bytes_received = 0

    async def advance(self, timeout_s: float) -> Manifest | None:
        """Waits for a version newer than the last one given out, and takes the newest; None if none came in `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        woken = await self._listen()
        pause = WAKE_S
        while True:
            if woken.is_set():
                woken.clear()
                pause = WAKE_S
            try:
                head, _ = await newest(self._bus)
                if head != self._sequence:
                    await self._catch_up(head)
            except (*TRANSIENT_ERRORS, nats.js.errors.APIError) as error:
                log.warning("weight log out of reach", error=str(error))
            if self.held is not None and self._sequence > self._given_at:
                self._given_at = self._sequence
                if (given := (self.held.version, self.held.checksum)) != self._given:
                    self._given = given
                    return self.held
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), min(left, pause))
            pause = min(2 * pause, POLL_S)

    async def reach(self, version: WeightVersion) -> None:
        """Takes `version`, whatever comes after it. Raises WeightsError where the log does not lead there."""
        head, _ = await newest(self._bus)
        logged = await read_manifests(self._bus, 1, head)
        ends = [index for index, (_, manifest) in enumerate(logged) if manifest.version == version]
        route = self._route(logged[: ends[0] + 1]) if ends else None
        if route is None or not route.path or route.path[-1][1].version != version:
            there = ", ".join(sorted({str(manifest.version) for _, manifest in logged})) or "none"
            raise WeightsError(f"the weight log does not lead to version {version}; it holds {there}")
        if (failed := await self._follow(route.path)) is not None:
            raise failed[1]

    async def _listen(self) -> asyncio.Event:
        """Returns an event that is set whenever a manifest is written."""
        if self._woken is None:
            event = self._woken = asyncio.Event()

            async def wake(_: Msg) -> None:
                event.set()

            await self._bus.client.subscribe(self._bus.names.manifests, cb=wake)
        return self._woken

    async def _catch_up(self, head: int) -> None:
        """Goes as far towards `head` as the log leads; where that is not all the way, asks for a snapshot."""
        if head < max(self._sequence, self._given_at):
            log.warning("the weight log began anew", head=head, held=str(self.held and self.held.version))
            self._sequence, self._given_at, self.held = 0, 0, None
            self._damaged.clear()
        logged = await read_manifests(self._bus, self._sequence + 1 if self.held else 1, head)
        while True:
            route = self._route(logged)
            if route is None and self.held is not None:
                # What is held leads nowhere: perhaps a snapshot does that was passed over.
                logged = await read_manifests(self._bus, 1, head)
                route = self._route(logged)
            if route is None:
                break
            failed = await self._follow(route.path)
            if failed is None:
                self._sequence = route.reached
                break
            self._sequence = 0
            self._damaged.add(failed[0])
            logged = await read_manifests(self._bus, 1, head)
        if self._sequence < head:
            await self._ask_for_snapshot(head)

    async def _follow(self, path: Sequence[Logged]) -> tuple[int, WeightsError] | None:
        """Takes one manifest after another; returns the sequence of the one that could not be taken, if any, and why."""
        async with self._hold:
            for sequence, manifest in path:
                if manifest.chunks or manifest.location is not None:
                    await self._hold.take(manifest.first_chunk or sequence)
                try:
                    await self._take(manifest)
                except WeightsError as error:
                    self.fallbacks += 1
                    log.warning(
                        "weights not usable", version=str(manifest.version), kind=manifest.kind, error=str(error)
                    )
                    return sequence, error
                self._sequence = sequence
        return None

    def _route(self, logged: Sequence[Logged]) -> _Route | None:
        """Returns the shortest route to the newest version in reach; None where that is not newer than what is held."""
        routes: list[_Route] = []
        if self.held is not None:
            routes.append(self._follow_chain(self.held, [], logged))
        for index, (sequence, manifest) in enumerate(logged):
            if manifest.kind is ManifestKind.SNAPSHOT and sequence not in self._damaged:
                routes.append(self._follow_chain(manifest, [(sequence, manifest)], logged[index + 1 :]))
        best = max(routes, key=lambda route: (route.reached, -route.wire_bytes), default=None)
        return best if best is not None and best.reached > self._sequence else None

    def _follow_chain(self, at: Manifest, path: list[Logged], logged: Sequence[Logged]) -> _Route:
        """Returns the route that takes `path`, which leads to `at`, and then every delta that continues it."""
        reached = path[-1][0] if path else 0
        for sequence, manifest in logged:
            continues = (
                manifest.kind is ManifestKind.DELTA
                and manifest.parent == at.version
                and manifest.parent_checksum == at.checksum
                and sequence not in self._damaged
            )
            if continues:
                path.append((sequence, manifest))
            if continues or (manifest.version == at.version and manifest.checksum == at.checksum):
                at, reached = manifest, sequence
        return _Route(path, reached)

    async def _take(self, manifest: Manifest) -> None:
        """Changes the state into `manifest`'s. Raises WeightsError, and then nothing is held."""
        state = self.state
        self.held = None
        if manifest.kind is ManifestKind.SNAPSHOT:
            layout = Layout(manifest.tensors)
            if layout.digest != manifest.layout or layout.nbytes != manifest.nbytes:
                raise WeightsError("the snapshot's layout is not the one that its manifest names")
            if state is None or state.layout.digest != layout.digest:
                state = self.state = WeightState(layout, self._allocate(layout.nbytes))
        if state is None or state.layout.digest != manifest.layout:
            raise WeightsError("a delta for tensors of another layout")
        if manifest.location is not None:
            require_below(manifest.location, self._snapshot_location)
            await asyncio.to_thread(read_file, manifest.location, state)
            self.bytes_received += manifest.wire_bytes
        elif manifest.chunks:
            await self._fetch(manifest, state)
        if state.checksum != manifest.checksum:
            raise WeightsError(f"checksum {state.checksum} where the manifest says {manifest.checksum}")
        self.held = manifest

    async def _fetch(self, manifest: Manifest, state: WeightState) -> None:
        """Applies the chunks as they come, in a thread: the caller's loop goes on meanwhile."""
        subject = self._bus.names.chunks(str(manifest.version), manifest.kind, manifest.writing or "none")
        reader = LogReader(self._bus, self._bus.names.stream("WEIGHTS"), subject, manifest.first_chunk or 1)
        taken = 0
        heard = time.monotonic()
        try:
            while taken < manifest.chunks:
                messages = await reader.read(min(CHUNKS_AT_ONCE, manifest.chunks - taken), timeout_s=0.25)
                if messages:
                    self.bytes_received += sum(len(data) for _, data in messages)
                    taken = await asyncio.to_thread(_apply, [data for _, data in messages], taken, state)
                    heard = time.monotonic()
                elif await reader.exhausted():
                    # They were all there before their manifest was.
                    raise WeightsError(
                        f"only {taken} of {manifest.chunks} chunks of {manifest.version} are there still"
                    )
                elif (silence := time.monotonic() - heard) > self._bus.config.reconnect_s:
                    raise WeightsError(f"after {taken} of {manifest.chunks} chunks nothing came for {silence:.0f} s")
        finally:
            await reader.close()

    async def _ask_for_snapshot(self, head: int) -> None:
        if self.held is None:
            # Nothing to lose by trying everything again later: a bus that was away looks like damage.
            self._damaged.clear()
        if time.monotonic() - self._last_request < POLL_S:
            return
        self._last_request = time.monotonic()
        log.warning("the weight log does not lead on from what is held: asking for a snapshot", head=head)
        await self._bus.client.publish(self._bus.names.snapshot_requests, b"")


def _apply(messages: Sequence[bytes], taken: int, state: WeightState) -> int:
    """Applies chunks, the first of which should be number `taken`; returns the number of chunks applied so far."""
    for data in messages:
        try:
            chunk = decode(data, WeightChunk)
        except MessageError as error:
            raise WeightsError(f"a chunk is unreadable: {error}") from error
        if chunk.index > taken:
            raise WeightsError(f"chunk {chunk.index} came where {taken} should be")
        # One that was stored twice is applied once.
        if chunk.index == taken:
            for segment in chunk.segments:
                state.apply(segment)
            taken += 1
    return taken
