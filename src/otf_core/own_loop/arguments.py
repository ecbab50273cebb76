"""What ``attach`` is given, looked at before anything of a run exists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn

from otf_core.state.loader_parts import has_own_state
from otf_core.state.training import Value

_Kind = TypeVar("_Kind")


def modules_of(model: Any) -> dict[str, nn.Module]:
    """The modules by name; the name of one that is alone is empty."""
    if isinstance(model, nn.Module):
        return {"": model}
    if not isinstance(model, Mapping) or not model:
        _refuse("model", model, "a Module, or a dict of them by name")
    for name, module in model.items():
        _name("model", name)
        if not isinstance(module, nn.Module):
            _refuse(f"model[{name!r}]", module, "a Module")
    return dict(model)


def optimizers_of(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The optimizers in the order given."""
    kind = "an Optimizer of torch"
    found = _several("optimizer", optimizer, torch.optim.Optimizer, kind)
    if not found:
        _refuse("optimizer", optimizer, f"{kind}, a list of them, or a dict of them by name")
    return list(found.values())


def schedulers_of(scheduler: Any) -> list[Any]:
    """The schedulers in the order given."""
    if has_own_state(scheduler):
        return [scheduler]
    kind = "a scheduler: an object with state_dict and load_state_dict"
    return list(_several("scheduler", scheduler, None, kind).values())


def loaders_of(name: str, loader: Any) -> dict[str, Any]:
    """The loaders by name, or by place."""
    if isinstance(loader, Mapping):
        return {str(key): value for key, value in loader.items()}
    if isinstance(loader, list | tuple) and all(_is_loader(each) for each in loader):
        return {f"{place}": each for place, each in enumerate(loader)}
    if loader is not None and not isinstance(loader, Iterable):
        _refuse(name, loader, "an iterable")
    return {} if loader is None else {"": loader}


def train_loader_of(loader: Any) -> Any:
    """The training loader as it is."""
    if isinstance(loader, Mapping) or (loader is not None and not isinstance(loader, Iterable)):
        _refuse("train_loader", loader, "an iterable of batches")
    if isinstance(loader, Iterator):
        _refuse("train_loader", loader, "one that can be read again for every epoch")
    return loader


def scaler_of(scaler: Any) -> Any:
    """The gradient scaler as it is."""
    if scaler is not None and not has_own_state(scaler):
        _refuse("scaler", scaler, "an object with state_dict and load_state_dict")
    return scaler


def function_of(name: str, function: Any) -> Callable[..., Any] | None:
    """``validate`` or ``test`` as it is."""
    if function is not None and not callable(function):
        _refuse(name, function, "a function that returns a number or a dict of them")
    return function  # type: ignore[no-any-return]


def takes_limit(function: Callable[..., Any]) -> bool:
    """Whether it can be told how many batches to look at."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # one written in C
        return False
    return "limit_batches" in parameters or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )


def epochs_of(max_epochs: Any) -> int | None:
    """A number of epochs, or None."""
    if max_epochs is None:
        return None
    if isinstance(max_epochs, bool) or not isinstance(max_epochs, int) or max_epochs < 0:
        _refuse("max_epochs", max_epochs, "a whole number of epochs, 0 or more")
    return max_epochs


def state_of(state: Any) -> tuple[dict[str, nn.Module], dict[str, Any], dict[str, Any]]:
    """Of ``state=`` the modules, the objects with a state_dict, the objects with attributes."""
    modules: dict[str, nn.Module] = {}
    objects: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    if state is not None and not isinstance(state, Mapping):
        _refuse("state", state, "a dict of objects by name")
    for name, value in (state or {}).items():
        _name("state", name)
        if isinstance(value, nn.Module):
            modules[name] = value
        elif has_own_state(value):
            objects[name] = value
        elif isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
            objects[name] = Value(*value)
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            plain[name] = value
        else:
            kinds = "a Module, an object with state_dict and load_state_dict, an object with "
            _refuse(f"state[{name!r}]", value, f"{kinds}attributes, or a pair (get, put)")
    return modules, objects, plain


def numbers_of(logged: Mapping[str, Any]) -> dict[str, Any]:
    """What ``tick`` is given to log; each value another object than before."""
    found: dict[str, Any] = {}
    for name, value in logged.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            found[name] = value.detach()
            continue
        try:
            found[name] = float(value) * 1.0  # a new one, also where it is the same number
        except (TypeError, ValueError, RuntimeError):
            msg = (
                f"tick was given {name}={repr(value)[:80]}; allowed: a number, or a tensor with one"
            )
            raise TypeError(msg) from None
    return found


def _is_loader(value: Any) -> bool:
    return isinstance(value, torch.utils.data.DataLoader)


def _several(name: str, given: Any, kind: type[_Kind] | None, said: str) -> dict[str, _Kind]:
    if given is None:
        return {}
    if kind is not None and isinstance(given, kind):
        return {"": given}
    if isinstance(given, Mapping):
        items: list[tuple[Any, Any]] = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        items = list(enumerate(given))
    else:
        _refuse(name, given, f"{said}, a list of them, or a dict of them by name")
    for key, value in items:
        if not (has_own_state(value) if kind is None else isinstance(value, kind)):
            _refuse(f"{name}[{key!r}]", value, said)
    return {str(key): value for key, value in items}


def _name(of: str, name: Any) -> None:
    if not isinstance(name, str) or not name or "." in name:
        msg = f"{of} was asked with the name {name!r}; allowed: text without a dot"
        raise TypeError(msg)


def _refuse(name: str, given: Any, allowed: str) -> NoReturn:
    msg = f"{name} was asked to be {type(given).__name__}; allowed: {allowed}"
    raise TypeError(msg)
