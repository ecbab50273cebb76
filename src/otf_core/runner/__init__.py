"""The native loop: trains modules with Lightning's hooks, without Lightning."""

from otf_core.runner.callback import RunnerCallback
from otf_core.runner.refusals import REFUSALS, RunnerError, RunnerUnsupportedError
from otf_core.runner.runner import Runner

__all__ = ["REFUSALS", "Runner", "RunnerCallback", "RunnerError", "RunnerUnsupportedError"]
