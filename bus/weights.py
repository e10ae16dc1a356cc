"""The weight log: complete versions in chunks, each closed by a conditional manifest.

A writer puts a version's bytes on the stream in chunks and then, only if the newest manifest is still the one that it
knew, the manifest. Refused, it reads the head: its own manifest is success (the acknowledgement was lost), another
epoch's means that it was deposed. A reader takes the newest manifest, fetches its chunks and believes them only if the
checksum is right. Cost: one version is `nbytes` on the wire for the learner, and as much again for each reader; the two
newest versions stay on the stream.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence

import nats.errors
import nats.js.errors
import structlog
import xxhash
from nats.js.api import PubAck

from bus.codec import MessageError, decode, encode
from bus.connection import TRANSIENT_ERRORS, WRONG_LAST_SEQUENCE, Bus
from bus.log_reader import LogReader
from bus.messages import Manifest, TensorEntry, WeightVersion

log = structlog.get_logger()

CHUNKS_IN_FLIGHT = 16
ATTEMPTS = 5
VERSIONS_KEPT = 2


class DeposedError(RuntimeError):
    """Another learner has written a manifest since: this one must stop."""


class WeightsError(RuntimeError):
    """A version could not be written or fetched; the text says why."""


async def newest_manifest(bus: Bus) -> tuple[int, Manifest] | None:
    """The head of the log as (stream sequence, manifest), or None while there is none."""
    try:
        message = await bus.js.get_last_msg(bus.names.stream("WEIGHTS"), bus.names.manifests, direct=True)
    except nats.js.errors.NotFoundError:
        return None
    return message.seq or 0, decode(message.data or b"", Manifest)


class WeightWriter:
    """Writes versions of one epoch, one at a time, each after the head that this writer knows."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._head_sequence = 0
        self._written: deque[tuple[WeightVersion, int]] = deque()
        self.epoch = 0

    async def open(self) -> int:
        """Reads the head, takes the epoch after it and returns it."""
        head = await newest_manifest(self._bus)
        if head is not None:
            self._head_sequence, manifest = head
            self.epoch = manifest.version.epoch + 1
            self._written.append((manifest.version, manifest.first_chunk))
        return self.epoch

    async def write(self, n: int, tensors: Sequence[TensorEntry], data: memoryview) -> Manifest:
        """Publishes `data` (all tensors, one after another) as version `n` of this epoch.

        Raises DeposedError if another writer has taken over, WeightsError if the bus did not take it.
        """
        version = WeightVersion(epoch=self.epoch, n=n)
        subject = self._bus.names.chunks(str(version))
        first_chunk, chunks = await self._write_chunks(subject, data)
        manifest = Manifest(
            version=version,
            parent=self._written[-1][0] if self._written else None,
            tensors=tuple(tensors),
            first_chunk=first_chunk,
            chunks=chunks,
            nbytes=len(data),
            checksum=xxhash.xxh3_128_hexdigest(data),
            published_at=time.time(),
        )
        await self._write_manifest(manifest)
        self._written.append((version, first_chunk))
        while len(self._written) > VERSIONS_KEPT:
            self._written.popleft()
            # Everything before the oldest kept version's first chunk: older chunks and the manifests between them.
            await self._bus.js.purge_stream(self._bus.names.stream("WEIGHTS"), seq=self._written[0][1])
        return manifest

    async def _write_chunks(self, subject: str, data: memoryview) -> tuple[int, int]:
        size = self._bus.config.chunk_bytes
        starts = range(0, max(len(data), 1), size)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                first = 0
                flight: deque[asyncio.Future[PubAck]] = deque()
                for start in starts:
                    chunk = bytes(data[start : start + size])
                    flight.append(await self._bus.js.publish_async(subject, chunk))
                    if len(flight) >= CHUNKS_IN_FLIGHT:
                        first = first or await self._stored(flight.popleft())
                while flight:
                    sequence = await self._stored(flight.popleft())
                    first = first or sequence
                return first, len(starts)
            except (*TRANSIENT_ERRORS, TimeoutError, nats.js.errors.APIError) as error:
                log.warning(
                    "weight chunks not stored, starting over", subject=subject, attempt=attempt, error=str(error)
                )
                await asyncio.sleep(attempt)
        raise WeightsError(f"could not store the weight chunks of {subject} in {ATTEMPTS} attempts: is the bus full?")

    async def _stored(self, acknowledgement: asyncio.Future[PubAck]) -> int:
        return (await asyncio.wait_for(acknowledgement, self._bus.config.timeout_s)).seq

    async def _write_manifest(self, manifest: Manifest) -> None:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self._head_sequence)}
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._head_sequence = await self._bus.publish(self._bus.names.manifests, manifest, headers)
                return
            except nats.js.errors.APIError as error:
                if error.err_code not in WRONG_LAST_SEQUENCE:
                    log.warning("manifest refused, trying again", attempt=attempt, error=str(error))
            except TRANSIENT_ERRORS as error:
                log.warning("manifest not acknowledged, trying again", attempt=attempt, error=str(error))
            head = await newest_manifest(self._bus)
            if head is not None and encode(head[1]) == encode(manifest):
                self._head_sequence = head[0]
                return
            if head is not None and head[0] != self._head_sequence:
                raise DeposedError(
                    f"weight version {head[1].version} was written by another learner: this one "
                    f"(epoch {self.epoch}) was deposed and stops"
                )
            await asyncio.sleep(attempt)
        raise WeightsError(f"the manifest of {manifest.version} was not stored in {ATTEMPTS} attempts")


