"""What a check looks at, and how the run is afterwards as it was; training thread.

Parked beside what ``state.parked`` does: gradients, weights (a training step may move the average
of a teacher), ``requires_grad``, the optimizers' groups, and what samplers and data sets keep. No
optimizer steps: whoever tries is refused by name. A module's attribute that cannot be parked and
has changed is told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from otf_core.errors import CommandError, ErrorCode
from otf_core.health.data import parts_of
from otf_core.state.loader_parts import has_own_state, same
from otf_core.state.parts import (
    Modules,
    give_attributes,
    give_requires_grad,
    named_buffers,
    named_modules,
    named_parameters,
    params_of,
    take_attributes,
    take_requires_grad,
)
from otf_core.state.plain_values import Decoder, Encoder, UnsupportedValueError
from otf_core.state.watched import Watched, unknown_of


class Subject(Protocol):
    """A training, as plain things of torch.

    Attributes:
        modules: by name; one alone may have an empty one.
        optimizers: by name.
        loaders: those of the training.
        others: plain objects that a training step may change: a data module, schedules.
        device: where a training step computes.
        history: the losses so far, oldest first: step and value.
        loss_scale: what a loss is multiplied by before it is propagated back; 1 without a scaler.
        not_state: attributes of the modules that are not state.
        world_size: ranks that train together.
        rank: this one's.
        why_no_step: why no training step can be run without stepping an optimizer, or None.
    """

    @property
    def modules(self) -> Modules: ...
    @property
    def optimizers(self) -> Mapping[str, Optimizer]: ...
    @property
    def loaders(self) -> Sequence[Any]: ...
    @property
    def others(self) -> Mapping[str, Any]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def history(self) -> Sequence[tuple[int, float]]: ...
    @property
    def loss_scale(self) -> float: ...
    @property
    def world_size(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def not_state(self) -> frozenset[str]: ...
    @property
    def why_no_step(self) -> str | None: ...

    def batches(self) -> Iterator[Any]:
        """Training batches of a pass of its own, as the loader gives them."""
        ...

    def to_device(self, batch: Any) -> Any:
        """As the training does it."""
        ...

    def loss_of(self, batch: Any) -> torch.Tensor | None:
        """The module's own training step, with a graph; None where it skips the batch."""
        ...

    def parked(self) -> contextlib.AbstractContextManager[None]:
        """What happens inside leaves no trace in what the framework drives; see state.parked."""
        ...


class Trace:
    """What a check could not help leaving; filled when it is over.

    Attributes:
        changed: attributes of modules that it has changed and cannot put back.
    """

    def __init__(self) -> None:
        self.changed: list[str] = []

    def lines(self) -> list[str]:
        """For a person; empty where there is nothing."""
        return [f"Changed by this check, and cannot be put back: {n}" for n in self.changed]


def need_step(subject: Subject) -> None:
    """Refuse what cannot run a training step alone. Raises CommandError ``unsupported``."""
    if subject.why_no_step is not None:
        detail = f"A training step was asked for a check; {subject.why_no_step}."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)


@contextlib.contextmanager
def undisturbed(subject: Subject) -> Iterator[Trace]:
    """What happens inside leaves the run as it was, also where it raises.

    Takes the memory of the weights once more, on the host where they lie on a device.

    Raises:
        CommandError: ``unsupported``, the first forward has yet to make parameters, or the
            training step has stepped an optimizer.
    """
    params = named_parameters(subject.modules)
    tensors = {**params, **named_buffers(subject.modules)}
    if (lazy := next((n for n, t in tensors.items() if is_lazy(t)), None)) is not None:
        detail = f"A check was asked, but {lazy} is made by the first forward; allowed: after it."
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    trace = Trace()
    with _watched(subject, trace), subject.parked(), _others(subject):  # noqa: SIM117 -- two thoughts
        with _weights(params), _gradients(params), _groups(subject.optimizers.values()):
            with _no_step(params.values()), torch.enable_grad():
                yield trace


