"""Snapshots that lie outside the bus: files with the raw bytes of a state, in a folder or behind a URL that fsspec knows."""

import re
import secrets

import fsspec
import structlog

from bus.messages import WeightVersion
from weights.codec import WeightsError, WeightState

log = structlog.get_logger()

BLOCK_BYTES = 64 * 2**20
_NAME = re.compile(r"zerotir\.[A-Za-z0-9_.-]+\.weights")


def write_file(location: str, state: WeightState) -> None:
    """Writes a snapshot. Raises WeightsError where it cannot."""
    try:
        with fsspec.open(location, "wb", auto_mkdir=True) as file:
            for start in range(0, state.layout.nbytes, BLOCK_BYTES):
                file.write(state.image[start : start + BLOCK_BYTES].data)
    except Exception as error:
        raise WeightsError(f"weights.snapshot_location: cannot write {location}: {error}") from error


def require_below(location: str, folder: str | None) -> None:
    """Raises WeightsError unless `location` is a snapshot's in `folder`, as `file_name` names it.

    A manifest could name any file or URL that this host reaches.
    """
    if folder is None or not _NAME.fullmatch(location.removeprefix(f"{folder.rstrip('/')}/")):
        raise WeightsError(
            f"the manifest's snapshot lies at {location!r}, which is not in this role's weights.snapshot_location, {folder}"
        )


def file_name(run: str, version: WeightVersion) -> str:
    """Returns a name for the file of one snapshot, which no other attempt has."""
    return f"zerotir.{run}-{version}-{secrets.token_hex(4)}.weights"


def remove_file(location: str) -> None:
    """Removes an old snapshot; says so where it cannot."""
    try:
        filesystem, path = fsspec.core.url_to_fs(location)
        filesystem.rm_file(path)
    except Exception as error:  # noqa: BLE001 (a file system of fsspec's may raise anything)
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
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"snapshot {location} cannot be read here: {error}") from error
    if position != state.layout.nbytes:
        raise WeightsError(f"{location} has {position} bytes instead of {state.layout.nbytes}")
    state.digest_all()
