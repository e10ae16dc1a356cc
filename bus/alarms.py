"""The list of a run's alarms, as its learner keeps it in the run's bucket and every view reads it."""

import json

import nats.js.errors
import structlog
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bus.connection import Bus
from bus.messages import Text, Time
from runtime.terminal import printable
from runtime.words import how_long

log = structlog.get_logger()

KEY = "alarms"


class Alarm(BaseModel):
    """Tells people of a run what needs one of them."""

    model_config = ConfigDict(frozen=True, strict=True)
    name: Text
    """One of those in `docs/troubleshooting.md`."""
    who: Text
    """The process that it is about."""
    text: Text
    """The finding, with its numbers."""
    advice: Text
    since: Time
    """The run's time (`bus.clock`) at which it was raised."""

    def line(self, now: float | None = None) -> str:
        """Returns it for people; `now`, the run's time, adds for how long it has been raised."""
        since = "" if now is None else f", for {how_long(now - self.since)}"
        return printable(f"ALARM {self.name} ({self.who}{since}): {self.text}. {self.advice}")


_LIST = TypeAdapter(list[Alarm])


async def record_alarms(bus: Bus, alarms: list[Alarm]) -> None:
    """Writes down which alarms are raised now. Raises what nats-py raises."""
    bucket = await bus.js.key_value(bus.names.run_bucket)
    await bucket.put(KEY, json.dumps([alarm.model_dump() for alarm in alarms]).encode())


async def recorded_alarms(bus: Bus) -> list[Alarm]:
    """Returns the alarms that the run's learner had raised when it last looked, in order. Raises what nats-py raises."""
    try:
        entry = await (await bus.js.key_value(bus.names.run_bucket)).get(KEY)
        return _LIST.validate_json(entry.value or b"")
    except (nats.js.errors.BucketNotFoundError, nats.js.errors.KeyNotFoundError):
        return []
    except ValidationError as error:
        log.warning("the list of alarms cannot be read", error=str(error)[:300])
        return []
