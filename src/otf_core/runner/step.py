"""One training batch: forward, backward, optimizer step, automatic or by the module's own hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from otf_core.runner import optim
from otf_core.runner.hooks import takes
from otf_core.runner.precision import unscales_itself
from otf_core.runner.refusals import RunnerError

if TYPE_CHECKING:
    from otf_core.runner.run import Run


class Step:
    """Calls the module's training_step; ``optimize`` is what the two kinds differ in."""

    automatic = False

    def __init__(self, run: Run) -> None:
        self.run, self.counters, self.book = run, run.counters, run.book
        self._function = run.hooks["training_step"]
        self._takes_idx = takes(self._function, "batch_idx", at_least=2)
        self._backward = run.hooks.get("backward")
        self._before_backward = run.hears("on_before_backward")
        self._after_backward = run.hears("on_after_backward")
        self._before_step = run.hears("on_before_optimizer_step")

    def call(self, batch: Any, batch_idx: int) -> Any:
        """The module's training_step, in the run's precision."""
        book = self.book
        before, book.fx = book.fx, "training_step"
        arguments = (batch, batch_idx) if self._takes_idx else (batch,)
        try:
            if self.run.precision.plain:
                return self._function(*arguments)
            with self.run.precision.forward():
                return self._function(*arguments)
        finally:
            book.fx = before

    def optimize(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Train on a batch; returns what on_train_batch_end is given."""
        raise NotImplementedError

    def step(self, optimizer: Any, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        """What the step of a wrapped optimizer does."""
        raise NotImplementedError

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Propagate back, with the hooks around it."""
        run = self.run
        loss = run.precision.scaled(loss)
        if self._before_backward:
            run.hook("on_before_backward", loss)
        if self._backward is not None:
            run.hook("backward", loss, *args, **kwargs)
        else:
            loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self._after_backward:
            run.hook("on_after_backward")

    def before_step(self, optimizer: Any) -> None:
        """Gradients are complete and unscaled."""
        self.run.before_step(optimizer)
        if self._before_step:
            self.run.hook("on_before_optimizer_step", optimizer)

    def clip(
        self, optimizer: Any, value: float | None = None, algorithm: str | None = None
    ) -> None:
        """What ``self.clip_gradients`` of a module does.

        Raises:
            RunnerError: the Runner was told otherwise, or the optimizer unscales by itself.
        """
        run = self.run
        asked = (("gradient_clip_val", value), ("gradient_clip_algorithm", algorithm))
        for name, given in asked:
            told = getattr(run, name)
            if given is not None and told is not None and given != told:
                msg = f"clip_gradients({name}={given!r}), but the Runner has {name}={told!r}"
                raise RunnerError(msg)
        value = run.gradient_clip_val if value is None else value
        algorithm = run.gradient_clip_algorithm if algorithm is None else algorithm.lower()
        if algorithm not in (None, "norm", "value"):
            msg = f'gradient_clip_algorithm={algorithm!r}; allowed: "norm", "value"'
            raise RunnerError(msg)
        if value and run.precision.scaler is not None and unscales_itself(optimizer):
            msg = f"{type(optimizer).__name__} unscales inside its step; it cannot be clipped"
            raise RunnerError(msg)
        optim.clip(optim.unwrapped(optimizer), value, algorithm)


class AutomaticStep(Step):
    """The Runner propagates back and steps; one optimizer."""

    automatic = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._batch: tuple[Any, int] = (None, 0)
        self._result: tuple[torch.Tensor | None, dict[str, Any]] | None = None
        self._clips = "configure_gradient_clipping" in run.hooks
        self._own_clip = "clip_gradients" not in vars(run.module)  # else ours lies there
        self._steps = "optimizer_step" in run.hooks
        self._zeroes = "optimizer_zero_grad" in run.hooks
        self._before_zero_grad = run.hears("on_before_zero_grad")
        # Whoever is handed the loss before it is propagated back may change it in place.
        self._shown = self._before_backward or self._backward is not None

    def optimize(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        run = self.run
        self._batch = batch, batch_idx
        if run.fit_loop.accumulates():
            self._closure()
        else:
            wrapped = run.wrapped[0]
            if self._steps:
                run.hook("optimizer_step", self.counters.epoch, batch_idx, wrapped, self._closure)
            else:
                self.step(wrapped.optimizer, self._closure)
            run.stepped()
        self._batch = None, 0
        result, self._result = self._result, None
        if result is None:
            msg = "the optimizer did not call the closure that it was given; optimizer_step must"
            raise RunnerError(msg)
        loss, extra = result
        return {} if loss is None else {"loss": loss, **extra}

    def step(self, optimizer: Any, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        return self.run.precision.step(
            optimizer, closure or _nothing, self.before_step, automatic=True, **kwargs
        )

    def before_step(self, optimizer: Any) -> None:
        super().before_step(optimizer)
        run = self.run
        if self._clips:
            run.hook(
                "configure_gradient_clipping",
                optimizer,
                gradient_clip_val=run.gradient_clip_val,
                gradient_clip_algorithm=run.gradient_clip_algorithm,
            )
        elif run.gradient_clip_val or self._own_clip:
            run.module.clip_gradients(
                optimizer,
                gradient_clip_val=run.gradient_clip_val,
                gradient_clip_algorithm=run.gradient_clip_algorithm,
            )

    def _closure(self) -> torch.Tensor | None:
        """Forward, zero_grad, backward; the loss as the optimizer gets it."""
        if not torch.is_grad_enabled():  # an optimizer that does not see to it
            with torch.enable_grad():
                return self._closure()
        batch, batch_idx = self._batch
        loss, extra = self._parsed(self.call(batch, batch_idx))
        seen = None
        if loss is not None:
            seen = loss.detach()
            if self._shown:
                seen = seen.clone()
        if batch_idx % self.run.accumulate_grad_batches == 0:
            self._zero_grad(batch_idx)
        if loss is not None:
            self.backward(loss)
        self._result = seen, extra
        return seen

    def _parsed(self, output: Any) -> tuple[torch.Tensor | None, dict[str, Any]]:
        extra: dict[str, Any] = {}
        loss = output
        if isinstance(output, Mapping):
            loss = output.get("loss")
            if loss is None:
                msg = f"training_step returned a dict with {sorted(output)}; allowed: one with loss"
                raise RunnerError(msg)
            extra = {name: value for name, value in output.items() if name != "loss"}
        elif output is not None and not isinstance(output, torch.Tensor):
            msg = f"training_step returned {output!r}; allowed: a tensor, a dict with loss, None"
            raise RunnerError(msg)
        parts = self.run.accumulate_grad_batches
        return (loss / parts if loss is not None and parts != 1 else loss), extra

    def _zero_grad(self, batch_idx: int) -> None:
        run, optimizer = self.run, self.run.optimizers[0]
        if self._before_zero_grad:
            run.hook("on_before_zero_grad", optimizer)
        if self._zeroes:
            run.hook("optimizer_zero_grad", self.counters.epoch, batch_idx, optimizer)
        else:
            optimizer.zero_grad()


class ManualStep(Step):
    """The module propagates back and steps itself, any number of optimizers."""

    def optimize(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        output = self.call(batch, batch_idx)
        if isinstance(output, Mapping):
            found = dict(output)
        elif isinstance(output, torch.Tensor):
            found = {"loss": output}
        elif output is None:
            return {}
        else:
            msg = f"training_step returned {output!r}; allowed: a tensor, a dict, None"
            raise RunnerError(msg)
        if "loss" in found:
            found["loss"] = found["loss"].detach()
        return found

    def step(self, optimizer: Any, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        output = self.run.precision.step(
            optimizer, closure or _nothing, self.before_step, automatic=False, **kwargs
        )
        self.run.stepped()
        return output

    def backward_by_hand(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """What ``self.manual_backward`` of a module does."""
        self.backward(loss, *args, **kwargs)


def _nothing() -> None:
    return None


class Toggle:
    """Which parameters require gradients while one of several optimizers works."""

    def __init__(self, optimizers: Callable[[], list[Any]]) -> None:
        self._optimizers = optimizers
        self._before: dict[Any, bool] = {}

    def toggle(self, optimizer: Any) -> None:
        """Only the parameters of this one; the others' are off."""
        before: dict[Any, bool] = {}
        for each in self._optimizers():
            for parameter in _parameters(each):
                if parameter not in before:
                    before[parameter] = parameter.requires_grad
                    parameter.requires_grad = False
        for parameter in _parameters(optimizer):
            parameter.requires_grad = before[parameter]
        self._before = before

    def untoggle(self, optimizer: Any) -> None:
        """As it was before."""
        own = optim.unwrapped(optimizer)
        for each in self._optimizers():
            if each is not own:
                for parameter in _parameters(each):
                    if parameter in self._before:
                        parameter.requires_grad = self._before[parameter]
        self._before = {}

    @contextlib.contextmanager
    def toggled(self, optimizer: Any) -> Iterator[None]:
        """Both, around what happens inside."""
        self.toggle(optimizer)
        try:
            yield
        finally:
            self.untoggle(optimizer)


def _parameters(optimizer: Any) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]
