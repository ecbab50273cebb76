"""What several tests of the state need."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest


@pytest.fixture
def queues_have_ended() -> Iterator[None]:
    """Torch closes the queues of its workers, and does not wait for the threads that feed them."""
    yield
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(10)
