"""Snapshots that lie outside the bus: files with the raw bytes of a state, in a folder or behind a URL that fsspec knows."""

import fsspec
import structlog

from weights.codec import WeightsError, WeightState

log = structlog.get_logger()

BLOCK_BYTES = 64 * 2**20


def write_file(location: str, state: WeightState) -> None:
    """Writes a snapshot. Raises WeightsError where it cannot."""
    try:
        with fsspec.open(location, "wb", auto_mkdir=True) as file:
            for start in range(0, state.layout.nbytes, BLOCK_BYTES):
                file.write(state.image[start : start + BLOCK_BYTES].data)
    except (OSError, ValueError, ImportError) as error:
        raise WeightsError(f"weights.snapshot_location: cannot write {location}: {error}") from error


def remove_file(location: str) -> None:
    """Removes an old snapshot; says so where it cannot."""
    filesystem, path = fsspec.core.url_to_fs(location)
    try:
        filesystem.rm_file(path)
    except OSError as error:
        log.warning("an old snapshot could not be removed", location=location, error=str(error))


def read_file(location: str, state: WeightState) -> None:
    """Reads a snapshot into `state`. Raises WeightsError where it cannot be read, or has another length."""
    position = 0
    try:
        with fsspec.open(location, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                if position + len(block) > state.layout.nbytes:
                    raise WeightsError(f"{location} is longer than its manifest says")
                state.write(position, block)
                position += len(block)
    except (OSError, ValueError, ImportError) as error:
        raise WeightsError(f"snapshot {location} cannot be read here: {error}") from error
    if position != state.layout.nbytes:
        raise WeightsError(f"{location} has {position} bytes instead of {state.layout.nbytes}")
    state.digest_all()
