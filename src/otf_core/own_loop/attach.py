"""``otf_core.attach``: a training loop that the user owns, under control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from otf_core.opening import Guarded, Notify, RunOptions
from otf_core.own_loop import arguments
from otf_core.own_loop.loop import Given, OwnLoop
from otf_core.steering.declared import Declared


def attach(
    *,
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | list[Optimizer] | Mapping[str, Optimizer],
    scheduler: Any = None,
    train_loader: Any = None,
    val_loader: Any = None,
    validate: Callable[..., Any] | None = None,
    test: Callable[..., Any] | None = None,
    scaler: Any = None,
    state: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    project: str | None = None,
    run_name: str | None = None,
    save_dir: str | Path = "otf_runs",
    dashboard: str = "auto",
    resume: str | Path | None = None,
    keep_checkpoints: int = 5,
    checkpoint_every: int | str | None = None,
    telemetry: Literal["full", "basic", "off"] = "full",
    after_fit: Literal["auto", "return", "test", "hold"] = "auto",
    max_hold: float = 1800,
    pause_at_start: bool = False,
    max_pause: float | None = None,
    at_max_pause: Literal["resume", "park"] | None = None,
    guards: Guarded = None,
    params: Sequence[Declared] | None = None,
    recipe: str | Path | None = None,
    notify: Notify = None,
) -> OwnLoop:
    """See and control a training loop of one's own, and go on with it after a kill.

    ::

        with otf_core.attach(model=net, optimizer=opt, train_loader=loader) as session:
            for epoch in session.epochs(3):
                for batch in loader:
                    ...
                    if session.tick(loss=loss):
                        break

    Attaching changes nothing: with no command given, weights, optimizer state and RNG are bit for
    bit those of the loop without it.

    Args:
        model: one, or several by name.
        optimizer: one, or several by name.
        scheduler: one, or several; whatever has ``state_dict`` and ``load_state_dict``.
        train_loader: any iterable; one that is no DataLoader of torch is read through
            ``session.batches()``.
        val_loader: one, or several.
        validate: called for the command of that name; returns a number or a dict of them, and
            leaves no trace in the training. One with an argument ``limit_batches`` can be told
            how many.
        test: the same for the command ``test_now``.
        scaler: of gradients.
        state: what else decides how the loop goes on, by name: modules, objects with
            ``state_dict`` and ``load_state_dict``, objects whose attributes are state, or pairs
            ``(get, put)``. ``{}`` says that there is nothing.
        max_epochs: the number that ``session.epochs()`` takes.

    What stands behind them is the callback's (README, *The callback*).

    Raises:
        TypeError, ValueError: an argument that is not allowed; it says what is.
    """
    modules, objects, plain = arguments.state_of(state)
    of_model = arguments.modules_of(model)
    if modules and "" in of_model:
        of_model = {"model": of_model[""]}
    if twice := sorted(of_model.keys() & modules.keys()):
        msg = f"state was asked with {twice[0]!r}, which is a model; allowed: another name"
        raise ValueError(msg)
    given = Given(
        modules={**of_model, **modules},
        optimizers=arguments.optimizers_of(optimizer),
        schedulers=arguments.schedulers_of(scheduler),
        scaler=arguments.scaler_of(scaler),
        train_loader=arguments.train_loader_of(train_loader),
        val_loaders=arguments.loaders_of("val_loader", val_loader),
        objects=objects,
        plain=plain,
        says_all=state is not None,
        validate=arguments.function_of("validate", validate),
        test=arguments.function_of("test", test),
        max_epochs=arguments.epochs_of(max_epochs),
    )
    options = RunOptions(
        project=project,
        run_name=run_name,
        save_dir=save_dir,
        dashboard=dashboard,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
        checkpoint_every=checkpoint_every,
        telemetry=telemetry,
        after_fit=after_fit,
        max_hold=max_hold,
        pause_at_start=pause_at_start,
        max_pause=max_pause,
        at_max_pause=at_max_pause,
        guards=guards,
        params=params,
        recipe=recipe,
        notify=notify,
    )
    return OwnLoop(given, options)
