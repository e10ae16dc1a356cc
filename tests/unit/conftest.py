"""What several unit tests read."""

from typing import Any

import pytest

from runtime.models import tokenizer_of


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tokenizer of the tiny model."""
    return tokenizer_of("random-tiny")
