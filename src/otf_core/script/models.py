"""The table's rows for tensors, modules, optimizers, and what has a state_dict; see ``variables``.

By node, not by name: a script's optimizer may hold a bare tensor, and what is one parameter in
several models stays one.
"""

from __future__ import annotations

import collections
import functools
import sys
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from otf_core.script import graphs
from otf_core.script.frames import ABSENT
from otf_core.script.prints import attributes
from otf_core.script.variables import (
    Giving,
    Kind,
    Taking,
    class_name,
    give_attributes,
    made_again,
    take_attributes,
)
from otf_core.state.plain_checkpoint import SUB_BYTE
from otf_core.state.plain_values import NOT_STATE, TAG, Decoder, Encoder

_MODULE: Final = NOT_STATE | {"training"}
_OPTIMIZER: Final = frozenset({"state", "param_groups", "defaults", "step"})


# Tensors.


def _take_tensor(taking: Taking, value: torch.Tensor, path: str) -> dict[str, Any]:
    """All but the numbers, which ``copy_tensors`` puts in."""
    known = type(value) in (torch.Tensor, nn.Parameter) and value.layout is torch.strided
    if not known or value.is_quantized or value.is_meta or value.dtype in SUB_BYTE:
        taking.leave(path, value)
        return {}
    if value.grad_fn is not None and taking.first is not None:
        _tell_graph(taking, value, path)
    node: dict[str, Any] = {
        "d": str(value.device),
        "g": value.requires_grad and value.is_leaf,
        "p": isinstance(value, nn.Parameter),
        "a": take_attributes(taking, value, path, {n for n in vars(value) if n.startswith("_")}),
    }
    if value.is_leaf and (hooks := value._backward_hooks):  # noqa: SLF001 -- register_hook's
        node["h"] = [("", list(map(_hook, hooks.values())))]
    if value.is_leaf and value.grad is not None:
        if id(value) in taking.owned:
            taking.owned.add(id(value.grad))
        node["grad"] = taking(value.grad, f"{path}.grad")
    return node


def _tell_graph(taking: Taking, value: torch.Tensor, path: str) -> None:
    """Only the numbers of a tensor are stored, not how they came about."""
    lives_on = graphs.lives_on(value, taking.turn)
    if lives_on:
        taking.reasons.append(
            f"{path} is bound to earlier steps by its graph, which is not stored (detach it)"
        )
    elif lives_on is None:
        taking.left_out.setdefault(path, "graph of a Tensor")


def copy_tensors(taking: Taking) -> None:
    """The numbers of all tensors that were met; what shared memory with a whole one is its view."""
    whole: dict[int, tuple[int, torch.Tensor]] = {}
    for n, tensor, _ in taking.tensors.values():
        if taking.nodes[n].get("d") and _covers(tensor):
            at = tensor.untyped_storage().data_ptr()
            if at not in whole or id(tensor) in taking.owned:
                whole[at] = n, tensor
    for n, tensor, path in taking.tensors.values():
        node = taking.nodes[n]
        if "d" not in node:
            continue
        base, _ = whole.get(tensor.untyped_storage().data_ptr(), (n, tensor))
        if tensor.numel() and base != n:
            node["base"] = {TAG: "ref", "n": base}
            node["o"] = tensor.storage_offset()
            node["s"], node["t"] = tuple(tensor.shape), tensor.stride()
            node["y"] = tensor.dtype
            continue
        node["owned"] = id(tensor) in taking.owned
        print_ = None if node["owned"] else taking.large(tensor, path)
        if print_ is not None:
            node["again"] = print_
        else:
            node["v"] = taking.copy(tensor.detach())


def _covers(tensor: torch.Tensor) -> bool:
    """Whether a tensor is all of its memory."""
    size = tensor.numel() * tensor.element_size()
    return size > 0 and tensor.untyped_storage().nbytes() == size and tensor.storage_offset() == 0


