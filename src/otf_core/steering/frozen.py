"""Parameters that are frozen by their names: no step of an optimizer moves them.

Rule 1: ``requires_grad`` stays the script's. A frozen parameter still gets a gradient, which is
dropped before the clip and the step: so DDP's reducer hears of every parameter as ever, and a loss
that only frozen parameters lead to can still be propagated back.
Rule 2: torch's optimizers skip a parameter without a gradient whole: no decay, no momentum, no
count of steps. Of any other optimizer nobody knows: it is shown a gradient of zeros, and what it
writes is put back.
Rule 3: nothing is installed while nothing is frozen.

All of it is for the training thread.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from otf_core.errors import CommandError, ErrorCode
from otf_core.steering.knobs import Knob

PATH: Final = "model.frozen"
_NAMED: Final = 20  # names in a refusal


class Frozen:
    """Of one run.

    Args:
        names: every name of every parameter, a shared one by each of its names.
        optimizers: those that step.
    """

    def __init__(
        self,
        names: Callable[[], Iterable[tuple[str, nn.Parameter]]],
        optimizers: Callable[[], Sequence[Optimizer]],
    ) -> None:
        self._names, self._optimizers = names, optimizers
        self._patterns = ""
        self._frozen: dict[int, nn.Parameter] = {}  # by id
        self._hooks: list[Any] = []
        self._kept: list[tuple[nn.Parameter, torch.Tensor]] = []  # within a step

    def knob(self) -> Knob:
        """What is frozen, as a value that can be set."""
        return Knob(
            lambda: self._patterns, self.set, kind="str", owner="model", check=self.check,
            close=self.close,
        )  # fmt: skip

    def check(self, asked: str) -> str:
        """What is asked, as it is kept.

        Raises:
            CommandError: ``bad_payload``, ``unsupported``.
        """
        patterns = _split(asked)
        named = list(self._names())
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name, _ in named):
                raise _no_such(pattern, [name for name, _ in named])
        wanted = self._matched(patterns)
        for optimizer in self._optimizers():
            if isinstance(optimizer, LBFGS) and any(id(p) in wanted for p in _params(optimizer)):
                detail = (
                    f"{PATH} was asked to be {asked[:80]!r}; LBFGS steps all of its parameters "
                    "along one direction of its history and cannot leave some out."
                )
                raise CommandError(ErrorCode.UNSUPPORTED, detail, field="value")
        return ",".join(patterns)

    def set(self, patterns: str) -> None:
        """From the next step on these are frozen, and no others."""
        before, now = self._frozen, self._matched(_split(patterns))
        self._off()
        self._patterns, self._frozen = patterns, now
        for parameter in (*before.values(), *now.values()):
            parameter.grad = None  # half of an accumulated one is no step's
        if now:
            for optimizer in self._optimizers():
                self._hooks.append(optimizer.register_step_pre_hook(self._before))
                if not _skips(optimizer):
                    self._hooks.append(optimizer.register_step_post_hook(self._after))

    def before_step(self, optimizer: Optimizer) -> None:
        """Gradients are complete and not clipped yet."""
        if not self._frozen:
            return
        left = (p for p in _params(optimizer) if id(p) not in self._frozen)
        # A gradient scaler refuses to step an optimizer that has no gradient at all.
        self._drop(optimizer, whole=any(p.grad is not None for p in left))

    def _drop(self, optimizer: Optimizer, *, whole: bool = True) -> None:
        for parameter in self._of(optimizer):
            if whole and _skips(optimizer):
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def close(self) -> None:
        """The run is over; nothing of ours stays behind."""
        self._patterns, self._frozen = "", {}
        self._off()

    def _matched(self, patterns: Sequence[str]) -> dict[int, nn.Parameter]:
        return {
            id(parameter): parameter
            for name, parameter in self._names()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        }

    def _of(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """Its frozen ones; looked up anew, since a script may add groups."""
        if not self._frozen:
            return []
        return [parameter for parameter in _params(optimizer) if id(parameter) in self._frozen]

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Of a step; one that is given a closure has its gradients made within."""
        self._drop(optimizer)
        if not _skips(optimizer):
            self._kept = [(p, p.detach().clone()) for p in self._of(optimizer)]

        def wrapped(closure: Any) -> Any:
            if not callable(closure):
                return closure

            def made() -> Any:
                loss = closure()
                self._drop(optimizer)
                return loss

            return made

        return (args[0], *map(wrapped, args[1:])), {k: wrapped(v) for k, v in kwargs.items()}

    def _after(self, *_: Any) -> None:
        kept, self._kept = self._kept, []
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)

    def _off(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def names_of(modules: Iterable[tuple[str, nn.Module]]) -> Iterable[tuple[str, nn.Parameter]]:
    """Every name of every parameter; see Frozen."""
    for owner, module in modules:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            yield (f"{owner}.{name}" if owner else name), parameter


def _skips(optimizer: Optimizer) -> bool:
    """Whether its step is known to leave a parameter without a gradient alone."""
    return type(optimizer).__module__.startswith("torch.optim.")


def _params(optimizer: Optimizer) -> Iterable[Any]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _split(patterns: str) -> list[str]:
    """Each once, in the order in which they are asked."""
    return list(dict.fromkeys(p for each in patterns.split(",") if (p := each.strip())))


def _no_such(pattern: str, names: Sequence[str]) -> CommandError:
    near = difflib.get_close_matches(pattern, names, n=1)
    hint = f", nearest is {near[0]!r}" if near else ""
    detail = (
        f"{PATH} was asked for {pattern[:80]!r}, which is no parameter's name{hint}; allowed: "
        f"patterns of {len(names):,} names as {', '.join(names[:3])}."
    )
    return CommandError(ErrorCode.BAD_PAYLOAD, detail, field="value", allowed=[*names[:_NAMED]])
