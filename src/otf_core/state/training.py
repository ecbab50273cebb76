"""The whole state of a training that no framework's checkpoint holds, bit for bit: captured and
applied in place, between two batches; training thread.

Rule 1: a training is made of named ``Pieces``. Whoever drives it keeps them up to date.
Rule 2: ``PARTS`` is the table of what the state is, in the order in which it is put back. RNG come
last, iterators last but one: whatever comes before may draw.
Rule 3: nothing of the training is touched before ``check`` has found the snapshot fit for it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from otf_core.control.delegate import Applied
from otf_core.state import parts, watched
from otf_core.state.data_tap import reasons, tap
from otf_core.state.exactness import of_kernels
from otf_core.state.given import Given, Settled, given, settle_in, unchanged
from otf_core.state.host_copy import sizes_of
from otf_core.state.host_pool import HostPool
from otf_core.state.loader_parts import length_of, nested, samplers
from otf_core.state.parts import Part
from otf_core.state.plain_checkpoint import loadable
from otf_core.state.plain_values import Decoder, Encoder
from otf_core.state.reading import Reading, between, go_between, settle
from otf_core.state.rng import get_rng, set_rng

FORMAT: Final = 1
# Of what is copied whole, what must be in the file.
NEEDED: Final = ("state_dict", "optimizer_states", "lr_schedulers", "scaler")
# Attributes of every optimizer that are not its own state. Listed, not read from one: making one
# here would be taken for the script's.
OPTIMIZER_OWN: Final = frozenset(
    {
        "defaults",
        "param_groups",
        "state",
        "step",
        "zero_grad",
        "_optimizer_step_pre_hooks",
        "_optimizer_step_post_hooks",
        "_optimizer_state_dict_pre_hooks",
        "_optimizer_state_dict_post_hooks",
        "_optimizer_load_state_dict_pre_hooks",
        "_optimizer_load_state_dict_post_hooks",
        "_warned_capturable_if_run_uncaptured",
        "_zero_grad_profile_name",
    }
)


@dataclasses.dataclass
class Pieces:
    """What a training is made of, each by the name that the script gave it.

    Attributes:
        kind: whose training it is, for a person; a snapshot of another kind is refused.
        modules: one that is alone may be called ``""``, so that its checkpoint is as if it had
            saved itself.
        schedulers: whatever has ``state_dict`` and ``load_state_dict`` and is stepped.
        objects: others with ``state_dict`` and ``load_state_dict``.
        plain: objects whose attributes are state.
        data: objects whose attributes are state, but for tensors and large containers.
        readings: the training loaders.
        loaders: those of the validation.
        counters, set_counters: plain values by name, and the way back.
        gradients: whether anything may still read those of the batch that is done.
        device: where it trains.
        deterministic: how its kernels are made so, for a person.
        skip: attributes of the modules that are not state.
    """

    kind: str
    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer] = ()
    schedulers: Sequence[Any] = ()
    scaler: Any = None
    objects: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    readings: Mapping[str, Reading] = dataclasses.field(default_factory=dict)
    loaders: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    counters: Callable[[], Mapping[str, Any]] = dict
    set_counters: Callable[[Mapping[str, Any]], None] = lambda _: None
    gradients: Callable[[], bool] = lambda: True
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    deterministic: str = "torch.use_deterministic_algorithms(True)"
    skip: frozenset[str] = frozenset()

    def all_loaders(self) -> Iterator[tuple[str, Any]]:
        """Those of training and validation; one that is both comes once."""
        yield from ((name, reading.loader) for name, reading in self.readings.items())
        trains = [reading.loader for reading in self.readings.values()]
        for name, loader in self.loaders.items():
            if not any(loader is known for known in trains):
                yield name, loader

    def parameters(self) -> dict[str, torch.Tensor]:
        """Those of the modules, and those that only an optimizer knows."""
        named: dict[str, torch.Tensor] = {**parts.named_parameters(self.modules)}
        known = {id(p) for p in named.values()}
        for i, optimizer in enumerate(self.optimizers):
            for g, group in enumerate(optimizer.param_groups):
                for k, p in enumerate(group["params"]):
                    if id(p) not in known:
                        known.add(id(p))
                        named[f"optimizer {i}.{g}.{k}"] = p
        return named

    def loose(self) -> dict[str, torch.Tensor]:
        """Parameters that are in no module."""
        of_modules = {id(p) for p in parts.named_parameters(self.modules).values()}
        return {n: p for n, p in self.parameters().items() if id(p) not in of_modules}


class Value:
    """A value of the script's own, as an object with a state.

    Args:
        get: returns it.
        put: takes it back.
    """

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
        self._get, self._put = get, put

    def state_dict(self) -> dict[str, Any]:
        """The value."""
        return {"value": self._get()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back; one that could not be stored stays as it is."""
        if "value" in state:
            self._put(state["value"])


