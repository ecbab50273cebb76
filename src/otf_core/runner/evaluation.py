"""The validation and the test loop, in the order of Lightning 2.6."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch

from otf_core.runner.batches import Batches, length_of, limited, set_epoch
from otf_core.runner.hooks import names_parameter, takes
from otf_core.runner.refusals import RunnerError

if TYPE_CHECKING:
    from otf_core.runner.run import Run

# stage -> word in its hooks, name of its step, of its loader and of its limit
WORDS: Final = {
    "validate": ("validation", "validation_step", "val_dataloader", "limit_val_batches"),
    "test": ("test", "test_step", "test_dataloader", "limit_test_batches"),
}


class EvaluationLoop:
    """Validation or test; the results are returned per loader.

    Args:
        stage: "validate" or "test".
    """

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.stage = run, stage
        self.word, self.step_name, self.loader_name, self.limit_name = WORDS[stage]
        self.loaders: list[Any] | None = None
        self.max_batches: list[float] = []
        self.batches: Batches | None = None
        self._takes_idx = True
        self.seen: dict[int, int] = {}
        self._modes: list[tuple[Any, bool]] = []
        self.on_batch: Callable[[Any], None] | None = None  # of an evaluation asked for meanwhile

    @property
    def enabled(self) -> bool:
        """There is a step for it, a loader, and no limit of nothing."""
        run = self.run
        return (
            self.step_name in run.hooks
            and run.has_loader(self.loader_name)
            and getattr(run, self.limit_name) > 0
        )

    def setup_data(self) -> None:
        """Ask for the loaders, once in a fit."""
        run = self.run
        limit = getattr(run, self.limit_name)
        if self.loaders is not None or limit == 0 or self.step_name not in run.hooks:
            return
        self.loaders = run.request(self.loader_name)
        if run.fn != "fit":
            for loader in self.loaders:
                set_epoch(loader, run.counters.epochs_processed)
        self.max_batches = [limited(length_of(d), limit, self.limit_name) for d in self.loaders]
        self.seen = {}

    def limits(self) -> list[float]:
        """Batches of each loader, fewer in the sanity check."""
        if self.run.sanity_checking:
            return [min(self.run.num_sanity_val_steps, n) for n in self.max_batches]
        return self.max_batches

    def evaluate(self) -> list[dict[str, Any]]:
        """All batches of all loaders; what was logged, of each loader."""
        run = self.run
        # In a fit no inference tensors: metrics are shared with the training.
        context = torch.no_grad() if run.fn == "fit" else torch.inference_mode()
        with context:
            self.setup_data()
            if sum(self.limits()) == 0:
                return []
            batches = self._begin()
            outputs, loader = [], 0
            while True:
                try:
                    batch, batch_idx, dataloader_idx = next(batches)
                except StopIteration:
                    break
                if dataloader_idx != loader:
                    outputs.append(self._epoch_metrics())
                    loader = dataloader_idx
                self._batch(batch, batch_idx, dataloader_idx)
            outputs.append(self._epoch_metrics())
            return self._end(outputs)

    def _begin(self) -> Batches:
        run, word = self.run, self.word
        loaders = self.loaders or []
        if run.fn == "fit":
            for loader in loaders:
                set_epoch(loader, run.counters.epochs_processed)
        self.batches = Batches(loaders, self.limits())
        self.batches.begin()
        self._takes_idx = takes(run.hooks[self.step_name], "batch_idx", at_least=2)
        self._check_signatures()
        self._modes = [(m, m.training) for part in run.parts for m in part.modules()]
        if f"on_{word}_model_eval" in run.hooks:
            run.hook(f"on_{word}_model_eval")
        else:
            for part in run.parts:
                part.eval()
        run.hook(f"on_{word}_start")
        run.hook(f"on_{word}_epoch_start")
        return self.batches

    def _batch(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        run, word, book = self.run, self.word, self.run.book
        batch = run.transfer(batch, dataloader_idx)
        index = dataloader_idx if self._several() else None
        arguments = (batch, batch_idx) if index is None else (batch, batch_idx, index)
        book.begin_batch(batch, index)
        run.hook(f"on_{word}_batch_start", *arguments)
        output = self._step(arguments)
        run.hook(f"on_{word}_batch_end", output, *arguments)
        book.end_batch()
        if self.on_batch is not None:
            self.on_batch(output)
        if not run.sanity_checking:
            seen = self.seen.get(dataloader_idx, 0)
            run.log_metrics(step=seen)
            self.seen[dataloader_idx] = seen + 1

    def _step(self, arguments: tuple[Any, ...]) -> Any:
        run, book = self.run, self.run.book
        step = run.hooks[self.step_name]
        if not self._takes_idx:
            arguments = (arguments[0], *arguments[2:])
        before, book.fx = book.fx, self.step_name
        try:
            with run.precision.forward():
                return step(*arguments)
        finally:
            book.fx = before

    def _epoch_metrics(self) -> dict[str, Any]:
        """What a loader has given; not in the sanity check."""
        book = self.run.book
        book.first_iteration = None
        return {} if self.run.sanity_checking else book.now()

    def _end(self, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        run, word, book = self.run, self.word, self.run.book
        book.first_iteration = None
        if book.active is not None:
            book.active.dataloader_idx = None
        run.hook(f"on_{word}_epoch_end")
        book.now()
        book.last_fx = None
        last = self._epoch_metrics()
        together = {name: value for part in reversed(outputs) for name, value in part.items()}
        for part in outputs:
            part.update(last)
        if not run.sanity_checking:
            run.log_metrics({**together, **last})
        run.hook(f"on_{word}_end")
        book.reset_results()
        if f"on_{word}_model_train" in run.hooks:
            run.hook(f"on_{word}_model_train")
        else:
            self.restore_modes()
        self.teardown()
        return outputs

    def restore_modes(self) -> None:
        """Every module trains or does not as before; also where an exception came in between."""
        for module, mode in self._modes:
            module.training = mode

    def teardown(self) -> None:
        """Let go of the iterators and modes."""
        self._modes = []
        if self.batches is not None:
            self.batches.end()

    def _several(self) -> bool:
        return len(self.loaders or ()) > 1

    def _check_signatures(self) -> None:
        """Several loaders: every hook of a batch must take dataloader_idx; one: none may ask it."""
        run = self.run
        for name in (self.step_name, f"on_{self.word}_batch_start", f"on_{self.word}_batch_end"):
            hook = run.hooks.get(name)
            if hook is None:
                continue
            if self._several() and not takes(hook, "dataloader_idx"):
                msg = f"{name} has no dataloader_idx, but there are several loaders; add it"
                raise RunnerError(msg)
            if not self._several() and names_parameter(hook, "dataloader_idx", required=True):
                msg = f"{name} asks for dataloader_idx, but there is one loader; give it a default"
                raise RunnerError(msg)
