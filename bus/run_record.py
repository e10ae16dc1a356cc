"""The run's record: what every role can look up in the run's bucket, and must have alike.

The bus role writes down the configuration and the wire schema, the learner the digests of its model's files and the prompt
template. Whoever joins compares before it does anything else, since results of another model, tokenizer or schema could not
be told from right ones. After its last step the learner writes down that the run is done.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import nats.js.errors
import structlog
import yaml
from nats.js.kv import KeyValue
from pydantic import BaseModel, ConfigDict, ValidationError

from bus.connection import TRANSIENT_ERRORS, Bus, BusError
from bus.messages import Count, Time, wire_schema_digest
from configs.agreement import require_same
from configs.errors import UserError
from configs.loading import ConfigError, dump_config, parse_config
from configs.schema import RunConfig
from runtime.model_digests import differences
from runtime.retry import Backoff

log = structlog.get_logger()

CONFIG, SCHEMA, MODEL, TEMPLATE, END = "config", "schema", "model", "template", "end"
"""Keys of the bucket."""


class OtherModelError(UserError):
    """The model's files here are not those that the run is made with; the text names them."""


class RunEnd(BaseModel):
    """Says that the learner has done all steps, and exported the model."""

    model_config = ConfigDict(frozen=True, strict=True)
    steps: Count
    ended_at: Time
    """The run's time (`bus.clock`)."""


async def record_config(bus: Bus, config: RunConfig) -> None:
    """Writes down how the run is configured, and the wire schema that its messages have."""
    bucket = await bus.js.key_value(bus.names.run_bucket)
    await bucket.put(SCHEMA, wire_schema_digest().encode())
    await bucket.put(CONFIG, dump_config(config).encode())


async def recorded_settings(bus: Bus) -> dict[str, Any]:
    """Returns the run's whole configuration as data, whichever version of this project it is of.

    Raises UserError where the run is not set up yet, and what nats-py raises.
    """
    text = None
    with contextlib.suppress(nats.js.errors.BucketNotFoundError):
        text = await _get(await bus.js.key_value(bus.names.run_bucket), CONFIG)
    if text is None:
        raise _not_set_up(bus)
    return yaml.safe_load(text)


def _not_set_up(bus: Bus) -> UserError:
    return UserError(f"run {bus.address.run!r} is not set up yet: start `zerotir bus` first")


async def require_same_config(bus: Bus, config: RunConfig, fields: tuple[str, ...]) -> None:
    """Raises UserError where the run has another wire schema, or `config` other values in `fields`."""
    text = schema = None
    with contextlib.suppress(nats.js.errors.BucketNotFoundError):
        bucket = await bus.js.key_value(bus.names.run_bucket)
        text, schema = await _get(bucket, CONFIG), await _get(bucket, SCHEMA)
    if text is None or schema is None:
        raise _not_set_up(bus)
    try:
        recorded = parse_config(text)
        if schema != wire_schema_digest():
            raise ConfigError("its messages have other fields")
    except ConfigError as error:
        raise UserError(
            f"run {bus.address.run!r} was started by another version of this project ({error}): install that one here"
        ) from error
    require_same(recorded, config, fields)


async def record_model(bus: Bus, digests: Mapping[str, str], template: str) -> None:
    """Writes down the digests of the learner's model (`runtime.model_digests`) and the prompt template's text.

    For a run that has them written down already, raises OtherModelError or UserError where they are others.
    """
    bucket = await bus.js.key_value(bus.names.run_bucket)
    for key, text in ((TEMPLATE, template), (MODEL, json.dumps(digests))):
        try:
            await bucket.create(key, text.encode())
        except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.KeyNotFoundError):
            # It is there; or in a damaged block, where the server counts it and cannot read it.
            if await _get(bucket, key) is None:
                await bucket.put(key, text.encode())
    await _require_same_model(bucket, digests)
    if await _get(bucket, TEMPLATE) != template:
        raise UserError(
            f"run {bus.address.run!r} has another prompt template than this learner's: take over the run's folder with its "
            "template.txt, or start another run"
        )


async def require_same_model(bus: Bus, digests: Mapping[str, str], patience_s: float, stop: asyncio.Event) -> bool:
    """Waits until the learner has written its model down; returns False where `stop` was set or `patience_s` passed before.

    Raises OtherModelError where the learner's digests are others than `digests`.
    """
    backoff = Backoff(patience_s)
    while not stop.is_set():
        with contextlib.suppress(*TRANSIENT_ERRORS, nats.js.errors.BucketNotFoundError):
            bucket = await bus.js.key_value(bus.names.run_bucket)
            if await _require_same_model(bucket, digests):
                return True
        bus.require_connection()
        if backoff.over:
            return False
        await backoff.pause()
    return False


async def recorded_template(bus: Bus) -> str:
    """Returns the text of the run's prompt template, which is there as soon as the model is (`require_same_model`).

    Raises BusError where it is not.
    """
    template = await _get(await bus.js.key_value(bus.names.run_bucket), TEMPLATE)
    if template is None:
        raise BusError(f"run {bus.address.run!r} has no readable prompt template: is its learner up, which writes it?")
    return template


async def record_end(bus: Bus, steps: int) -> None:
    """Writes down that the run is done, after `steps` steps.

    Raises BusError where the bus does not take it for `bus.reconnect_s` seconds: actors elsewhere would wait for ever.
    """
    backoff = Backoff(bus.config.reconnect_s)
    end = RunEnd(steps=steps, ended_at=bus.clock.now())
    while True:
        try:
            await (await bus.js.key_value(bus.names.run_bucket)).put(END, end.model_dump_json().encode())
            return
        except (*TRANSIENT_ERRORS, nats.js.errors.NotFoundError) as error:
            # Without its bucket, a bus that has lost everything, whose bus role makes it again.
            bus.require_connection()
            if backoff.over:
                raise BusError(
                    f"the end of run {bus.address.run!r} could not be written down in {bus.config.reconnect_s:.0f} s "
                    f"({type(error).__name__}: {error}): the learner's work is done; started again it says so at once"
                ) from error
            await backoff.pause()


async def forget_end(bus: Bus) -> None:
    """Takes away that the run is done: it goes on. Raises what nats-py raises."""
    if await recorded_end(bus) is not None:
        await (await bus.js.key_value(bus.names.run_bucket)).delete(END)


async def recorded_end(bus: Bus) -> RunEnd | None:
    """Returns the end of the run, None while it goes on. Raises what nats-py raises."""
    try:
        text = await _get(await bus.js.key_value(bus.names.run_bucket), END)
        return RunEnd.model_validate_json(text) if text is not None else None
    except nats.js.errors.BucketNotFoundError:
        return None
    except ValidationError as error:
        log.warning("what is written down of the run's end cannot be read", error=str(error)[:300])
        return None


async def _require_same_model(bucket: KeyValue, digests: Mapping[str, str]) -> bool:
    text = await _get(bucket, MODEL)
    if text is None:
        return False
    if found := differences(json.loads(text), digests):
        raise OtherModelError(
            f"the model here is not the run's: {', '.join(found)}. Token ids and log-probabilities of another tokenizer or "
            "model cannot be told from right ones: copy these files from the learner's host (from a hub, fetch the same "
            "revision), or start another run"
        )
    return True


async def _get(bucket: KeyValue, key: str) -> str | None:
    try:
        return ((await bucket.get(key)).value or b"").decode()
    except nats.js.errors.KeyNotFoundError:
        return None
