"""Storing a message in a stream: published, and acknowledged by the stream that took it.

`JetStreamContext.publish` does the same, with a random inbox and a dataclass for each message. Results go through here since
they are many.
"""

import asyncio
import json
import secrets

import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext


class Store:
    """One inbox for all acknowledgements of a connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = ""
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    async def put(self, subject: str, data: bytes, timeout_s: float) -> int:
        """Returns the sequence that the message got. One try; raises what nats-py raises, and TimeoutError."""
        if not self._inbox:
            inbox = self._client.new_inbox()
            await self._client.subscribe(f"{inbox}.*", cb=self._answered)
            self._inbox = inbox
        # Other processes of the role, which may answer to it, cannot know it before.
        reply = f"{self._inbox}.{secrets.token_hex(8)}"
        self._waiting[reply] = answered = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._client.publish(subject, data, reply=reply)
                message = await answered
        finally:
            del self._waiting[reply]
        if JetStreamContext.is_status_msg(message):
            raise nats.js.errors.NoStreamResponseError
        answer = json.loads(message.data)
        if "error" in answer:
            raise nats.js.errors.APIError.from_error(answer["error"])
        if "seq" not in answer:
            raise nats.js.errors.NoStreamResponseError
        return int(answer["seq"])

    async def _answered(self, message: Msg) -> None:
        answered = self._waiting.get(message.subject)
        if answered is not None and not answered.done():
            answered.set_result(message)
