"""The whole state of a fit, bit for bit: captured and applied in place, at the gate.

Rule 1: only at the gate, the entry of ``epoch_loop.advance``; training thread.
Rule 2: one way back. Resume, rollback and fork are the same ``apply``; resume is an ``apply`` at
the first gate of a fit that was started without ``ckpt_path``.
Rule 3: ``PARTS`` is the table of what the state is, in the order in which it is put back. RNG come
last, iterators last but one: whatever comes before may draw.
Rule 4: nothing of the run is touched before ``check`` has found the snapshot fit for it.
"""

# ruff: noqa: SLF001 -- the state lies in private names; ``inside.PRIVATE`` lists them

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.core.mixins import HyperparametersMixin
from lightning.pytorch.loops.loop import _Loop

from otf_core.errors import CommandError, ErrorCode
from otf_core.state import parts
from otf_core.state.given import Settled
from otf_core.state.host_pool import HostPool
from otf_core.state.parts import Part
from otf_core.state.plain_checkpoint import loadable
from otf_core.state.plain_values import Decoder, Encoder
from otf_core.state.rng import get_rng, set_rng
from otf_core.state.shards import is_sharded, name_of, put_in, set_apart
from otf_lightning import averaging, inside
from otf_lightning.inside import MODULE_OWN
from otf_lightning.logged import apply_results, capture_results
from otf_lightning.positions import (
    apply_positions,
    capture_positions,
    data_attributes,
    remake_loaders,
    set_data_attributes,
)

FORMAT: Final = 2
# Of the Lightning checkpoint, what may lie in parts on the ranks.
IN_PARTS: Final = ("state_dict", "optimizer_states")
# Of the Lightning checkpoint, what must be in the file whole.
NEEDED: Final = ("checkpoint.state_dict", "checkpoint.optimizer_states", "checkpoint.lr_schedulers")


@dataclasses.dataclass
class Taking:
    """What a capture works with; one for all parts, so that what is shared stays shared."""

    trainer: L.Trainer
    stock: dict[str, Any]  # the Lightning checkpoint, live
    enc: Encoder
    rng: dict[str, Any]
    shards: dict[str, Any]  # what lies in parts on the ranks, by its names


@dataclasses.dataclass
class Giving:
    """What an apply works with. The snapshot belongs to it: it is read once."""

    trainer: L.Trainer
    stock: dict[str, Any]
    exact: Mapping[str, Any]
    dec: Decoder
    differ: list[Settled] = dataclasses.field(default_factory=list)


