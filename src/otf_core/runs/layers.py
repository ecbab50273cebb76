"""What a layer gives for each sample of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

import torch
from torch import nn

from otf_core.errors import CommandError, ErrorCode

_TOLD: Final = 20


class LayerWatch:
    """Hears a layer while it is entered; training thread.

    Args:
        name: of the layer, as ``named_modules`` has it.

    Raises:
        CommandError: ``bad_payload``, there is no such layer.
    """

    def __init__(self, name: str, modules: Mapping[str, nn.Module]) -> None:
        if not name or name not in modules:
            known = [n for n in modules if n]
            detail = f"Features of layer {name!r} were asked; there are {', '.join(known[:_TOLD])}."
            raise CommandError(ErrorCode.BAD_PAYLOAD, detail, field="feature", allowed=known)
        self.name, self._module = name, modules[name]
        self._output: Any = None
        self._hook: Any = None

    def __enter__(self) -> None:
        self._hook = self._module.register_forward_hook(self._heard)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hook.remove()
        self._output = None

    def take(self, number: int) -> torch.Tensor:
        """Of the last forward, of shape (number, width): the mean over place or time.

        Raises:
            CommandError: ``unsupported``, the layer was not called, or gave no row for each.
        """
        output, self._output = self._output, None
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if not isinstance(output, torch.Tensor) or output.shape[:1] != (number,):
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else output
            detail = (
                f"Features of layer {self.name} were asked, a row for each of {number} samples; "
                f"found {shape!r}."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        found = output.detach().float()
        if found.ndim == 3:  # time, then width, as in transformers
            return found.mean(1)
        return found.flatten(2).mean(2) if found.ndim > 3 else found.reshape(number, -1)

    def _heard(self, module: Any, args: Any, output: Any) -> None:
        del module, args
        self._output = output