@dataclasses.dataclass
class Taking:
    """What a capture works with; one for all parts, so that what is shared stays shared."""

    pieces: Pieces
    whole: Mapping[str, Any]  # what is copied as it is, live
    enc: Encoder
    rng: dict[str, Any]


@dataclasses.dataclass
class Giving:
    """What an apply works with.

    Attributes:
        again: the iterators are there already.
    """

    pieces: Pieces
    whole: Mapping[str, Any]
    dec: Decoder
    again: bool
    differ: list[Settled] = dataclasses.field(default_factory=list)


class TrainingState:
    """Captures a training, and puts it back in place.

    Args:
        pieces: read anew each time; its validation loaders are tapped here.
    """

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces
        for loader in pieces.loaders.values():
            tap(loader)
        self._watched = watched.Watched()
        self._left_out: list[str] = []
        self._given: dict[str, Given] = _given(pieces)

    def capture(self, pool: HostPool | None = None) -> dict[str, Any]:
        """A whole checkpoint with the exact state under ``otf``; a host copy.

        Raises:
            CommandError: ``unsupported``; a part that must be there cannot be stored.
        """
        rng, pieces = get_rng(), self.pieces
        whole = _whole(pieces)
        enc = Encoder(pool.copy if pool is not None else None, skip=pieces.skip)
        taking = Taking(pieces, whole, enc, rng)
        exact = {part.name: part.capture(taking) for part in PARTS if part.capture is not None}
        copied, left_out = loadable(whole, "", pool)
        left_out = [name.removeprefix(".") for name in left_out]
        parts.refuse_left_out(left_out, NEEDED)
        exact |= {
            "format": FORMAT,
            "kind": pieces.kind,
            "unknown": enc.unknown,
            "apart": enc.apart,
            "given": {name: unchanged(first, exact[name]) for name, first in self._given.items()},
        }
        self._left_out = watched.left_out(enc.unknown, enc.apart)
        set_rng(rng)  # the user's state_dicts on the way may have drawn
        return {**copied, "otf": {"exact": exact}}

    def sizes(self) -> list[tuple[int, bool]]:
        """Of weights, optimizer states and gradients, which are nearly all of a checkpoint."""
        whole, pieces = _whole(self.pieces), self.pieces
        grads = [p.grad for p in pieces.parameters().values()] if pieces.gradients() else []
        return sizes_of([whole["state_dict"], whole["optimizer_states"], grads])

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse a snapshot of another training; nothing is touched.

        Raises:
            CommandError: ``bad_payload``, with what differs.
        """
        pieces = self.pieces
        exact: Any = (state.get("otf") or {}).get("exact")
        parts.refuse_another_kind(exact, pieces.kind, FORMAT)
        parts.refuse_another_model(exact["parameters"], pieces.parameters())
        for what, saved, here in (
            ("optimizers", len(exact["optimizers"]), len(pieces.optimizers)),
            ("learning-rate schedules", len(state["lr_schedulers"]), len(pieces.schedulers)),
            ("gradient scalers", "scaler" in state, pieces.scaler is not None),
            ("training loaders", len(exact["positions"]["train"]), len(pieces.readings)),
        ):
            parts.refuse_another_number(what, int(saved), int(here))

    def apply(self, state: dict[str, Any], *, again: bool = False) -> Applied:
        """Put a snapshot back in place that ``check`` has found fit; it is used up by it.

        Args:
            again: the same snapshot has been put back before, nothing was trained since, and the
                iterators of the training loaders are those that were made then.
        """
        exact: dict[str, Any] = state["otf"]["exact"]
        differ = [] if again else settle_in(exact, self._given)
        giving = Giving(self.pieces, state, Decoder(skip=self.pieces.skip), again, differ)
        for part in PARTS:
            part.apply(giving, exact.get(part.name))
        return Applied(
            [f"{what} could not be put back" for what in giving.dec.unknown],
            [sentence for each in giving.differ for sentence in each.told_text],
            [sentence for each in giving.differ for sentence in each.told_numbers],
        )

    @contextlib.contextmanager
    def small_parts_aside(self) -> Iterator[None]:
        """What an evaluation of the user's own may touch beside the modules is put back."""
        pieces = self.pieces
        taking = Taking(pieces, {}, Encoder(skip=pieces.skip), {})
        schedules = [copy.deepcopy(s.state_dict()) for s in pieces.schedulers]
        # A schedule writes its rate there.
        groups = [group for o in pieces.optimizers for group in o.param_groups]
        values = [{k: _of_its_own(v) for k, v in g.items() if k != "params"} for g in groups]
        small = [part for part in PARTS if part.name in ASIDE]
        saved = {part.name: part.capture(taking) for part in small if part.capture is not None}
        try:
            yield
        finally:
            whole = {"lr_schedulers": schedules}
            giving = Giving(pieces, whole, Decoder(skip=pieces.skip), again=False)
            for part in small:
                part.apply(giving, saved.get(part.name))
            for group, before in zip(groups, values, strict=True):
                _put_back(group, before)

    def exactness(self) -> tuple[list[str], list[str]]:
        """Why a resume will not be exact, and what is left out and may matter."""
        pieces = self.pieces
        why = [
            f"{type(loader).__name__}: {reason}"
            for _, loader in pieces.all_loaders()
            for reason in reasons(loader)
        ]
        why += of_kernels(pieces.device, pieces.deterministic)
        unknown = watched.unknown_of(
            _owners(pieces), skip=pieces.skip, elsewhere=_kept_elsewhere(pieces)
        )
        untold = self._watched.look(unknown, lambda: _owners(pieces))
        return [*why, *self._watched.reasons()], [*untold, *self._left_out]

    def environment(self) -> dict[str, Any]:
        """Batches of an epoch, where they are known; see ``ControlDelegate.environment``."""
        lengths = [length_of(reading.loader) for reading in self.pieces.readings.values()]
        return {"data": lengths[0]} if len(lengths) == 1 and lengths[0] is not None else {}