def _make_tensor(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if "again" in node:
        return made_again(giving, node["again"], live)
    if "base" in node:
        return _make_view(giving, node, live)
    if "v" not in node:
        return live
    saved = node["v"]
    if not _can_be_filled(giving, node, live):
        if node["p"] and isinstance(live, nn.Parameter):
            giving.lose(f"a parameter of shape {tuple(saved.shape)}, here {tuple(live.shape)}")
        new = saved.to(node["d"], copy=True)
        return nn.Parameter(new, node["g"]) if node["p"] else new.requires_grad_(node["g"])
    with torch.no_grad():
        live.requires_grad_(node["g"]).copy_(saved)
    return live


def _can_be_filled(giving: Giving, node: dict[str, Any], live: Any) -> bool:
    saved = node["v"]
    if not isinstance(live, torch.Tensor) or isinstance(live, nn.Parameter) != node["p"]:
        return False
    kind = live.dtype, live.shape, str(live.device), live.layout
    if kind != (saved.dtype, saved.shape, node["d"], torch.strided) or live.grad_fn is not None:
        return False
    if node["owned"]:
        return True
    at = live.untyped_storage().data_ptr()
    if at in giving.protected or not (_covers(live) or not live.numel()):
        return False
    giving.protected.add(at)  # for what is met later
    return bool(live.stride() == saved.stride())


def _make_view(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    fits = isinstance(live, torch.Tensor) and isinstance(live, nn.Parameter) == node["p"]
    fits = fits and live.dtype == node["y"] and live.grad_fn is None
    new: torch.Tensor = live if fits else torch.empty(0, dtype=node["y"])
    if not fits and node["p"]:
        new = nn.Parameter(new)

    def see() -> None:
        base = giving(node["base"])
        there = base.detach().as_strided(node["s"], node["t"], node["o"])
        if (new.data_ptr(), new.shape, new.stride()) != (there.data_ptr(), there.shape, node["t"]):
            new.data = there
        new.requires_grad_(node["g"])

    giving.behind.append(see)
    return new


def _fill_tensor(giving: Giving, node: dict[str, Any], made: torch.Tensor) -> None:
    give_attributes(giving, node.get("a", ()), made, vars(made))
    if not made.is_leaf or "d" not in node:
        return
    hooks = made._backward_hooks  # noqa: SLF001 -- as above
    here = [("", list(map(_hook, hooks.values())))] if hooks else []
    _compare_hooks(giving, f"a tensor of shape {tuple(made.shape)}", node.get("h", []), here)
    if "grad" in node:
        grad = giving(node["grad"], made.grad if made.grad is not None else ABSENT)
        if grad is not made.grad:
            made.grad = grad
    elif made.grad is not None and "again" not in node:
        made.grad = None


# Modules.


def _take_module(taking: Taking, value: nn.Module, path: str) -> dict[str, Any]:
    for tensor in (*value._parameters.values(), *value._buffers.values()):  # noqa: SLF001 -- named_… leaves out what is shared
        if tensor is not None:
            taking.owned |= {id(tensor)}
            if tensor.is_leaf and tensor.grad is not None:
                taking.owned.add(id(tensor.grad))
    skip = _MODULE if not type(value).__module__.startswith("torch.") else None
    return {
        "c": class_name(type(value)),
        "t": value.training,
        **{
            table: [(name, taking(x, f"{path}.{name}")) for name, x in vars(value)[table].items()]
            for table in _TABLES
        },
        "n": sorted(vars(value)["_non_persistent_buffers_set"]),
        "h": _hooks_of(value),
        "a": take_attributes(taking, value, path, skip or _MODULE),
    }


_TABLES: Final = ("_parameters", "_buffers", "_modules")
_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _hooks_of(module: nn.Module) -> list[tuple[str, list[str]]]:
    """Which hooks run with a module, in their order."""
    tables = ((table, vars(module).get(table)) for table in _HOOKS)
    return [(table, list(map(_hook, hooks.values()))) for table, hooks in tables if hooks]


def _hook(hook: Any) -> str:
    """The name of a function, and where it stands; of an object that is called, its class."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    code = getattr(hook, "__code__", None)
    named = hook if hasattr(hook, "__qualname__") else type(hook)
    return f"{named.__qualname__}:{code.co_firstlineno}" if code else str(named.__qualname__)


def _make_module(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if class_name(type(live)) == node["c"]:
        return live
    kind = giving.own.find(node["c"]) or _of_torch(node["c"])
    if kind is None or not issubclass(kind, nn.Module) or kind.__new__ is not object.__new__:
        giving.lose(f"a {node['c'].rpartition(':')[2]}, made after this place")
        return ABSENT
    new = object.__new__(kind)
    nn.Module.__init__(new)
    return new


def _of_torch(name: str) -> type | None:
    module, _, path = name.partition(":")
    found = getattr(sys.modules.get(module), path, None) if module.startswith("torch.") else None
    return found if isinstance(found, type) else None


def _fill_module(giving: Giving, node: dict[str, Any], made: nn.Module) -> None:
    for table in _TABLES:
        live = vars(made)[table]
        new = {name: giving(saved, live.get(name, ABSENT)) for name, saved in node[table]}
        for name in live.keys() - new.keys():
            del live[name]
        for name, value in new.items():
            if value is ABSENT:
                giving.lose(f"{type(made).__name__}.{name}")
            elif value is not live.get(name, ABSENT):
                live[name] = value
    vars(made)["_non_persistent_buffers_set"] = set(node["n"])
    made.training = node["t"]
    _compare_hooks(giving, f"a {type(made).__name__}", node["h"], _hooks_of(made))
    give_attributes(giving, node["a"], made, _MODULE)


def _compare_hooks(giving: Giving, of: str, was: Any, here: Any) -> None:
    if [(table, list(names)) for table, names in was] != here:
        told = ["; ".join(", ".join(names) for _, names in each) or "none" for each in (was, here)]
        giving.lose(f"the hooks of {of}: they were {told[0]}, and are {told[1]} here")


# The handle of a hook: of a module's or a tensor's.


def _take_handle(_: Taking, value: RemovableHandle, _path: str) -> dict[str, Any]:
    return {"hook": _hook_of(value)}


def _hook_of(handle: RemovableHandle) -> str | None:
    hooks = handle.hooks_dict_ref()
    found = hooks.get(handle.id) if hooks is not None else None
    return _hook(found) if found is not None else None


def _make_handle(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    here = _hook_of(live) if isinstance(live, RemovableHandle) else ABSENT
    if here == node["hook"]:
        return live
    if node["hook"] is None:
        return RemovableHandle(collections.OrderedDict())  # it removes nothing any more
    giving.lose(f"the handle of the hook {node['hook']}, registered after this place")
    return live


# Optimizers.


def _is_optimizer(_: Taking, value: Any) -> bool:
    return issubclass(type(value), torch.optim.Optimizer) and "param_groups" in vars(value)


def _take_optimizer(taking: Taking, value: torch.optim.Optimizer, path: str) -> dict[str, Any]:
    for state in value.state.values():
        taking.owned |= {id(x) for x in _tensors_in(state)}
    for group in value.param_groups:
        taking.owned |= {id(p) for p in group["params"]}
    skip = {n for n in attributes(value) if n in _OPTIMIZER or n.startswith("_optimizer_")}
    return {
        "c": class_name(type(value)),
        "groups": taking(value.param_groups, f"{path}.param_groups"),
        "state": [
            (taking(param, f"{path}.state key"), taking(state, f"{path}.state"))
            for param, state in value.state.items()
        ],
        "a": take_attributes(taking, value, path, skip),
    }


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for v in parts for t in _tensors_in(v)] if isinstance(value, dict | list) else []


def _fill_optimizer(giving: Giving, node: dict[str, Any], made: torch.optim.Optimizer) -> None:
    giving(node["groups"], made.param_groups)
    give_attributes(giving, node["a"], made, vars(made).keys())
    # The parameters are to be met where they lie: what is there is filled in place.
    giving.late.append(lambda: _fill_states(giving, node, made))


def _fill_states(giving: Giving, node: dict[str, Any], made: torch.optim.Optimizer) -> None:
    live = dict(made.state)
    for param, state in node["state"]:
        key = giving(param)
        made.state[key] = giving(state, live.get(key, ABSENT))
        live.pop(key, None)
    for key in live:
        del made.state[key]


def _make_optimizer(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if class_name(type(live)) == node["c"]:
        return live
    giving.lose(f"a {node['c'].rpartition(':')[2]}, made after this place")
    return live


# What knows its own state.


def _is_stateful(taking: Taking, value: Any) -> bool:
    kind = type(value)
    has = hasattr(kind, "state_dict") and hasattr(kind, "load_state_dict")
    if issubclass(kind, torch.optim.Optimizer):
        return False  # it wraps one, which is found inside
    return has and not isinstance(value, type) and not taking.own.cls(kind)


def _take_stateful(taking: Taking, value: Any, path: str) -> dict[str, Any] | None:
    enc = Encoder()
    try:
        state = value.state_dict()
    except Exception:  # noqa: BLE001 -- border: the script did not call it, and must not see it
        inside = attributes(value).values()
        if not any(issubclass(type(x), DataLoader) for x in inside):  # which knows its place
            taking.leave(path, value)
        return None
    saved = enc.tree(state, path)
    for left in enc.unknown:
        name, _, kind = left.partition(": ")
        taking.left_out.setdefault(name, kind)
    node = {"c": class_name(type(value)), "v": None if saved is Ellipsis else saved}
    if node["c"] in _SCHEDULERS:
        node["of"] = taking(value.optimizer, f"{path}.optimizer")
    return node


# Those of which state_dict has all but the optimizer: they can be made.
_SCHEDULERS: Final = frozenset(
    {
        "torch.optim.swa_utils:SWALR",
        *(
            f"torch.optim.lr_scheduler:{name}"
            for name in (
                "StepLR",
                "MultiStepLR",
                "ConstantLR",
                "LinearLR",
                "ExponentialLR",
                "PolynomialLR",
                "CosineAnnealingLR",
                "CosineAnnealingWarmRestarts",
                "ReduceLROnPlateau",
            )
        ),
    }
)


def _make_stateful(giving: Giving, node: dict[str, Any], live: Any) -> Any:
    if class_name(type(live)) == node["c"]:
        return live
    if node["c"] in _SCHEDULERS and (kind := _of_torch(node["c"])) is not None:
        return object.__new__(kind)
    giving.lose(f"a {node['c'].rpartition(':')[2]}, made after this place")
    return live


def _fill_stateful(giving: Giving, node: dict[str, Any], made: Any) -> None:
    if node["v"] is not None and class_name(type(made)) == node["c"]:
        made.load_state_dict(Decoder()(node["v"]))
    if "of" in node and not hasattr(made, "optimizer"):
        # It is to be met where it lies.
        giving.late.append(lambda: setattr(made, "optimizer", giving(node["of"])))


MODELS: Final = (
    Kind(
        "tensor",
        lambda _, x: issubclass(type(x), torch.Tensor),
        _take_tensor,
        _make_tensor,
        _fill_tensor,
    ),
    Kind(
        "module",
        lambda _, x: issubclass(type(x), nn.Module),
        _take_module,
        _make_module,
        _fill_module,
    ),
    Kind("handle", lambda _, x: type(x) is RemovableHandle, _take_handle, _make_handle),
    Kind("optimizer", _is_optimizer, _take_optimizer, _make_optimizer, _fill_optimizer),
    Kind("stateful", _is_stateful, _take_stateful, _make_stateful, _fill_stateful),
)
