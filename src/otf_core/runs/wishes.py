"""What somebody wants of a fork, read from its payload; plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import Fork, SetParam

# What the extension's form is filled with. It sends them always, so nobody may have meant them.
FORM: Final[Mapping[str, float]] = MappingProxyType({"lr": 0.001, "batch_size": 32, "patience": 5})
FACTORS: Final = MappingProxyType({"lr_mul": "lr", "wd_mul": "weight_decay"})
VALUES: Final = MappingProxyType({"lr": "lr", "wd": "weight_decay"})
COUNTS: Final = ("batch_size", "patience", "steps", "epochs")


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is to be other in a fork than in its parent.

    Attributes:
        params: values to be set, in this order.
        steps, epochs: how long it trains; None for both: as long as its parent would.
        patience: it ends after so many validations without a better loss.
        told: a sentence for each value that was given and is not applied.
    """

    params: tuple[SetParam, ...] = ()
    batch_size: int | None = None
    patience: int | None = None
    steps: int | None = None
    epochs: int | None = None
    told: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: Fork, *, legacy: bool) -> Wishes:
        """Read a payload.

        Args:
            legacy: a value that equals the filling of that dashboard's form is not applied.

        Raises:
            CommandError: ``bad_payload``, with the field.
        """
        given = {**{name: getattr(asked, name) for name in COUNTS}, **(asked.hparams or {})}
        told: list[str] = []
        if legacy:
            for name, filling in FORM.items():
                if given.get(name) is not None and given[name] == filling:
                    told.append(f"{name} {filling:g} is what the form is filled with: not applied")
                    del given[name]
                elif given.get(name) is not None:
                    told.append(f"{name} {given[name]} was typed: applied")
        params = [SetParam(path=path, value=value) for path, value in (asked.params or {}).items()]
        for name, value in given.items():
            if value is None or name in COUNTS:
                continue
            if name in FACTORS:
                params.append(SetParam(path=FACTORS[name], mul=_number(name, value)))
            elif name in VALUES:
                params.append(SetParam(path=VALUES[name], value=_number(name, value)))
            else:
                told.append(f"{name} is not known: not applied")
        counts = {name: count(name, given.get(name)) for name in COUNTS}
        return cls(tuple(params), told=tuple(told), **counts)


def _number(name: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    detail = f"{name} was asked to be {value!r}; allowed: a number."
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=f"hparams.{name}")


def count(name: str, value: Any) -> int | None:
    """A number of steps or the like. Raises CommandError ``bad_payload`` where it is none."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    detail = f"{name} was asked to be {value!r}; allowed: 1 or more."
    raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field=name, allowed={"min": 1})
