"""What of the user's own can be set: rates of dropout, declared attributes, hyperparameters.

Rule 1: what the training reads at each batch is listed by itself (the rate of a dropout) or where
the user says so (``otf_param``); what a model was built of cannot be told from what it reads, so
of ``save_hyperparameters()`` only numbers with a fraction are.
Rule 2: what is declared and not there is refused when training begins, never later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from otf_core.state.parts import Modules, named_modules
from otf_core.steering.declared import Declared, all_declared, value_of
from otf_core.steering.knobs import Effect, Knob, Owner, refused_knob
from otf_core.steering.options import OPTIONS

DROPOUT: Final = "model.dropout"
# Of libraries that are not asked for here: torchvision's and timm's stochastic depth.
_BY_NAME: Final = {"StochasticDepth": "p", "DropPath": "drop_prob"}


class Holder(NamedTuple):
    """An object whose attributes can be declared, in its own ``otf_params`` or in ``params=``.

    Attributes:
        effect: when what is set there is read, unless the declaration says otherwise.
        in_state: its attributes are a part of the training's state.
    """

    obj: Any
    owner: Owner
    effect: Effect
    in_state: bool = True


def of_module(module: Any) -> Holder:
    """A module's attributes are read in its steps."""
    return Holder(module, "model", "next batch")


def of_data(datamodule: Any) -> list[Holder]:
    """A data module's are read when loaders are made; workers have copies. None has none."""
    return [] if datamodule is None else [Holder(datamodule, "data", "next epoch")]


class Attributes:
    """Of one run; training thread.

    Args:
        holders: in the order in which a declaration is looked up.
        modules: those that are trained.
        given: ``params=``.
    """

    def __init__(
        self,
        holders: Callable[[], Sequence[Holder]],
        modules: Callable[[], Modules],
        given: Sequence[Declared] | None = None,
    ) -> None:
        self._holders, self._modules, self._given = holders, modules, given or ()

    def check(self) -> None:
        """Refuse what is declared and cannot be set; when training begins.

        Raises:
            TypeError, ValueError: by its name.
        """
        seen: set[str] = set()
        for declared, holder in self._declared():
            if declared.name in seen:
                msg = f"otf_param({declared.name!r}) was asked twice; allowed: each name once"
                raise ValueError(msg)
            seen.add(declared.name)
            declared.refuse_misfit(holder.obj)

    def knobs(self) -> dict[str, Knob]:
        """By path."""
        found = dropout_knobs(self._modules())
        for declared, holder in self._declared():
            knob = declared.knob(holder.obj, holder.owner, holder.effect, in_state=holder.in_state)
            if knob is not None:
                found[f"attr.{declared.name}"] = knob
        for holder in self._holders():
            for name, knob in _hyperparameters(holder):
                found.setdefault(f"hparams.{name}", knob)
        return found

    def _declared(self) -> Iterator[tuple[Declared, Holder]]:
        holders = self._holders()
        for holder in holders:
            own = getattr(holder.obj, "otf_params", None)
            if own is not None:
                where = f"{type(holder.obj).__name__}.otf_params"
                for declared in all_declared(own, where):
                    yield declared, holder if declared.of is None else _elsewhere(declared.of)
        for declared in self._given:
            yield declared, _found_in(holders, declared)


def _found_in(holders: Sequence[Holder], declared: Declared) -> Holder:
    """Where it lies; the first where it lies nowhere."""
    if declared.of is not None:
        return _elsewhere(declared.of)
    for holder in holders:
        try:
            value_of(holder.obj, declared.name)
        except (AttributeError, LookupError, TypeError):
            continue
        return holder
    return holders[0]


def _elsewhere(obj: Any) -> Holder:
    """An object of the script's: nobody puts it back but we."""
    return Holder(obj, "user", "next batch", in_state=False)


def _hyperparameters(holder: Holder) -> Iterator[tuple[str, Knob]]:
    # Not ``hparams``, which makes it where there is none.
    saved = vars(holder.obj).get("_hparams") if hasattr(holder.obj, "__dict__") else None
    if not isinstance(saved, dict):
        return
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, int | float | str):
            continue
        if name in OPTIONS or name == "learning_rate":
            allowed = "lr" if name == "learning_rate" else name
            yield name, refused_knob(f"An optimizer was made with it; allowed: {allowed}.")
        elif type(value) is not float:
            kind = type(value).__name__
            yield (
                name,
                refused_knob(
                    f"It is {kind}, of which a model is mostly built, and what is built stays; "
                    f'allowed: otf_param("hparams.{name}"), where the model reads it in its steps.'
                ),
            )
        else:
            declared = Declared(name)
            knob = declared.knob(saved, holder.owner, holder.effect, in_state=holder.in_state)
            if knob is not None:
                yield name, knob


def dropout_knobs(modules: Modules) -> dict[str, Knob]:
    """A rate for all, and each by the name of its module."""
    single: dict[str, Knob] = {}
    for name, module in named_modules(modules).items():
        attribute = _rate_of(module)
        if attribute is not None:
            single[f"{DROPOUT}.{name or 'itself'}"] = _rate_knob(module, attribute)
    if not single:
        return {}
    both = Knob(
        lambda: None, lambda _: None, 0.0, 1.0, owner="model", takes_effect="next batch",
        parts=tuple(single),
    )  # fmt: skip
    return {DROPOUT: both, **single}


def _rate_knob(module: nn.Module, attribute: str) -> Knob:
    return Knob(
        lambda: getattr(module, attribute),
        lambda value: setattr(module, attribute, value),
        low=0.0,
        high=1.0,
        owner="model",
        takes_effect="next batch",
        in_state=True,
    )


def _rate_of(module: nn.Module) -> str | None:
    """The attribute with the rate, which forward reads each time."""
    if isinstance(module, _DropoutNd):
        return "p"
    if isinstance(module, nn.MultiheadAttention) or (
        isinstance(module, nn.RNNBase) and module.num_layers > 1
    ):
        return "dropout"
    name = _BY_NAME.get(type(module).__name__)
    return name if name is not None and isinstance(getattr(module, name, None), float) else None