def _whole(pieces: Pieces) -> dict[str, Any]:
    """What is copied as it is: as the script would have saved it itself."""
    whole = {
        "state_dict": _state_dict(pieces.modules),
        "optimizer_states": [optimizer.state_dict() for optimizer in pieces.optimizers],
        "lr_schedulers": [scheduler.state_dict() for scheduler in pieces.schedulers],
    }
    if pieces.scaler is not None:
        whole["scaler"] = pieces.scaler.state_dict()
    return whole


def _state_dict(modules: Mapping[str, nn.Module]) -> Mapping[str, Any]:
    if "" in modules and len(modules) == 1:
        return modules[""].state_dict()
    return {name: module.state_dict() for name, module in modules.items()}


def _give_state_dict(giving: Giving, _: Any) -> None:
    modules, saved = giving.pieces.modules, giving.whole["state_dict"]
    if "" in modules and len(modules) == 1:
        modules[""].load_state_dict(saved)
        return
    for name, module in modules.items():
        module.load_state_dict(saved[name])


def _known(pieces: Pieces, state_dict: Mapping[str, Any]) -> list[str]:
    """The names, as a buffer has them, of what the state_dicts have."""
    if "" in pieces.modules and len(pieces.modules) == 1:
        return list(state_dict)
    return [parts.joined(name, key) for name, own in state_dict.items() for key in own]


