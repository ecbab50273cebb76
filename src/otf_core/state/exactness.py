"""The exactness report: what a run promises of its resume, and what it has found against it.

Rule 1: it never claims what was not looked at; what it says can only become worse while a run goes
on.
Rule 2: a snapshot of other versions, another number of threads or other data is refused with the
reason, unless somebody says that he wants it nevertheless (``OTF_RESUME_FORCE=1``).
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.run_folder import versions

FORCE: Final = "OTF_RESUME_FORCE"


@dataclasses.dataclass(frozen=True)
class Exactness:
    """What a resume will be.

    Attributes:
        reasons: why it will not be exact; empty: it will be.
        left_out: what is not in the state, and may matter.
    """

    reasons: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether what follows a resume is bit for bit what it would have been."""
        return not self.reasons

    @property
    def text(self) -> str:
        """One line for a person."""
        if self.reasons:
            return f"not exact because {'; '.join(self.reasons)}"
        if self.left_out:
            return f"exact except {', '.join(self.left_out)}"
        return "exact"

    def worse(self, reasons: Iterable[str], left_out: Iterable[str]) -> Exactness:
        """With what was found now; nothing that was found before goes."""
        known = dict.fromkeys((*self.reasons, *reasons))
        out = dict.fromkeys((*self.left_out, *left_out))
        return Exactness(tuple(known), tuple(out))

    def to_wire(self) -> dict[str, Any]:
        """As the event and ``run.json`` have it; the reasons of an exact one are its exceptions."""
        return {
            "exact": self.exact,
            "text": self.text,
            "reasons": list(self.reasons or self.left_out),
        }


def environment() -> dict[str, Any]:
    """What decides a run's numbers beside its state; plain values, any thread."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def of_kernels(device: torch.device, allowed: str) -> Iterator[str]:
    """Why the kernels of this device make a resume inexact.

    Args:
        allowed: how they are made deterministic there.
    """
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        yield f"kernels of CUDA may not be deterministic ({allowed})"


def refuse_elsewhere(
    state: Mapping[str, Any], here: Mapping[str, Any], env: Mapping[str, str]
) -> list[str]:
    """Refuse a snapshot from elsewhere, from which the run could not go on exactly.

    Args:
        here: what the framework says of this place; see ``ControlDelegate.environment``.
        env: the process environment; ``OTF_RESUME_FORCE=1`` allows it.

    Returns:
        What is other here, where that was allowed.

    Raises:
        CommandError: ``not_allowed_now``, with what is other here.
    """
    found = differences(state["otf"].get("environment", {}), {**environment(), **here})
    if found and env.get(FORCE) != "1":
        detail = f"It would not go on exactly: {'; '.join(found)}. {FORCE}=1 allows it."
        raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail)
    return found


def differences(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What is another than when a snapshot was taken, for a person; empty: nothing is."""
    found = []
    for name, was in saved.get("versions", {}).items():
        now = here["versions"].get(name, "none")
        # Our own version is told by the format of the snapshot.
        if now != was and name != "otf-lightning":
            found.append(f"{name} {now} (it was {was})")
    other_ranks = "ranks" in saved and saved["ranks"] != here.get("ranks")  # said by itself
    for name, said in (
        ("threads", "{} threads of torch (it was {})"),
        ("machine", "machine {} (it was {})"),
        ("data", "{} training batches an epoch (it was {})"),
    ):
        if other_ranks and name in ("data", "threads"):
            continue  # they come with the number of ranks
        if name in saved and saved[name] != here.get(name):
            found.append(said.format(here.get(name), saved[name]))
    return found
