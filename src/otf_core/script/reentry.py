"""Re-entry: a script that starts again goes on where it was saved; training thread.

It runs to the first arrival at the same place. There its own variables, the places in its loops
and loaders and the random numbers are put back, and finished epochs are not run.

Rule 1: in this order: variables, loops, loaders, random numbers. Each may draw or ask, and is set
right by what comes after it.
Rule 2: what was not exact when it was saved was said then; what cannot be put back is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from otf_core.errors import CommandError, ErrorCode
from otf_core.script import frames, marks
from otf_core.script.arrays import copy_arrays
from otf_core.script.frames import ABSENT, Spot
from otf_core.script.functions import Functions
from otf_core.script.iterators import ITERATORS
from otf_core.script.kinds import LIBRARY, OBJECTS, VALUES, is_silent
from otf_core.script.loaders import LOADERS, give_positions, take_positions
from otf_core.script.loops import Loops
from otf_core.script.models import MODELS, copy_tensors
from otf_core.script.prints import print_of
from otf_core.script.variables import First, Giving, Kind, Own, Taking
from otf_core.state.given import Settled
from otf_core.state.plain_values import PLAIN, Decoder, Encoder, UnsupportedValueError
from otf_core.state.rng import get_rng, set_rng

FORMAT: Final = 2
KINDS: Final[tuple[Kind, ...]] = (*VALUES, *LOADERS, *MODELS, *ITERATORS, *OBJECTS, *LIBRARY)
# How a library that has the loop goes on from its own checkpoints.
OWN_RESUME: Final = {
    "lightning": "trainer.fit(…, ckpt_path=…)",
    "pytorch_lightning": "trainer.fit(…, ckpt_path=…)",
    "transformers": "trainer.train(resume_from_checkpoint=True)",
}
# How such a run is had that goes on from ours.
BETTER: Final = {"lightning": "; OTF_AUTO=1 with python in place of otf-fit is exact"}
Registered = Mapping[str, tuple[Callable[[], Any], Callable[[Any], None]]]


class Moment(NamedTuple):
    """Where the script stands between two steps.

    Attributes:
        stack: its frames, from ``<module>`` to the one that asks or has the loop.
        asked: the iterator that is asked for the next batch; None at the head of a loop.
        turn: ``graphs.now`` when the turn began that ends here.
    """

    stack: list[FrameType]
    asked: Any = None
    turn: int = 0


class Taken(NamedTuple):
    """A state, and what is to be said of it.

    Attributes:
        reasons: why going on from it will not be exact.
        left_out: ``name (type)`` of what is not in it.
        made_again: names of what is large and was not touched: the script makes it.
    """

    state: dict[str, Any]
    reasons: list[str]
    left_out: list[str]
    made_again: list[str]


class Given(NamedTuple):
    """What could not be put back, and what the script gives otherwise than it did."""

    lost: list[str]
    settled: list[Settled]
    also: dict[str, Any]


class Reentry:
    """Of one script.

    Args:
        folder: where its own modules are.
        leave: names of kinds, and of ``PARTS``, that are not put back; for tests.
    """

    def __init__(
        self,
        folder: Path,
        loops: Loops,
        registered: Registered | None = None,
        leave: Iterable[str] = (),
    ) -> None:
        self._own = Own(Path(folder).resolve())
        self._loops, self._leave = loops, frozenset(leave)
        self._registered: Registered = registered if registered is not None else {}
        self._first: First | None = None

    def begins(self, moment: Moment) -> None:
        """Note what there is before anything is trained: it tells later what was touched."""
        taking = self._look(moment)
        self._first = First({**taking.prints, **dict(self._lines(moment)), **_surroundings()})

    def _look(self, moment: Moment) -> Taking:
        """Meet everything, and copy nothing."""
        taking = Taking(KINDS, self._own, is_silent, take=lambda t: t)
        self._meet(taking, moment)
        copy_arrays(taking)
        copy_tensors(taking)
        return taking

    # To plain values.

    def capture(
        self,
        moment: Moment,
        take: Callable[[torch.Tensor], torch.Tensor] | None = None,
        also: Mapping[str, Any] | None = None,
    ) -> Taken:
        """The state at a safe point.

        Args:
            take: copies one tensor to the host.
            also: what ``apply`` is to give back under the same name, of what the script holds.
        """
        rng = get_rng()
        if self._first is None:
            self.begins(moment)
        taking = Taking(KINDS, self._own, is_silent, self._first, take)
        state: dict[str, Any] = {"format": FORMAT, **self._meet(taking, moment)}
        state["also"] = {name: taking(value, name) for name, value in (also or {}).items()}
        taking.run()
        copy_arrays(taking)
        copy_tensors(taking)
        state["positions"] = take_positions(taking)
        state["nodes"] = taking.nodes
        state["registered"] = {n: _registered(n, get) for n, (get, _) in self._registered.items()}
        state["sources"] = self._sources()
        state["rng"] = rng
        state["dtype"] = str(torch.get_default_dtype()).removeprefix("torch.")
        spots = [frames.spot(f, self._own.folder) for f in moment.stack]
        state["stack"] = [tuple(s) for s in spots]
        state["head"] = moment.asked is None
        own_loop = self._of_a_library(moment, spots)
        state["refused"] = own_loop
        reasons = [*([own_loop] if own_loop else ()), *self._unknown_places(moment, spots)]
        reasons += [*self._computed_before(moment, spots), *dict.fromkeys(taking.reasons)]
        set_rng(rng)  # what was asked for its state may have drawn
        left = [f"{n} ({t})" for n, t in taking.left_out.items() if not n.startswith("(")]
        first, now = self._first.prints if self._first is not None else {}, _surroundings()
        around = [name for name in _surroundings(first) if first[name] != now.get(name)]
        left += [f"{n} (str)" for n in (*around, *(n for n in now if n not in first))]
        return Taken(state, reasons, left, taking.made_again)

    def _meet(self, taking: Taking, moment: Moment) -> dict[str, Any]:
        """All variables, then all loops: in the same order when they are put back."""
        taking.asked, taking.turn = moment.asked, moment.turn
        names = [
            {name: taking(value, f"{prefix}{name}") for name, value in variables.items()}
            for prefix, variables in self._variables(moment)
        ]
        modules = {
            module: {name: taking(value, f"{module}.{name}") for name, value in variables.items()}
            for module, variables in self._globals(moment).items()
        }
        taking.run()
        loops = [
            [(n, taking(it, f"the loop of line {f.f_lineno}")) for n, it in own.items()]
            for f in moment.stack
            for own in [self._loops.of(f)]
        ]
        asked = taking(moment.asked, "the loader")
        taking.run()
        return {"variables": names, "modules": modules, "loops": loops, "asked": asked}

    def _variables(self, moment: Moment) -> Iterator[tuple[str, dict[str, Any]]]:
        """What to call them, and the variables of each frame."""
        for frame in moment.stack:
            own = frames.is_own(frame.f_code.co_filename, self._own.folder)
            name = "" if frames.is_module(frame) else f"{frame.f_code.co_qualname}."
            prefix = name if own else f"({frame.f_globals.get('__name__')}) {name}"
            yield prefix, _not_dunder(frames.values(frame))

    def _globals(self, moment: Moment) -> dict[str, dict[str, Any]]:
        """Those of the script's modules that are no frame of the stack."""
        running = [f.f_globals for f in moment.stack if frames.is_module(f)]
        found = {"__main__": sys.modules["__main__"], **self._own.modules()}
        return {
            name: _not_dunder(vars(module))
            for name, module in sorted(found.items())
            if not any(vars(module) is each for each in running)
        }

    def _sources(self) -> dict[str, str]:
        """File -> hash, of the script's own code as it runs."""
        folder = self._own.folder
        return {
            str(Path(file).resolve().relative_to(folder)): source
            for file, source in list(marks.SOURCES.items())
            if marks.is_below(file, folder)
        }

    # What is said of it.

    def _of_a_library(self, moment: Moment, spots: list[Spot]) -> str | None:
        """The sentence of a loop that counts in a library's code, where it cannot be set."""
        for n, (frame, spot) in enumerate(zip(moment.stack, spots, strict=True)):
            generator = frame.f_code.co_flags & inspect.CO_GENERATOR
            if not spot.own and not generator and self._unnamed(moment, n, frame):
                package = spot.file.partition(".")[0]
                if package in sys.stdlib_module_names:
                    return f"the script trains within {package} ({spot}), whose loop cannot be set"
                how = f" ({OWN_RESUME[package]})" if package in OWN_RESUME else ""
                return (
                    f"the loop that trains is one of {package} ({spot}): it goes on from "
                    f"{package}'s own checkpoints{how}, not from these{BETTER.get(package, '')}"
                )
        return None

    def _unnamed(self, moment: Moment, n: int, frame: FrameType) -> int:
        last = n == len(moment.stack) - 1
        above = moment.stack[n + 1].f_code.co_flags if not last else 0
        asks = bool(above & inspect.CO_GENERATOR) if not last else moment.asked is not None
        return frames.unnamed_loops(frame, len(self._loops.of(frame)), asks=asks)

    def _unknown_places(self, moment: Moment, spots: list[Spot]) -> Iterator[str]:
        for n, (frame, spot) in enumerate(zip(moment.stack, spots, strict=True)):
            generator = frame.f_code.co_flags & inspect.CO_GENERATOR
            if (spot.own or generator) and self._unnamed(moment, n, frame):
                yield f"the place in a loop of {spot} is unknown"

    def _lines(self, moment: Moment) -> Iterator[tuple[str, Any]]:
        for frame in moment.stack:
            file = frame.f_code.co_filename
            if frames.is_own(file, self._own.folder):
                for source, value in frames.unfinished(frame):
                    yield f"{file}:{frame.f_lineno} {source}", _known(value)

    def _computed_before(self, moment: Moment, spots: list[Spot]) -> Iterator[str]:
        """What a line has computed and still holds, and would be computed anew."""
        first = self._first.prints if self._first is not None else {}
        whole = moment.stack[:-1] if moment.asked is None else moment.stack  # at a head: no line
        for frame, spot in zip(whole, spots, strict=False):
            file = frame.f_code.co_filename
            for source, value in frames.unfinished(frame) if spot.own else ():
                known = _known(value)
                if known is None or first.get(f"{file}:{frame.f_lineno} {source}") != known:
                    yield f"{spot.file}:{spot.at[0]} has computed {source} already"

    # And back.

    def edited(self, state: Mapping[str, Any]) -> str | None:
        """Why the script is not the one that was saved, as far as it has been read; None: it is."""
        here = self._sources()
        of_frames = {spot[0]: spot[3] for spot in state["stack"] if spot[4]}
        for file, was in of_frames.items():
            if here.get(file, was) != was:
                return f"{file} was edited since: its lines are not those that were running"
        return None

    def is_here(self, state: Mapping[str, Any], moment: Moment) -> bool:
        """Whether the script has arrived at the place where it was saved."""
        saved = state["stack"]
        if len(saved) != len(moment.stack) or state["head"] != (moment.asked is None):
            return False
        if moment.stack[-1].f_code.co_qualname != saved[-1][1]:
            return False
        here = (frames.spot(f, self._own.folder) for f in moment.stack)
        return all(spot == tuple(was) for spot, was in zip(here, saved, strict=True))

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse what is no state of this script; nothing is touched.

        Raises:
            CommandError: ``bad_payload``.
        """
        if state.get("format") != FORMAT:
            detail = f"A state of format {FORMAT} was asked for, found {state.get('format')}."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
        if why := state["refused"] or self.edited(state):
            raise CommandError(ErrorCode.BAD_PAYLOAD, f"The script cannot go on there: {why}.")

    def refuse_another_place(self, state: Mapping[str, Any], moment: Moment) -> None:
        """Refuse where the script is not at the place where it was saved; nothing is touched.

        Raises:
            CommandError: ``not_allowed_now``.
        """
        if not self.is_here(state, moment):
            at, here = Spot(*state["stack"][-1]), frames.spot(moment.stack[-1], self._own.folder)
            detail = f"The state is of another place, {at}; the script stands at {here}."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)

    def apply(self, state: Mapping[str, Any], moment: Moment) -> Given:
        """Put the state back at the same place; the state is used up by it.

        Raises:
            CommandError: ``not_allowed_now``; this is another place, nothing was touched.
        """
        self.check(state)
        self.refuse_another_place(state, moment)
        if self._first is None:
            self.begins(moment)
        giving = self._giving(state, moment)
        new = self._give_variables(giving, state, moment)
        for frame, saved in zip(moment.stack, state["loops"], strict=True):
            live = self._loops.of(frame)
            if "loops" not in self._leave:
                for n, plain in saved:
                    giving(plain, live.get(n, ABSENT))
        giving(state["asked"], moment.asked)
        giving.run()
        also = {name: giving(plain) for name, plain in state["also"].items()}
        giving.run()
        for frame, values, gone in new:
            if isinstance(frame, FrameType):
                frames.write(frame, values, gone)
            else:
                vars(frame).update(values)
        if "loaders" not in self._leave:
            give_positions(giving)
        for again in giving.last:
            again()
        giving.last.clear()  # they know ``giving``, and it what was saved
        self._give_registered(giving, state)
        if "dtype" in state:
            torch.set_default_dtype(getattr(torch, state["dtype"]))
        if "rng" not in self._leave:
            set_rng(state["rng"])
        return Given([*dict.fromkeys(giving.lost), *self._changed(state)], giving.settled, also)

    def _giving(self, state: Mapping[str, Any], moment: Moment) -> Giving:
        looked = self._look(moment)
        protected = {
            tensor.untyped_storage().data_ptr()
            for module in looked.objects()
            if issubclass(type(module), nn.Module)
            for tensor in (*module.parameters(), *module.buffers())
            if tensor.layout is torch.strided
        }
        giving = Giving(KINDS, self._own, state["nodes"], protected, self._leave)
        giving.functions = Functions(self._own, moment.stack, looked.objects())
        giving.positions = state["positions"]
        return giving

    def _give_variables(
        self, giving: Giving, state: Mapping[str, Any], moment: Moment
    ) -> list[tuple[Any, dict[str, Any], set[str]]]:
        """The new values of each frame and module; they are written when all are made.

        What is there comes first: a variable that is not may be another name for a part of it.
        """
        pairs: list[tuple[Any, Mapping[str, Any], dict[str, Any]]] = [
            (frame, saved, _not_dunder(frames.values(frame)))
            for frame, saved in zip(moment.stack, state["variables"], strict=True)
        ]
        for name, saved in state["modules"].items():
            if (module := self._own.module(name)) is not None:  # else it is imported later
                pairs.append((module, saved, _not_dunder(vars(module))))
        for there in (True, False):
            for _, saved, live in pairs:
                for name, plain in saved.items():
                    if (name in live) is there:
                        giving(plain, live.get(name, ABSENT))
            giving.run()
        return [
            (
                owner,
                _there(
                    {name: giving(plain, live.get(name, ABSENT)) for name, plain in saved.items()}
                ),
                live.keys() - saved.keys() if isinstance(owner, FrameType) else set(),
            )
            for owner, saved, live in pairs
        ]

    def _give_registered(self, giving: Giving, state: Mapping[str, Any]) -> None:
        for name, saved in state["registered"].items():
            if name in self._registered:
                self._registered[name][1](Decoder()(saved))
            else:
                giving.lose(f"{name}, which was registered and is not here")

    def _changed(self, state: Mapping[str, Any]) -> list[str]:
        here = self._sources()
        files = [f for f, was in state["sources"].items() if here.get(f, was) != was]
        return [f"{file} was edited since" for file in files]


def _surroundings(among: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a script may set beside its variables: name -> value; of a folder that is gone, none."""
    if among is not None:
        return {n: v for n, v in among.items() if n.startswith(("os.environ[", "os.getcwd("))}
    found: dict[str, Any] = {f"os.environ[{n!r}]": v for n, v in os.environ.items()}
    with contextlib.suppress(OSError):
        found["os.getcwd()"] = os.getcwd()
    return found


def _registered(name: str, get: Callable[[], Any]) -> Any:
    try:
        return Encoder()(get())
    except UnsupportedValueError as why:
        detail = f"Saving was asked, but what was registered as {name} holds a {why}."
        raise CommandError(ErrorCode.UNSUPPORTED, detail) from None


# What torch.compile puts among a script's variables, under names of this process.
_DYNAMO: Final = ("__builtins_dict__", "__compiled_fn_", "__import_", "__resume_at_")


def _not_dunder(variables: Mapping[str, Any]) -> dict[str, Any]:
    found = {n: v for n, v in dict(variables).items() if not n.startswith(_DYNAMO)}
    return {n: v for n, v in found.items() if not (n.startswith("__") and n.endswith("__"))}


def _there(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not ABSENT}


def _known(value: Any) -> Any:
    """What tells the value of a part of a line; None: it cannot be told."""
    if value is ABSENT:
        return None
    if type(value) in PLAIN or isinstance(value, tuple | torch.Tensor):
        return print_of(value)
    return "kept"  # it is the same object when the line is run again
