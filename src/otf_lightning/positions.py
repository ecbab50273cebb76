"""Where the loaders of a fit stand, to plain values and back; training thread, at the gate.

The position of one loader is the tap's (``otf_core.state.data_tap``) or its own ``state_dict``;
here is what Lightning has around it: the combined loader, the fetcher with a batch in hand, and
the epoch in which the user's loader hooks were called.
"""

# ruff: noqa: SLF001 -- the state lies in private names; ``inside.PRIVATE`` lists them

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Set
from typing import Any, Final

import lightning as L
from torch.utils.data.distributed import DistributedSampler

from otf_core.state.data_tap import position, settled, tapped, with_given
from otf_core.state.given import Settled
from otf_core.state.loader_parts import set_around
from otf_core.state.plain_values import Decoder, Encoder, UnsupportedValueError
from otf_core.state.rng import get_rng, set_rng
from otf_lightning.inside import MODULE_OWN

FETCHER: Final = ("fetched", "done", "length", "batches")
_OVER: Final = object()
# A LightningDataModule's.
DATA_OWN: Final = frozenset(vars(L.LightningDataModule()))


def capture_positions(trainer: L.Trainer, enc: Encoder) -> dict[str, Any]:
    """Positions of the training loaders; how those of the validation stand between two runs."""
    fit: Any = trainer.fit_loop
    val = fit.epoch_loop.val_loop
    combined, fetcher = fit._combined_loader, fit._data_fetcher
    iterators = combined._iterator.iterators
    trains = [
        _position(loader, live, enc)
        for loader, live in zip(combined.flattened, iterators, strict=True)
    ]
    vals = None
    if val._combined_loader is not None:  # "is": a CombinedLoader without an iterator has no truth
        vals = [
            with_given(loader, loader.otf_state(iterating=False)) if tapped(loader) else None
            for loader in val._combined_loader.flattened
        ]
    return {
        "train": trains,
        "shares": [share(loader) for loader in combined.flattened],
        "val": vals,
        "idx": combined._iterator._idx,
        "consumed": list(getattr(combined._iterator, "_consumed", ())),
        "fetcher": {name: enc(v) for name, v in vars(fetcher).items() if name in FETCHER},
        "seen": [getattr(loop.setup_data, "seen", None) for loop in (fit, val)],
        "made_in": (fit._last_train_dl_reload_epoch, val._last_val_dl_reload_epoch),
    }


def share(loader: Any) -> dict[str, Any] | None:
    """What tells which samples of an epoch a rank is given; None: only the loader knows.

    A ``DistributedSampler`` deals out one order to all ranks; it draws from a seed of its own.
    """
    sampler, batch_size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    if type(sampler) is not DistributedSampler or not isinstance(batch_size, int):
        return None
    names = ("seed", "epoch", "shuffle", "num_replicas")
    return {
        "batch_size": batch_size,
        "samples": len(loader.dataset),
        "batches": len(loader),
        **{name: getattr(sampler, name) for name in names},
    }


class SetupData:
    """``setup_data`` of a loop, which remembers what the user's loader hook could see.

    Only where hooks are called again under way: else the script itself calls them as it did.
    """

    def __init__(self, trainer: L.Trainer, loop: Any) -> None:
        self.trainer, self.loop, self.without_us = trainer, loop, loop.setup_data
        self.seen: dict[str, Any] | None = None

    def __call__(self) -> None:
        seen = _seen(self.trainer) if self.trainer.reload_dataloaders_every_n_epochs else None
        before = self.loop._combined_loader
        self.without_us()
        if self.loop._combined_loader is not before:
            self.seen = seen


def _seen(trainer: L.Trainer) -> dict[str, Any]:
    rng, data = get_rng(), trainer.datamodule
    seen: dict[str, Any] = {
        "module": _attributes(trainer.lightning_module, MODULE_OWN),
        "data": data_attributes(trainer),
        "state": None,
        "rng": rng,
    }
    with contextlib.suppress(UnsupportedValueError):
        seen["state"] = Encoder()(data.state_dict()) if data is not None else None
    set_rng(rng)  # the user's state_dict may have drawn
    return seen


def _see_again(trainer: L.Trainer, seen: dict[str, Any] | None) -> None:
    if seen is None:
        return
    Decoder(small=True, skip=MODULE_OWN).attributes(trainer.lightning_module, seen["module"])
    set_data_attributes(trainer, seen["data"])
    if seen["state"] is not None:
        trainer.datamodule.load_state_dict(Decoder()(seen["state"]))
    set_rng(seen["rng"])


def data_attributes(trainer: L.Trainer) -> dict[str, Any]:
    """Of the data module what is state: no tensors, and no containers that hold data."""
    return _attributes(trainer.datamodule, DATA_OWN) if trainer.datamodule is not None else {}


