"""Reading a whole bucket."""

import nats.js.errors

from bus.connection import Bus


async def entries(bus: Bus, bucket: str) -> dict[str, bytes]:
    """Returns the values of a bucket's keys that have not expired. Raises what nats-py raises.

    Cost: one request a key.
    """
    values = await bus.js.key_value(bucket)
    # Not the client's `keys`: it takes a bucket whose entries are on their way to it for an empty one.
    prefix = f"$KV.{bucket}."
    info = await bus.js.stream_info(f"KV_{bucket}", subjects_filter=f"{prefix}>")
    found = {}
    for key in (subject.removeprefix(prefix) for subject in info.state.subjects or {}):
        try:
            found[key] = (await values.get(key, validate_keys=False)).value or b""
        except nats.js.errors.KeyNotFoundError:
            continue
    return found