def _take_loose(taking: Taking) -> dict[str, Any]:
    return {name: taking.enc(p.detach()) for name, p in taking.pieces.loose().items()}


def _give_loose(giving: Giving, saved: Any) -> None:
    with torch.no_grad():
        for name, p in giving.pieces.loose().items():
            p.copy_(giving.dec(saved[name]))


def _take_objects(taking: Taking) -> dict[str, Any]:
    found = {n: taking.enc.tree(o.state_dict(), n) for n, o in taking.pieces.objects.items()}
    return {name: value for name, value in found.items() if value is not Ellipsis}


def _give_objects(giving: Giving, saved: Any) -> None:
    for name, owner in giving.pieces.objects.items():
        if name in saved:
            owner.load_state_dict(giving.dec(saved[name]))


def _give_scaler(giving: Giving, _: Any) -> None:
    if giving.whole.get("scaler"):  # that of a scaler which is off is empty
        giving.pieces.scaler.load_state_dict(giving.whole["scaler"])


def _give_schedulers(giving: Giving, _: Any) -> None:
    for scheduler, state in zip(
        giving.pieces.schedulers, giving.whole["lr_schedulers"], strict=True
    ):
        scheduler.load_state_dict(state)


def _give_optimizers(giving: Giving, saved: Any) -> None:
    pieces, states = giving.pieces, giving.whole["optimizer_states"]
    parts.give_optimizers(pieces.optimizers, saved, states, pieces.parameters())


def _optimizers(pieces: Pieces) -> dict[str, Any]:
    return {f"{i}:{type(o).__qualname__}": o for i, o in enumerate(pieces.optimizers)}


def _take_of_optimizers(taking: Taking) -> dict[str, Any]:
    # Not the state, which is keyed by the parameters.
    return parts.take_attributes(_optimizers(taking.pieces), Encoder(skip=OPTIMIZER_OWN))


def _give_of_optimizers(giving: Giving, saved: Any) -> None:
    dec = Decoder(skip=OPTIMIZER_OWN)
    parts.give_attributes(_optimizers(giving.pieces), dec, saved)
    giving.dec.unknown += dec.unknown


def _take_gradients(taking: Taking) -> dict[str, Any]:
    if not taking.pieces.gradients():
        return {}
    return parts.take_gradients(taking.pieces.parameters(), taking.enc)


def _take_data(taking: Taking) -> dict[str, Any]:
    return parts.take_attributes(taking.pieces.data, Encoder(small=True))


def _give_data(giving: Giving, saved: Any) -> None:
    dec = Decoder(small=True)
    parts.give_attributes(giving.pieces.data, dec, saved)
    giving.dec.unknown += dec.unknown


def _take_positions(taking: Taking) -> dict[str, Any]:
    pieces = taking.pieces
    vals = {name: {"position": between(loader)} for name, loader in pieces.loaders.items()}
    trains = {name: reading.capture(taking.enc) for name, reading in pieces.readings.items()}
    return {"train": trains, "val": vals}


def _give_positions(giving: Giving, saved: Any) -> None:
    """The training's last: one and the same loader may be for both."""
    pieces = giving.pieces
    vals = {
        n: (loader, saved["val"][n]) for n, loader in pieces.loaders.items() if n in saved["val"]
    }
    trains = {n: (r, saved["train"][n]) for n, r in pieces.readings.items() if n in saved["train"]}
    if not giving.again:
        for loader, state in vals.values():
            giving.differ += go_between(loader, state)
        for reading, state in trains.values():
            giving.differ += reading.go_to(state, giving.dec)
    for loader, state in vals.values():
        settle(loader, state["position"])
    for reading, state in trains.values():
        reading.settle(state)


PLAIN, MODULES, DATA = "plain attributes", "module attributes", "data attributes"
ASIDE: Final = ("objects", "schedulers", PLAIN, DATA)