def capture(
    trainer: L.Trainer,
    pool: HostPool | None = None,
    *,
    part: bool = False,
    shards: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A Lightning checkpoint with everything else under ``otf``; a host copy.

    Args:
        part: without weights and optimizer states, which another rank has as well.
        shards: gets the live tensors of which each rank has a part; marks are in their places.
    """
    rng = get_rng()
    inside.reshard(trainer)
    stock = inside.dump_checkpoint(trainer)
    apart: dict[str, Any] = {}
    if shards is not None:
        apart = shards
        stock |= {key: set_apart(stock[key], key, apart) for key in IN_PARTS}
    take = pool.copy if pool is not None else None
    taking = Taking(trainer, stock, Encoder(take, skip=MODULE_OWN), rng, apart)
    exact = {part.name: part.capture(taking) for part in PARTS if part.capture is not None}
    exact["format"] = FORMAT
    exact["unknown"] = taking.enc.unknown
    exact["apart"] = taking.enc.apart
    copied, left_out = loadable(_own(stock, trainer) if part else stock, "checkpoint", pool)
    parts.refuse_left_out(left_out, NEEDED)
    exact["unknown"] += left_out
    copied["otf"] = {"exact": exact}
    set_rng(rng)  # the user's hooks on the way may have drawn
    return copied


def _own(stock: Mapping[str, Any], trainer: L.Trainer) -> dict[str, Any]:
    if inside.shards_weights(trainer):  # what is not in parts is each rank's own
        values = {n: v for n, v in stock["state_dict"].items() if name_of(v) is None}
        return {**stock, "state_dict": values}
    alike = {name for name, _ in trainer.lightning_module.named_parameters()}
    values = {name: value for name, value in stock["state_dict"].items() if name not in alike}
    return {**stock, "state_dict": values, "optimizer_states": []}


def close_batch(state: dict[str, Any], modes: Mapping[str, bool]) -> None:
    """Of a snapshot taken in the middle of a batch: have the loops count it as done.

    The loader has handed it out, so that the epoch has as many batches as before. A step that was
    not completed is none.

    Args:
        modes: ``training`` of each module, where a validation had changed it.
    """
    modules = state["otf"]["exact"]["module attributes"]
    for name, training in modes.items():
        modules[name]["training"] = training
    for name, progress in state["loops"]["fit_loop"].items():
        if name == "epoch_loop.batch_progress":
            _even_out(progress, "ready")
        elif name.endswith("progress") and name != "epoch_progress":
            _even_out(progress, "completed")


def _even_out(progress: dict[str, Any], by: str) -> None:
    for name, value in progress.items():
        if isinstance(value, dict):
            _even_out(value, by)
        elif by in progress:
            progress[name] = progress[by]


def world_of(state: Mapping[str, Any]) -> int:
    """How many ranks a snapshot is of."""
    return 1 + len(state["otf"].get("ranks", ()))


def of_rank(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """The snapshot of one rank, out of that of all; see ``other_rank``.

    Of more ranks than there were the first begin anew; see ``other_world``.
    """
    rank %= world_of(state)
    if rank == 0:
        return state
    part = state["otf"]["ranks"][rank - 1]
    return {
        **part,
        "state_dict": {**state["state_dict"], **part["state_dict"]},
        "optimizer_states": part["optimizer_states"] or state["optimizer_states"],
        "otf": {**state["otf"], **part["otf"]},
    }


def layouts(
    trainer: L.Trainer, state: Mapping[str, Any]
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Makes tensors to be filled with what lies in parts, as this process has its own.

    Args:
        state: of this rank.
    """
    inside.reshard(trainer)
    params, weights = _parameters(trainer), trainer.lightning_module.state_dict()
    beside: dict[str, Any] = {f"state_dict.{n}": weights[n] for n in state["state_dict"]}
    beside |= {f"gradients.{n}": p for n, p in params.items()}
    for i, row in enumerate(state["otf"]["exact"]["optimizers"]):
        ordered = [params[name] for names in row["groups"] for name in names]
        for index, values in state["optimizer_states"][i]["state"].items():
            key = f"optimizer_states.{i}.state.{index}"
            beside |= {f"{key}.{name}": ordered[index] for name in values}
    return lambda found: {
        name: inside.empty_beside(beside[name], shape) for name, shape in found.items()
    }


def with_shards(state: dict[str, Any], tensors: Mapping[str, Any]) -> None:
    """Put what was read of a folder into the places of its marks."""
    exact = state["otf"]["exact"]
    for key in IN_PARTS:
        state[key] = put_in(state[key], tensors)
    exact["gradients"] = put_in(exact["gradients"], tensors)


def check(trainer: L.Trainer, state: Mapping[str, Any]) -> None:
    """Refuse a snapshot of another model or framework; nothing is touched.

    Raises:
        CommandError: ``bad_payload``, with the names and shapes that differ.
    """
    exact: Any = (state.get("otf") or {}).get("exact")
    parts.refuse_another_kind(exact, parts.LIGHTNING, FORMAT)
    inside.reshard(trainer)
    if inside.shards_weights(trainer) and "shards" not in state["otf"]:
        detail = (
            "The checkpoint has whole weights, this run has them in parts on its ranks; allowed: "
            "one of such a run; the run is as it was."
        )
        raise CommandError(ErrorCode.BAD_PAYLOAD, detail)
    parts.refuse_another_model(exact["parameters"], _parameters(trainer))
    parts.refuse_another_number("optimizers", len(exact["optimizers"]), len(trainer.optimizers))
    here = averaging.schedules(trainer, state)
    parts.refuse_another_number("learning-rate schedules", len(state["lr_schedulers"]), here)


def apply(trainer: L.Trainer, state: dict[str, Any]) -> tuple[list[str], list[Settled]]:
    """Put a snapshot back in place that ``check`` has found fit; it is used up by it.

    Returns:
        ``Class.attribute: type`` of what was stored and could not be put back; and where the
        script has other data sets and samplers than it had.
    """
    exact = state["otf"]["exact"]
    giving = Giving(trainer, state, exact, Decoder(skip=MODULE_OWN))
    connector: Any = trainer._checkpoint_connector
    connector._loaded_checkpoint = state
    _make_hyperparameters(trainer)
    try:
        for part in PARTS:
            part.apply(giving, exact.get(part.name))
    finally:
        connector._loaded_checkpoint = {}
    return giving.dec.unknown, giving.differ


def _make_hyperparameters(trainer: L.Trainer) -> None:
    """Lightning makes the attribute when it first looks for them, as it does for a checkpoint.

    The run that was saved has it; a process that has just begun has not.
    """
    for holder in (trainer.lightning_module, trainer.datamodule):
        if isinstance(holder, HyperparametersMixin):
            holder.hparams  # noqa: B018 -- it is the looking that makes it


# What Lightning restores itself, so that the users' hooks have their say.


def _datamodule(giving: Giving, _: Any) -> None:
    giving.trainer._checkpoint_connector.restore_datamodule()


def _model(giving: Giving, _: Any) -> None:
    trainer = giving.trainer
    trainer._checkpoint_connector.restore_model()
    if inside.shards_weights(trainer):  # there Lightning loads nothing
        module = trainer.lightning_module
        module.load_state_dict(giving.stock["state_dict"], strict=module.strict_loading)


def _callback_states(giving: Giving, _: Any) -> None:
    giving.trainer._checkpoint_connector.restore_callbacks()


def _precision(giving: Giving, _: Any) -> None:
    giving.trainer._checkpoint_connector.restore_precision_plugin_state()


def _schedulers(giving: Giving, _: Any) -> None:
    averaging.begin(giving.trainer, giving.stock)
    giving.trainer._checkpoint_connector.restore_lr_schedulers()


def _loops(giving: Giving, _: Any) -> None:
    """Their counters; and that it is no restart: nothing is nudged, skipped or repeated."""
    fit: Any = giving.trainer.fit_loop
    fit.load_state_dict(giving.stock["loops"]["fit_loop"])
    fit._combined_loader_states_to_load = []
    for loop in _loops_of(fit):
        loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
        loop.reset_restart_stage()


def _loops_of(loop: Any) -> Iterator[Any]:
    yield loop
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            yield from _loops_of(child)


# What no state_dict of Lightning's has.


def _take_counters(taking: Taking) -> dict[str, Any]:
    loop: Any = taking.trainer.fit_loop.epoch_loop
    return {
        "batches_that_stepped": loop._batches_that_stepped,
        "skip_backward": loop.automatic_optimization._skip_backward,
        "accumulate_grad_batches": taking.trainer.accumulate_grad_batches,
        "should_stop": taking.trainer.should_stop,
    }


def _give_counters(giving: Giving, saved: Any) -> None:
    loop: Any = giving.trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = saved["batches_that_stepped"]
    loop.automatic_optimization._skip_backward = saved["skip_backward"]
    giving.trainer.accumulate_grad_batches = saved["accumulate_grad_batches"]
    giving.trainer.should_stop = saved["should_stop"]


def _modules(trainer: L.Trainer) -> parts.Modules:
    return {"": trainer.lightning_module}


def _parameters(trainer: L.Trainer) -> parts.Params:
    return parts.named_parameters(_modules(trainer))


def _take_optimizers(taking: Taking) -> list[dict[str, Any]]:
    """The rest is in the checkpoint's own states."""
    return parts.take_optimizers(taking.trainer.optimizers, _parameters(taking.trainer))


def _give_optimizers(giving: Giving, saved: Any) -> None:
    states, trainer = giving.stock["optimizer_states"], giving.trainer
    parts.give_optimizers(trainer.optimizers, saved, states, _parameters(trainer))


def _take_buffers(taking: Taking) -> dict[str, Any]:
    known = taking.stock["state_dict"]
    return parts.take_buffers(_modules(taking.trainer), taking.enc, known)


def _give_buffers(giving: Giving, saved: Any) -> None:
    parts.give_buffers(_modules(giving.trainer), giving.dec, saved)


def _take_gradients(taking: Taking) -> dict[str, Any]:
    """Only where anything may still read those of the batch that is done."""
    module, fit = taking.trainer.lightning_module, taking.trainer.fit_loop
    reads = type(module).on_before_zero_grad is not L.LightningModule.on_before_zero_grad
    if not (reads or not module.automatic_optimization or fit._should_accumulate()):
        return {}
    params = _parameters(taking.trainer)
    whole = {n: p for n, p in params.items() if p.grad is None or not is_sharded(p.grad)}
    in_parts = {n: p.grad for n, p in params.items() if n not in whole}
    return {
        **set_apart(in_parts, "gradients", taking.shards),
        **parts.take_gradients(whole, taking.enc),
    }


def _give_gradients(giving: Giving, saved: Any) -> None:
    params = _parameters(giving.trainer)
    in_parts = {name: value for name, value in saved.items() if is_sharded(value)}
    parts.give_gradients({n: p for n, p in params.items() if n not in in_parts}, giving.dec, saved)
    for name, value in in_parts.items():
        params[name].grad = value


def callbacks_with_state(trainer: L.Trainer) -> dict[str, L.Callback]:
    """The callbacks whose attributes are state, by place and class."""
    # Its state_dict has the seconds, its attributes the clock; a bar's are of its screen.
    elsewhere = (L.pytorch.callbacks.Timer, L.pytorch.callbacks.ProgressBar)
    callbacks: list[L.Callback] = trainer.callbacks
    named = {
        f"{place}:{type(callback).__qualname__}": callback
        for place, callback in enumerate(c for c in callbacks if not hasattr(c, "is_otf"))
    }
    return {name: c for name, c in named.items() if not isinstance(c, elsewhere)}


def _take_callbacks(taking: Taking) -> dict[str, Any]:
    return parts.take_attributes(callbacks_with_state(taking.trainer), taking.enc)


def _give_callbacks(giving: Giving, saved: Any) -> None:
    parts.give_attributes(callbacks_with_state(giving.trainer), giving.dec, saved)


def _take_momenta(taking: Taking) -> dict[str, dict[str, Any]]:
    """What SWA took from the BatchNorm layers for its last epoch; it keys them by the layer."""
    names = {module: name for name, module in taking.trainer.lightning_module.named_modules()}
    return {
        place: {names[module]: momentum for module, momentum in callback.momenta.items()}
        for place, callback in callbacks_with_state(taking.trainer).items()
        if isinstance(callback, StochasticWeightAveraging)
    }


def _give_momenta(giving: Giving, saved: Any) -> None:
    modules: dict[str, Any] = dict(giving.trainer.lightning_module.named_modules())
    for place, callback in callbacks_with_state(giving.trainer).items():
        if isinstance(callback, StochasticWeightAveraging) and place in saved:
            callback.momenta = {modules[name]: m for name, m in saved[place].items()}


def _take_data(taking: Taking) -> dict[str, Any]:
    return data_attributes(taking.trainer)


def _give_data(giving: Giving, saved: Any) -> None:
    giving.dec.unknown += set_data_attributes(giving.trainer, saved)


def _take_modules(taking: Taking) -> dict[str, Any]:
    return parts.take_attributes(parts.named_modules(_modules(taking.trainer)), taking.enc)


def _give_modules(giving: Giving, saved: Any) -> None:
    named = parts.named_modules(_modules(giving.trainer))
    parts.give_attributes(named, giving.dec, saved)


def _take_logged(taking: Taking) -> dict[str, Any]:
    log = inside.log_state(taking.trainer)
    return {name: taking.enc.tree(value, name) for name, value in log.items()}


def _give_logged(giving: Giving, saved: Any) -> None:
    inside.set_log_state(giving.trainer, {n: giving.dec(v) for n, v in saved.items()})


PARTS: Final[tuple[Part[Taking, Giving], ...]] = (
    Part(  # for ``check`` alone
        "parameters",
        lambda taking: parts.take_shapes(_parameters(taking.trainer)),
        lambda _giving, _saved: None,
    ),
    Part("datamodule", None, _datamodule),
    Part("model", None, _model),
    Part("callback states", None, _callback_states),
    Part("precision", None, _precision),
    Part("schedulers", None, _schedulers),
    Part("loops", None, _loops),
    Part("counters", _take_counters, _give_counters),
    Part("optimizers", _take_optimizers, _give_optimizers),
    # They read the epoch, and may set attributes: before those.
    Part(
        "loader hooks",
        None,
        lambda giving, _: remake_loaders(giving.trainer, giving.exact["positions"]),
    ),
    Part("buffers", _take_buffers, _give_buffers),
    Part(
        "requires_grad",
        lambda taking: parts.take_requires_grad(_parameters(taking.trainer)),
        lambda giving, saved: parts.give_requires_grad(_parameters(giving.trainer), saved),
    ),
    Part("gradients", _take_gradients, _give_gradients),
    Part("callback attributes", _take_callbacks, _give_callbacks),
    Part("averaging momenta", _take_momenta, _give_momenta),
    Part("data module attributes", _take_data, _give_data),
    Part("module attributes", _take_modules, _give_modules),
    Part(
        "results",
        lambda taking: capture_results(taking.trainer, taking.enc),
        lambda giving, saved: apply_results(giving.trainer, saved),
    ),
    Part("logged", _take_logged, _give_logged),
    Part(
        "buffers are synced",  # by DDP's next forward
        lambda taking: inside.syncs_buffers(taking.trainer),
        lambda giving, saved: inside.set_syncs_buffers(giving.trainer, saved),
    ),
    Part(
        "positions",
        lambda taking: capture_positions(taking.trainer, taking.enc),
        lambda giving, saved: giving.differ.extend(
            apply_positions(giving.trainer, saved, giving.dec)
        ),
    ),
    Part("rng", lambda taking: taking.rng, lambda _, saved: set_rng(saved)),
)
