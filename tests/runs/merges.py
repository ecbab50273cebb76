"""What the tests of merging share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs import merge
from otf_core.runs.merging import Evaluate, Options
from otf_core.runs.weights import LiveWeights, Weights
from otf_core.state.checkpoint_file import write_checkpoint

Tensors = dict[str, torch.Tensor]


def live(*found: Tensors) -> list[Weights]:
    """Sources called s0, s1 ..."""
    return [LiveWeights(f"s{place}", tensors) for place, tensors in enumerate(found)]


def on_disk(path: Path, tensors: Any) -> Path:
    """As a checkpoint of ours without its JSON."""
    write_checkpoint({"state_dict": tensors, "otf": {}}, path)
    return path


def merged(
    strategy: str,
    sources: Sequence[Weights],
    evaluate: Evaluate | None = None,
    **options: Any,
) -> Tensors:
    """The result, all of it."""
    return dict(merge.run(strategy, sources, Options(**options), evaluate).tensors())


def told(strategy: str, sources: Sequence[Weights], **options: Any) -> str:
    """The sentences, in one."""
    return "; ".join(merge.run(strategy, sources, Options(**options)).told)


def refusal(
    strategy: str,
    sources: Sequence[Weights],
    *,
    field: str,
    code: ErrorCode = ErrorCode.BAD_PAYLOAD,
    evaluate: Evaluate | None = None,
    **options: Any,
) -> str:
    """Why a merge is refused, before its first tensor."""
    with pytest.raises(CommandError) as error:
        merge.run(strategy, sources, Options(**options), evaluate)
    assert (error.value.code, error.value.field) == (code, field)
    return error.value.detail