def set_data_attributes(trainer: L.Trainer, saved: dict[str, Any]) -> list[str]:
    """Put back what data_attributes returned; returns what could not be."""
    dec = Decoder(small=True, skip=DATA_OWN)
    if trainer.datamodule is not None:
        dec.attributes(trainer.datamodule, saved)
    return dec.unknown


def _attributes(obj: Any, own: Set[str]) -> dict[str, Any]:
    return Encoder(small=True, skip=own).attributes(obj)


def remake_loaders(trainer: L.Trainer, saved: Mapping[str, Any]) -> None:
    """Call the user's loader hooks again where needed, in the epoch in which they were called.

    They see what they saw then. Before the attributes of data module, modules and callbacks, which
    the hooks may set.
    """
    fit: Any = trainer.fit_loop
    val, every = fit.epoch_loop.val_loop, trainer.reload_dataloaders_every_n_epochs
    progress = fit.epoch_progress.current
    now, (train_epoch, val_epoch) = progress.completed, saved["made_in"]
    if every and fit._last_train_dl_reload_epoch != train_epoch:
        fit._combined_loader.reset()
        progress.completed, fit._combined_loader = train_epoch, None
        _see_again(trainer, saved["seen"][0])
        fit.setup_data()
        fit._data_fetcher._start_profiler = fit.epoch_loop._on_before_fetch
        fit._data_fetcher._stop_profiler = fit.epoch_loop._on_after_fetch
    moved = every and val._last_val_dl_reload_epoch != val_epoch
    if val._combined_loader is not None and (moved or saved["val"] is None):
        val._combined_loader.reset()
        val._combined_loader = None
    if val._combined_loader is None and saved["val"] is not None:
        progress.completed, trainer.validating = max(val_epoch, 0), True
        _see_again(trainer, saved["seen"][1])
        val.setup_data()
        trainer.training = True
    for loop, seen in zip((fit, val), saved["seen"], strict=True):
        if isinstance(loop.setup_data, SetupData):
            loop.setup_data.seen = seen
    if every:
        trainer._checkpoint_connector.restore_datamodule()  # the hooks have seen an earlier one
    progress.completed = now
    fit._last_train_dl_reload_epoch, val._last_val_dl_reload_epoch = saved["made_in"]


def apply_positions(trainer: L.Trainer, saved: Mapping[str, Any], dec: Decoder) -> list[Settled]:
    """Bring loaders, iterators and fetcher to their positions; draws random numbers.

    Returns:
        Where what the script gives differs from what it gave to the run that was saved.
    """
    fit: Any = trainer.fit_loop
    combined, fetcher = fit._combined_loader, fit._data_fetcher
    val = fit.epoch_loop.val_loop._combined_loader
    differ: list[Settled] = []
    vals = [] if val is None else _settled(val.flattened, saved["val"], differ)
    trains = _settled(combined.flattened, saved["train"], differ)
    # The training's last: a fit may have one and the same loader for both.
    for loader, state in vals + trains:
        if state is not None and tapped(loader):
            loader.otf_load(state)
        elif state is not None:
            loader.load_state_dict(dec(state))
    fetcher.iterator = iter(combined)  # not iter(fetcher), which would fetch ahead
    live, cycles = combined._iterator.iterators, combined._mode == "max_size_cycle"
    for i, (loader, state) in enumerate(trains):
        if state is None:
            live[i] = _replayed(loader, live[i], saved["idx"], cycles=cycles)
    for loader, state in vals + trains:
        if tapped(loader):
            set_around(loader, state["around"], own=False)
    combined._iterator._idx = saved["idx"]
    if hasattr(combined._iterator, "_consumed"):
        combined._iterator._consumed = list(saved["consumed"])
    for name, value in saved["fetcher"].items():
        setattr(fetcher, name, dec(value))
    return differ


def _settled(loaders: list[Any], states: list[Any], differ: list[Settled]) -> list[tuple[Any, Any]]:
    found = []
    for loader, state in zip(loaders, states, strict=True):
        own = state
        if state is not None and tapped(loader):
            own, settled_ = settled(loader, state)
            differ.append(settled_)
        found.append((loader, own))
    return found


def _replayed(loader: Any, iterator: Any, n: int, *, cycles: bool) -> Any:
    """The iterator behind so many batches; another one, where it begins anew at its end."""
    for _ in range(n):
        if next(iterator, _OVER) is _OVER:
            if not cycles:
                break
            iterator = iter(loader)
            next(iterator, None)
    return iterator


def _position(loader: Any, iterator: Any, enc: Encoder) -> Any:
    """Where a training loader stands, by the tap or by itself; None: to be found by replay.

    Asked of the iterator, not of the loader: a fit may validate with the same loader.
    """
    state = position(loader, iterator)
    # The tap's is plain already.
    return with_given(loader, state) if tapped(loader) else enc(state)
