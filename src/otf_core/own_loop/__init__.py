"""A training loop that the user owns, under control: ``attach`` and ``session.tick()``."""

from otf_core.own_loop.attach import attach
from otf_core.own_loop.loop import OwnLoop

__all__ = ["OwnLoop", "attach"]