PARTS: Final[tuple[Part[Taking, Giving], ...]] = (
    Part(  # for ``check`` alone
        "parameters",
        lambda taking: parts.take_shapes(taking.pieces.parameters()),
        lambda _giving, _saved: None,
    ),
    Part("model", None, _give_state_dict),
    Part("loose parameters", _take_loose, _give_loose),
    Part("objects", _take_objects, _give_objects),
    Part("scaler", None, _give_scaler),
    Part("schedulers", None, _give_schedulers),
    Part(
        "counters",
        lambda taking: taking.enc(dict(taking.pieces.counters())),
        lambda giving, saved: giving.pieces.set_counters(giving.dec(saved)),
    ),
    Part(
        "optimizers",
        lambda taking: parts.take_optimizers(taking.pieces.optimizers, taking.pieces.parameters()),
        _give_optimizers,
    ),
    Part("optimizer attributes", _take_of_optimizers, _give_of_optimizers),
    Part(
        "buffers",
        lambda taking: parts.take_buffers(
            taking.pieces.modules, taking.enc, _known(taking.pieces, taking.whole["state_dict"])
        ),
        lambda giving, saved: parts.give_buffers(giving.pieces.modules, giving.dec, saved),
    ),
    Part(
        "requires_grad",
        lambda taking: parts.take_requires_grad(taking.pieces.parameters()),
        lambda giving, saved: parts.give_requires_grad(giving.pieces.parameters(), saved),
    ),
    Part(
        "gradients",
        _take_gradients,
        lambda giving, saved: parts.give_gradients(giving.pieces.parameters(), giving.dec, saved),
    ),
    Part(
        PLAIN,
        lambda taking: parts.take_attributes(taking.pieces.plain, taking.enc),
        lambda giving, saved: parts.give_attributes(giving.pieces.plain, giving.dec, saved),
    ),
    Part(DATA, _take_data, _give_data),
    Part(
        MODULES,
        lambda taking: parts.take_attributes(
            parts.named_modules(taking.pieces.modules), taking.enc
        ),
        lambda giving, saved: parts.give_attributes(
            parts.named_modules(giving.pieces.modules), giving.dec, saved
        ),
    ),
    Part("positions", _take_positions, _give_positions),
    Part("rng", lambda taking: taking.rng, lambda _, saved: set_rng(saved)),
)


def _given(pieces: Pieces) -> dict[str, Given]:
    """What the script gives, before anything is trained; no library's module is asked."""
    enc = Encoder(lambda tensor: tensor, small=True, skip=pieces.skip)
    modules = {
        name: module
        for name, module in parts.named_modules(pieces.modules).items()
        if type(module).__module__.partition(".")[0] not in watched.LIBRARIES
    }
    return {
        MODULES: given(parts.take_attributes(modules, enc)),
        PLAIN: given(parts.take_attributes(pieces.plain, enc)),
        DATA: given(parts.take_attributes(pieces.data, Encoder(small=True))),
    }


def _owners(pieces: Pieces) -> Iterator[tuple[str, Any]]:
    for name, module in parts.named_modules(pieces.modules).items():
        yield f"module {name or 'itself'}", module
    for name, owner in pieces.plain.items():
        yield name, owner


def _kept_elsewhere(pieces: Pieces) -> set[int]:
    """Ids of what another part has, whoever else holds it as an attribute."""
    found: list[Any] = [*parts.named_modules(pieces.modules).values(), *pieces.optimizers]
    found += [*pieces.schedulers, pieces.scaler]
    found += [*pieces.objects.values(), *pieces.plain.values(), *pieces.data.values()]
    for _, loader in pieces.all_loaders():
        found.append(loader)
        if isinstance(loader, torch.utils.data.DataLoader):
            found += [*samplers(loader), *nested(loader.dataset)]
    return {id(value) for value in found}


def _put_back(group: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name, value in before.items():
        if isinstance(value, torch.Tensor) and isinstance(group[name], torch.Tensor):
            group[name].copy_(value)  # a compiled optimizer holds it
        else:
            group[name] = value


def _of_its_own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
