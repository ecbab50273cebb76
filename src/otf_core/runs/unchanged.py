"""Weights that somebody's step should leave as they are, and what is done where it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from otf_core.errors import CommandError, ErrorCode

Params = Mapping[str, torch.Tensor]


@contextlib.contextmanager
def weights_kept(params: Params, step_name: str) -> Iterator[None]:
    """Put back what is changed inside; takes the memory of the weights once more.

    Raises:
        CommandError: ``unsupported``, one was changed; all are as before.
    """
    before = _versions(params)
    kept = {name: p.detach().clone() for name, p in params.items()}
    changed: list[str] = []
    try:
        yield
    finally:
        changed = _changed(params, before)
        with torch.no_grad():
            for name in changed:
                params[name].copy_(kept[name])
    if changed:
        detail = (
            f"The loss of each sample was asked; {step_name} changes weights ({changed[0]}), which "
            "are as they were; allowed: a per_sample_loss(batch) of the module."
        )
        raise CommandError(ErrorCode.UNSUPPORTED, detail)


@contextlib.contextmanager
def weights_watched(params: Params, step_name: str) -> Iterator[None]:
    """Tell if they are changed inside.

    Raises:
        CommandError: ``internal``, one was, and is not as it was.
    """
    before = _versions(params)
    yield
    if changed := _changed(params, before):
        detail = (
            f"{step_name} has changed weights ({changed[0]}) while the loss of each sample was "
            "looked for; they are not as they were: roll back."
        )
        raise CommandError(ErrorCode.INTERNAL, detail)


def _versions(params: Params) -> dict[str, int]:
    return {
        name: p._version  # noqa: SLF001 -- torch has no other name for it
        for name, p in params.items()
    }


def _changed(params: Params, before: Mapping[str, int]) -> list[str]:
    return [name for name, version in _versions(params).items() if before[name] != version]