@contextlib.contextmanager
def _others(subject: Subject) -> Iterator[None]:
    """What samplers and data sets keep, and what the plain objects around do."""
    objects = dict(subject.others)
    for number, loader in enumerate(subject.loaders):
        objects |= {f"loader {number}.{name}": part for name, part in parts_of(loader).items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(parked_objects(objects, skip=subject.not_state, small=True))
        for other in subject.others.values():
            stack.enter_context(_own_state(other))
        yield


@contextlib.contextmanager
def _own_state(obj: Any) -> Iterator[None]:
    """Of who says himself what his state is, where it can be stored."""
    before: Any = None
    if has_own_state(obj):
        with contextlib.suppress(UnsupportedValueError):
            before = Encoder()(obj.state_dict())
    try:
        yield
    finally:
        if before and not same(before, Encoder()(obj.state_dict())):
            obj.load_state_dict(Decoder()(before))


@contextlib.contextmanager
def _watched(subject: Subject, trace: Trace) -> Iterator[None]:
    """Told is what has changed, of the attributes that nobody can put back."""
    watched = Watched()
    modules = named_modules(subject.modules)
    owners: list[tuple[str, Any]] = [
        (called(name, module), module) for name, module in modules.items()
    ]
    owners += list(subject.others.items())
    parked = [id(each) for each in (*modules.values(), *subject.optimizers.values())]

    def look() -> None:
        unknown = unknown_of(owners, skip=subject.not_state, elsewhere=parked)
        watched.look(unknown, lambda: owners)

    look()
    yield
    look()
    trace.changed = [reason.partition(" changes,")[0] for reason in watched.reasons()]


@contextlib.contextmanager
def _weights(params: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Values, and which are trained."""
    trained = take_requires_grad(params)
    values = {name: p.detach().to("cpu", copy=True) for name, p in params.items()}
    try:
        yield
    finally:
        give_requires_grad(params, trained)
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(values[name])


@contextlib.contextmanager
def _gradients(params: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Aside, so that nothing is added to them."""
    own = {name: p.grad for name, p in params.items()}
    for p in params.values():
        p.grad = None
    try:
        yield
    finally:
        for name, p in params.items():
            p.grad = own[name]


@contextlib.contextmanager
def _groups(optimizers: Any) -> Iterator[None]:
    """A training step may write its learning rate by hand."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    own = [{k: _copied(v) for k, v in group.items() if k != "params"} for group in groups]
    try:
        yield
    finally:
        for group, values in zip(groups, own, strict=True):
            for name, (live, value) in values.items():
                if isinstance(live, torch.Tensor):
                    with torch.no_grad():
                        live.copy_(value)
                group[name] = live


def _copied(value: Any) -> tuple[Any, Any]:
    return value, value.detach().clone() if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def _no_step(params: Any) -> Iterator[None]:
    ours = {id(p) for p in params}

    def refuse(optimizer: Optimizer, *_: Any) -> None:
        if any(id(p) in ours for p in params_of(optimizer)):
            name = type(optimizer).__name__
            detail = (
                f"A training step was asked for a check, but it steps {name} itself, which a "
                "check never does; the run is as it was."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def parked_objects(
    objects: Mapping[str, Any], *, skip: Iterable[str] = (), small: bool = False
) -> Iterator[None]:
    """The attributes of plain objects that are state are afterwards what they were.

    Args:
        small: what is large, and tensors, are data and are left alone.
    """
    own = frozenset(skip)
    taken = take_attributes(objects, Encoder(lambda t: t.clone(), skip=own, small=small))
    try:
        yield
    finally:
        give_attributes(objects, Decoder(skip=own, small=small), taken)


def propagate_back(subject: Subject, loss: torch.Tensor) -> None:
    """Have the gradients of a loss in ``grad`` of the parameters; those of this rank alone.

    Where several ranks train, what brings their gradients together hangs on the accumulation into
    ``grad``, and would wait for the others: it is not run.

    Raises:
        CommandError: ``unsupported``; a part of the model has no gradients without it.
    """
    scaled = loss * subject.loss_scale
    if subject.world_size == 1:
        scaled.backward()  # type: ignore[no-untyped-call]
        return
    if _hides_a_part(scaled):
        detail = (
            "Gradients of one rank alone were asked; those of what is checkpointed with "
            "use_reentrant=True are not to be had; allowed: use_reentrant=False."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail)
    params = [p for p in named_parameters(subject.modules).values() if p.requires_grad]
    for p, found in zip(
        params, torch.autograd.grad(scaled, params, allow_unused=True), strict=True
    ):
        p.grad = found


def _hides_a_part(loss: torch.Tensor) -> bool:
    """Whether ``torch.utils.checkpoint`` has put a part of the graph out of sight."""
    todo: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith("CheckpointFunction"):
            return True
        seen.add(node)
        todo += [inner for inner, _ in node.next_functions]
    return False


def forget_gradients(subject: Subject) -> None:
    """Those of a check; the run's own are aside."""
    for p in named_parameters(subject.modules).values():
        p.grad = None


def layers_of(modules: Modules) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of each layer, under the layer's name; each parameter once."""
    owner: dict[int, str] = {}
    for name, module in named_modules(modules).items():
        for own in module.parameters(recurse=False):
            owner.setdefault(id(own), name)
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, p in named_parameters(modules).items():
        found.setdefault(owner[id(p)], {})[name] = p
    return found


def called(name: str, module: nn.Module) -> str:
    """What a module is called for a person: the one without a name by its class."""
    return name or type(module).__name__
