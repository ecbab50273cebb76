"""How many activations are exactly zero, on the steps that are sampled; training thread only.

Rule 1: between two samples there is no hook anywhere, so a step that is not sampled costs nothing.
Rule 2: a hook counts and forgets: no activation is kept, no output changed, no random number drawn,
no device waited for.
Rule 3: where a hook could change what is computed, or compile it anew, none is put.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from otf_core.telemetry.norms import local_part

# Those whose output can be exactly zero for a whole range of inputs. Not among them: LeakyReLU,
# RReLU, ELU, GELU, SiLU, Mish, Softplus and the like, which are zero at single points at most, and
# Dropout, whose zeros are drawn. ReLU as a function (F.relu) is not seen by hooks on modules.
_ZEROING: Final = (nn.ReLU, nn.Hardswish, nn.Hardsigmoid, nn.Softshrink, nn.Hardshrink)

# With a hook inside, nn.TransformerEncoderLayer in eval mode (a frozen teacher, say) leaves its
# fast path and rounds differently.
_LEFT_ALONE: Final = (nn.TransformerEncoder, nn.TransformerEncoderLayer, torch.jit.ScriptModule)


def makes_zeros(module: nn.Module) -> bool:
    """Whether the module's outputs are exactly zero for a range of inputs; any thread."""
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return 0.0 in (module.min_val, module.max_val)
    if isinstance(module, nn.Threshold):
        return module.value == 0
    return isinstance(module, _ZEROING)


class ActivationZeroTracker:
    """Fraction of exact zeros in the outputs of ReLU-like modules, for one batch at a time.

    ``arm`` before the batch, ``disarm`` after it, on the training thread; used as a context
    manager it is disarmed however the block ends. A module that runs several times counts each
    time, under activation checkpointing the second forward too; so do the replicas of
    DataParallel. Skipped with all they contain: compiled, scripted and traced modules, and
    ``nn.TransformerEncoder`` and its layers.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._count: _ZeroCount | None = None
        self._handles: list[RemovableHandle] = []
        self._cost_s = 0.0

    @property
    def armed(self) -> bool:
        return self._count is not None

    @property
    def cost_s(self) -> float:
        """Seconds on the host that the last sample took, hooks included; for the governor."""
        return self._cost_s

    def arm(self, module: nn.Module) -> Self:
        """Puts the hooks; armed already, what was counted so far is thrown away."""
        begun = self._clock()
        self._remove()
        self._count = count = _ZeroCount(self._clock)
        for found in _zeroing_modules(module):
            self._handles.append(found.register_forward_hook(count))
        count.cost_s = self._clock() - begun
        return self

    def disarm(self) -> Tensor | None:
        """Removes the hooks; the fraction as a 0-dim float32 tensor on the device.

        None when not armed, when no such module ran, or when one of them could not be counted.
        """
        begun = self._clock()
        count = self._count
        self._remove()
        if count is None:
            return None
        fraction = count.fraction()
        self._cost_s = count.cost_s + self._clock() - begun
        return fraction

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._count is not None:
            self._count.closed = True
        self._count = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()


class _ZeroCount:
    """The hook of one sample. Replicas of DataParallel call it from threads of their own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._parts: list[tuple[Tensor, int]] = []  # zeros (0-dim, on the device), elements
        self.failed = False
        self.closed = False
        self.cost_s = 0.0

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.closed or _is_being_traced():
            return
        begun = self._clock()
        try:
            self._add(output)
        except (RuntimeError, TypeError):
            # No memory left for the mask, or a tensor type that cannot count: no figure then, and
            # not the end of the run.
            self.failed = True
        self.cost_s += self._clock() - begun

    def _add(self, output: Any) -> None:
        if not isinstance(output, Tensor) or output.is_meta or output.is_nested:
            return
        output = local_part(output)
        if output.layout is not torch.strided or output.numel() == 0:
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(output):  # noqa: SLF001 -- no public question
            return  # inside vmap or grad: the count would live on outside of it
        if output.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a graph being captured would replay the count for ever
        with torch.no_grad():
            zeros = output.numel() - torch.count_nonzero(output.detach())
        self._parts.append((zeros, output.numel()))

    def fraction(self) -> Tensor | None:
        if self.failed or not self._parts:
            return None
        home = self._parts[0][0].device
        total = sum(numel for _, numel in self._parts)
        with torch.no_grad():
            zeros = torch.stack([z.to(home, non_blocking=True) for z, _ in self._parts]).sum()
            # Not zeros / total: that takes the default dtype, which a user may have set to half.
            return zeros.to(torch.float32) / total

    # A model that is copied or pickled while armed (an average of the weights made in
    # training_step) must not carry the count along: its copy gets a hook that does nothing.
    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _no_hook, ()


def _is_being_traced() -> bool:
    """Whether this forward makes a graph: it would have the counting baked into it."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None  # noqa: SLF001 -- torch.jit.is_tracing is untyped and no export


def _nothing(*_: Any) -> None:
    """The hook that a copy of an armed module has."""


def _no_hook() -> Callable[..., None]:
    return _nothing


def _zeroing_modules(root: nn.Module) -> Iterator[nn.Module]:
    """Each module once, without those that are left alone and all inside them."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if id(module) in seen or left_alone(module):
            continue
        seen.add(id(module))
        if makes_zeros(module):
            yield module
        waiting.extend(module.children())


def left_alone(module: nn.Module) -> bool:
    """Whether a hook could change what it computes, or compile it anew; any thread."""
    if isinstance(module, _LEFT_ALONE):
        return True
    # Looked up, not imported: dynamo takes seconds to load and is there only if somebody compiles.
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return True
    own = vars(module)
    if own.get("_compiled_call_impl") is not None:  # module.compile()
        return True
    # A LightningModule given as torch.compile(module): the Trainer takes the wrapper off and
    # leaves this mark.
    if own.get("_compiler_ctx") is not None:
        return True
    return hasattr(module.forward, "_torchdynamo_orig_callable")