async def fetch_weights(bus: Bus, manifest: Manifest, into: memoryview, timeout_s: float) -> None:
    """Copies a version's bytes into `into` (`manifest.nbytes` long) and checks them.

    Raises WeightsError when they are not all there in time or the checksum is wrong.
    """
    if len(into) != manifest.nbytes:
        raise ValueError(f"{len(into)} bytes of room for {manifest.nbytes} bytes of weights")
    reader = LogReader(bus, bus.names.stream("WEIGHTS"), bus.names.chunks(str(manifest.version)), manifest.first_chunk)
    position = taken = 0
    deadline = asyncio.get_running_loop().time() + timeout_s
    try:
        while taken < manifest.chunks:
            if asyncio.get_running_loop().time() > deadline:
                raise WeightsError(
                    f"{taken} of {manifest.chunks} chunks of weights {manifest.version} came in {timeout_s:.0f} s"
                )
            for _, chunk in await reader.read(min(8, manifest.chunks - taken), timeout_s=2.0):
                if position + len(chunk) > manifest.nbytes:
                    raise WeightsError(f"chunks of weights {manifest.version} are longer than its manifest says")
                into[position : position + len(chunk)] = chunk
                position += len(chunk)
                taken += 1
    finally:
        await reader.close()
    if xxhash.xxh3_128_hexdigest(into) != manifest.checksum:
        raise WeightsError(f"checksum of weights {manifest.version} is wrong")


class WeightFollower:
    """Waits for versions newer than the last one that it gave out."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seen = 0
        self.checksum_failures = 0

    async def next_manifest(self, timeout_s: float) -> Manifest | None:
        """The newest manifest, once there is one that was not given out yet; None after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                head = await newest_manifest(self._bus)
            except TRANSIENT_ERRORS as error:
                log.warning("weight log out of reach", error=str(error))
                head = None
            except MessageError as error:
                raise WeightsError(f"the newest manifest is unreadable: {error}") from error
            if head is not None and head[0] > self._seen:
                self._seen = head[0]
                return head[1]
            if asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(0.25)

    def forget(self) -> None:
        """Gives the newest version out again: what was fetched could not be used."""
        self._seen = 0
