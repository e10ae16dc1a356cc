"""A learner that writes the weight log of the bus under test."""

import pytest

from bus.connection import Bus
from tests.integration.weights.log import Learner


@pytest.fixture
async def learner(bus: Bus) -> Learner:
    learner = Learner(bus)
    await learner.writer.open()
    return learner
