"""Modules and optimizers to plain values and back; training thread.

Several modules are one model: what lies in a module is called by the module's name and its own,
with a dot between; the name of a module that is alone may be empty.

Rule 1: an object that is found twice has the name under which it was found first.
Rule 2: what ``take_…`` returns is plain (see ``plain_values``), what ``give_…`` gets is used up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.plain_values import Decoder, Encoder

Modules = Mapping[str, nn.Module]
Params = Mapping[str, torch.Tensor]
Shapes = Mapping[str, Sequence[int] | None]
LIGHTNING: Final = "Lightning"  # whose snapshots say no kind
_TOLD: Final = 5  # of the names that differ


def named_modules(modules: Modules) -> dict[str, nn.Module]:
    """Every module with those that lie in it."""
    return _first((name, module.named_modules()) for name, module in modules.items())


def named_parameters(modules: Modules) -> dict[str, nn.Parameter]:
    """Every parameter."""
    return _first((name, module.named_parameters()) for name, module in modules.items())


def named_buffers(modules: Modules) -> dict[str, torch.Tensor]:
    """Every buffer, also those that no state_dict has."""
    return _first((name, module.named_buffers()) for name, module in modules.items())


def _first(found: Iterable[tuple[str, Iterator[tuple[str, Any]]]]) -> dict[str, Any]:
    seen: set[int] = set()
    named: dict[str, Any] = {}
    for owner, items in found:
        for name, value in items:
            if id(value) not in seen:
                seen.add(id(value))
                named[joined(owner, name)] = value
    return named


def joined(owner: str, name: str) -> str:
    """What is called ``name`` in a module of this name; either may be empty."""
    return f"{owner}.{name}" if owner and name else owner or name


# Whether a snapshot is of this model.


def refuse_another_kind(exact: Any, kind: str, version: int) -> None:
    """Refuse the exact state of another framework, or of another version of it.

    Raises:
        CommandError: ``bad_payload``.
    """
    if not isinstance(exact, Mapping) or "format" not in exact:
        detail = f"A checkpoint with exact state of {kind} was asked for, found none."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
    found = exact.get("kind", LIGHTNING)
    if found != kind:
        detail = (
            f"The checkpoint is of {str(found)[:100]}, this run is of {kind}; allowed: one of its "
            "own; the run is as it was."
        )
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
    if exact["format"] != version:
        detail = (
            f"A checkpoint with exact state of format {version} was asked for, found "
            f"{exact['format']}."
        )
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)


def take_shapes(params: Params) -> dict[str, list[int] | None]:
    """The shape of each; None where the first forward will decide it."""
    return {name: None if is_lazy(p) else list(p.shape) for name, p in params.items()}


def refuse_another_model(saved: Shapes, params: Params) -> None:
    """Refuse the shapes of another model.

    Raises:
        CommandError: ``bad_payload``, with the names and shapes that differ.
    """
    here = take_shapes(params)
    there = {n: None if shape is None else list(shape) for n, shape in saved.items()}
    known = {n for n in here.keys() & there.keys() if here[n] is None or there[n] is None}
    differ = (n for n in here.keys() | there.keys() if here.get(n) != there.get(n))
    names = sorted(n for n in differ if n not in known)
    if not names:
        return
    told = ", ".join(
        f"{n} {there.get(n, 'none')} (here {here.get(n, 'none')})" for n in names[:_TOLD]
    )
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    detail = f"The checkpoint is of another model: {told}{more}; the run is as it was."
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail)


def refuse_another_number(what: str, saved: int, here: int) -> None:
    """Refuse a snapshot of more or fewer of something. Raises CommandError ``bad_payload``."""
    if saved != here:
        detail = f"The checkpoint has {saved} {what}, this run {here}; the run is as it was."
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)


def refuse_another_world(saved: int, here: int) -> None:
    """Refuse a snapshot of more or fewer ranks. Raises CommandError ``bad_payload``."""
    if saved != here:
        detail = (
            f"The checkpoint is of {_ranks(saved)}, this run has {_ranks(here)}; each goes on "
            "where it stood, so allowed: as many; the run is as it was."
        )
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)


def _ranks(n: int) -> str:
    return f"{n} rank{'s' * (n > 1)}"


# Optimizers.


def take_optimizers(
    optimizers: Iterable[torch.optim.Optimizer], params: Params
) -> list[dict[str, Any]]:
    """The parameters' names, group by group; the rest is in the optimizers' own state_dicts."""
    names = {p: name for name, p in params.items()}
    return [
        {
            "groups": [[names[p] for p in group["params"]] for group in optimizer.param_groups],
            # The step of most optimizers, wherever the parameters are.
            "on_host": sorted(
                {
                    key
                    for values in optimizer.state.values()
                    for key, value in values.items()
                    if isinstance(value, torch.Tensor) and value.is_cpu
                }
            ),
        }
        for optimizer in optimizers
    ]


def give_optimizers(
    optimizers: Iterable[torch.optim.Optimizer],
    saved: Iterable[Mapping[str, Any]],
    states: Iterable[Mapping[str, Any]],
    params: Params,
) -> None:
    """By name. Not load_state_dict: it casts to the parameter's dtype and refuses other groups.

    Args:
        saved: as take_optimizers returned it.
        states: the optimizers' state_dicts.
    """
    for optimizer, row, state in zip(optimizers, saved, states, strict=True):
        members = [[params[name] for name in names] for names in row["groups"]]
        live = optimizer.param_groups
        del live[len(members) :]
        live += [{} for _ in range(len(members) - len(live))]
        for group, own, of_group in zip(live, state["param_groups"], members, strict=True):
            values = {key: _where(group.get(key), v) for key, v in own.items() if key != "params"}
            group.clear()
            group.update({**values, "params": of_group})
        ordered = [param for of_group in members for param in of_group]
        optimizer.state.clear()
        for index, values in state["state"].items():
            param = ordered[index]
            optimizer.state[param] = {
                key: value if key in row["on_host"] else _where(param, value)
                for key, value in values.items()
            }


def _where(beside: Any, value: Any) -> Any:
    """The value on the device of what it belongs to."""
    if isinstance(value, torch.Tensor) and isinstance(beside, torch.Tensor):
        return value.to(beside.device)
    return value


# Of modules, what no state_dict has.


def take_buffers(modules: Modules, enc: Encoder, known: Iterable[str]) -> dict[str, Any]:
    """Those that are not ``known`` from the state_dict."""
    there = set(known)
    return {n: enc(b.detach()) for n, b in named_buffers(modules).items() if n not in there}


def give_buffers(modules: Modules, dec: Decoder, saved: Mapping[str, Any]) -> None:
    """Put back what take_buffers returned."""
    buffers = named_buffers(modules)
    with torch.no_grad():
        for name, value in saved.items():
            buffers[name].copy_(dec(value))


def take_requires_grad(params: Params) -> dict[str, bool]:
    """Which parameters are trained."""
    return {name: p.requires_grad for name, p in params.items()}


def give_requires_grad(params: Params, saved: Mapping[str, bool]) -> None:
    """Put back what take_requires_grad returned."""
    for name, p in params.items():
        p.requires_grad_(saved[name])


def take_gradients(params: Params, enc: Encoder) -> dict[str, Any]:
    """Those that are there."""
    return {name: enc(p.grad) for name, p in params.items() if p.grad is not None}


def give_gradients(params: Params, dec: Decoder, saved: Mapping[str, Any]) -> None:
    """Put back what take_gradients returned; where it has none there is none."""
    for name, p in params.items():
        p.grad = dec(saved[name]) if name in saved else None


def take_attributes(owners: Mapping[str, Any], enc: Encoder) -> dict[str, Any]:
    """The attributes that are state, of modules or of plain objects."""
    return {name: enc.attributes(owner) for name, owner in owners.items()}


def give_attributes(owners: Mapping[str, Any], dec: Decoder, saved: Mapping[str, Any]) -> None:
    """Put back what take_attributes returned, of those that are still there."""
    for name, owner in owners.items():
        if name in saved:
            dec.attributes(owner, saved[name])


def refuse_fixed_length(schedulers: Iterable[Any]) -> None:
    """Refuse to make a training longer than one of its schedules.

    Raises:
        CommandError: ``unsupported``; it would raise behind its last step.
    """
    for scheduler in schedulers:
        if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
            name = type(scheduler).__name__
            detail = f"extend was asked, but {name} has a fixed length; it would raise."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        refuse_fixed_length(getattr(scheduler, "_schedulers", ()))


def steps_left(schedulers: Iterable[Any]) -> int | None:
    """How often these can step before the first of fixed length raises; None: there is none."""
    found = [
        scheduler.total_steps - scheduler.last_epoch
        for scheduler in schedulers
        if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR)
    ]
    return min(found, default=None)


# What is read of an optimizer.


def params_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Those that it steps."""
    return (p for group in optimizer.param_groups for p in group["params"])


def rates_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[Any]:
    """The learning rate of every group that has one."""
    return [g["lr"] for o in optimizers for g in o.param_groups if "lr" in g]


# A table of parts.

T = TypeVar("T")
G = TypeVar("G")


@dataclasses.dataclass(frozen=True)
class Part(Generic[T, G]):
    """One part of a state.

    Attributes:
        capture: plain values, with what a capture works with; None for what is copied as it is.
        apply: puts them back, with what an apply works with.
    """

    name: str
    capture: Callable[[T], Any] | None
    apply: Callable[[G, Any], None]


def refuse_left_out(left_out: Iterable[str], needed: tuple[str, ...]) -> None:
    """Refuse to save without what must be in the file whole.

    Args:
        needed: how the names of it begin.

    Raises:
        CommandError: ``unsupported``.
    """
    for name in left_out:
        if name.startswith(needed):
            detail = f"Saving was asked, but {name} cannot be stored without pickle."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
