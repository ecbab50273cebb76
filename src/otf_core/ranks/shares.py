"""A scan whose samples are shared by all ranks: each finds the losses of its share, rank 0 has all.

Rule 1: every sample once. A share is whole batches of the scan that one process would make, each
rank's behind those of the rank before; a rank may have none. No sampler takes part.
Rule 2: what a rank finds has no collective in it, since ranks have different numbers of batches:
the module beneath the strategy's wrapper is called, a step that runs a collective is refused. So
is a run whose ranks have different data sets.
Rule 3: losses are those of rank 0's model. Parameters are the same on all ranks, buffers are sent:
the statistics of BatchNorm differ between two steps.
Rule 4: all work for one slice, then all look whether to go on: who cancels reaches all behind the
same slice.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from otf_core.errors import CommandError, ErrorCode
from otf_core.ranks.together import Others, send
from otf_core.runs.samples import Progress, Ruling, Scan
from otf_core.runs.scanned import Scanned
from otf_core.runs.subject import Subject
from otf_core.runs.table import Fingerprint, Ids, SampleTable, fingerprint_of
from otf_core.state.parts import named_buffers

PIECE_BYTES: Final = 32 * 2**20  # that all ranks send rank 0 at a time
MOST: Final = 2  # scans of another rank: one in the background, one beside it


def share_of(rank: int, world_size: int, samples: int, batch_size: int) -> range:
    """The places of a rank's samples: whole batches, as even as can be; the first is rank 0's."""
    batches = -(-samples // batch_size)
    begin, end = (-(-batches * each // world_size) * batch_size for each in (rank, rank + 1))
    return range(min(begin, samples), min(end, samples))


class NoCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses a collective inside, which the other ranks would not come to.

    Args:
        what: runs it, for people.
        allowed: in its place.
    """

    def __init__(self, what: str, allowed: str = "without it") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._what, self._allowed = what, allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.namespace:
            name = str(func.overloadpacket.__name__).rstrip("_")
            detail = (
                f"{self._what} runs a collective ({name}), to which the other ranks would not "
                f"come, since each looks by itself; the run is as it was; allowed: {self._allowed}."
            )
            raise CommandError(ErrorCode.UNSUPPORTED, detail)
        return func(*args, **(kwargs or {}))


class SharedScan:
    """Rank 0's side; see ``Scan``. Worked at a meeting.

    Args:
        others: which stand.

    Raises:
        CommandError: as ``Scan``.
    """

    def __init__(
        self, others: Others, subject: Subject, ids: Ids | None = None, *, layer: str | None = None
    ) -> None:
        self._others, self._subject, self._ids, self._layer = others, subject, ids, layer
        number = fingerprint_of(subject.dataset).size if ids is None else len(np.unique(ids))
        self._shares = [
            share_of(rank, others.world_size, number, subject.batch_size)
            for rank in range(others.world_size)
        ]
        self._number, self._key = number, secrets.token_hex(4)
        self._own = _scan_of_share(subject, ids, layer, self._shares[0])
        self.data = self._own.data
        self._heard: dict[int, _Told] = {}
        self._seconds = 0.0
        self._begun = False
        self._found: Scanned | None = None

    @property
    def told(self) -> str:
        """The rule that is used and why, for people."""
        told = self._ruling().told(self._subject.step_name)
        return f"{told}, on {len(self._shares)} ranks"

    def progress(self) -> Progress:
        """How far all are; any thread."""
        heard = list(self._heard.values())
        done = self._own.progress().done + sum(told.done for told in heard)
        etas = [self._own.progress().eta_s, *(told.eta_s for told in heard)]
        known = [eta_s for eta_s in etas if eta_s is not None]
        eta_s = max(known) if heard and known else None
        return Progress(done, self._number, self._seconds, eta_s, self.told)

    def slices(
        self, slice_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Progress]:
        """Work until all is done or somebody cancels; all ranks leave behind the same slice."""
        while self._found is None and not cancelled():
            yield self.work(slice_s)
        self._end()

    def work(self, slice_s: float, cancelled: Callable[[], bool] = lambda: False) -> Progress:
        """One slice on all ranks, and all that was found, once all is done.

        Raises:
            CommandError: as ``Scan.work``, with the rank where it is another's.
        """
        assert self._others.stand
        try:
            if not self._begun:
                self._begun = True
                self._begin()
            if not cancelled():
                self._slice(slice_s)
            if self.progress().finished:
                self._gather()
        except Exception:
            self._end()
            raise
        return self.progress()

    def table(self) -> SampleTable:
        """What was found, in the order of ids; nothing before all is done."""
        found = self._found or Scanned(self._own.all_ids)
        return found.table(self.data, self._number, self._layer)

    def _begin(self) -> None:
        asked = {
            "key": self._key,
            "on": self._subject.name,
            "layer": self._layer,
            "batch_size": self._subject.batch_size,
            "data": msgspec.to_builtins(self.data),
        }
        with self._others.do("scan_begin", asked, *map(_ends, self._shares)) as heard:
            send(self._ids)
        raise_refused(heard)
        own = self._own
        own.work(0.0)  # the first batch decides for all by which rule
        self._seconds = own.progress().seconds

    def _slice(self, slice_s: float) -> None:
        own, ruling = self._own, self._ruling()
        before_s = own.progress().seconds
        buffers = {n: b.detach().cpu() for n, b in named_buffers(self._subject.modules).items()}
        with self._others.do("scan_slice", self._key, slice_s, _plain(ruling)) as heard:
            send(buffers)
            own.work(slice_s)
        took = [own.progress().seconds - before_s]
        for rank, told in raise_refused(heard).items():
            now = msgspec.convert(told, _Told)
            took.append(now.seconds - (self._heard[rank].seconds if rank in self._heard else 0.0))
            self._heard[rank] = now
        self._seconds += max(took)
        self._do_again()

    def _do_again(self) -> None:
        """What was found by the step behind a place where that cannot be; see ``Scan.rule_by``.

        Rank 0 is never behind another.
        """
        ruling = self._ruling()
        for rank, told in self._heard.items():
            behind = ruling.alone_from is not None and ruling.alone_from < self._shares[rank].stop
            if behind and told.ruling.alone_from != ruling.alone_from:
                self._heard[rank] = dataclasses.replace(told, done=0)

    def _gather(self) -> None:
        """The columns of all shares, in pieces."""
        most = max([self._own.found.row_bytes, *(told.row_bytes for told in self._heard.values())])
        rows = max(1, PIECE_BYTES // (len(self._shares) * max(1, most)))
        found = Scanned(self._own.all_ids)
        for start in range(0, max(map(len, self._shares)), rows):
            with self._others.do("scan_piece", self._key, start, start + rows):
                parts = gathered(self._own.found.part(start, start + rows))
            for share, part in zip(self._shares, parts, strict=True):
                found.put(share.start + start, part)
        self._found = found

    def _end(self) -> None:
        if self._begun:
            self._begun = False
            with self._others.do("scan_end", self._key):
                pass

    def _ruling(self) -> Ruling:
        found = self._own.ruling
        for told in list(self._heard.values()):
            found = found.joined(told.ruling)
        return found


class ScanOfOther:
    """Another rank's side; its methods are rows of ``OtherRank.do``; training thread.

    Args:
        samples: a set of the run by its name.
    """

    def __init__(self, samples: Callable[[str], Subject], rank: int) -> None:
        self._samples, self._rank = samples, rank
        self._scans: dict[str, _Shared] = {}

    def rows(self) -> dict[str, Callable[..., Any]]:
        """By what rank 0 tells."""
        return {
            "scan_begin": self._begin,
            "scan_slice": self._slice,
            "scan_piece": self._piece,
            "scan_end": self._end,
        }

    def _begin(self, asked: dict[str, Any], *shares: list[int]) -> Any:
        ids = send(None)  # first, whatever is found then: rank 0 sends
        return refused_or(lambda: self._make(asked, ids, range(*shares[self._rank])))

    def _make(self, asked: dict[str, Any], ids: Ids | None, share: range) -> None:
        subject = dataclasses.replace(self._samples(asked["on"]), batch_size=asked["batch_size"])
        _refuse_another_data_set(
            subject.name,
            msgspec.convert(asked["data"], Fingerprint),
            fingerprint_of(subject.dataset),
        )
        while len(self._scans) >= MOST:  # that rank 0 has let lie
            self._scans.pop(next(iter(self._scans)))
        self._scans[asked["key"]] = _Shared(subject, ids, asked["layer"], share)

    def _slice(self, key: str, slice_s: float, ruling: dict[str, Any]) -> Any:
        buffers = send(None)
        return refused_or(lambda: self._scans[key].work(slice_s, _ruling_of(ruling), buffers))

    def _piece(self, key: str, start: int, stop: int) -> None:
        gathered(self._scans[key].scan.found.part(start, stop))

    def _end(self, key: str) -> None:
        self._scans.pop(key, None)


class _Shared:
    """A share of a scan, with the buffers of rank 0's model."""

    def __init__(self, subject: Subject, ids: Ids | None, layer: str | None, share: range) -> None:
        self._modules = subject.modules
        self._buffers: Mapping[str, torch.Tensor] = {}
        self.scan = _scan_of_share(subject, ids, layer, share, prepare=self._put_buffers)

    def work(self, slice_s: float, ruling: Ruling, buffers: Mapping[str, torch.Tensor]) -> Any:
        """A slice; how far it is."""
        self._buffers, scan = buffers, self.scan
        scan.rule_by(ruling)
        now = scan.work(slice_s)
        told = _Told(now.done, now.seconds, now.eta_s, scan.ruling, scan.found.row_bytes)
        return msgspec.to_builtins(told)

    def _put_buffers(self) -> None:
        with torch.no_grad():
            for name, buffer in named_buffers(self._modules).items():
                if name in self._buffers and self._buffers[name].shape == buffer.shape:
                    buffer.copy_(self._buffers[name])


@dataclasses.dataclass(frozen=True)
class _Told:
    """How far another rank is."""

    done: int
    seconds: float
    eta_s: float | None
    ruling: Ruling
    row_bytes: int


def _scan_of_share(
    subject: Subject,
    ids: Ids | None,
    layer: str | None,
    share: range,
    *,
    prepare: Callable[[], object] = lambda: None,
) -> Scan:
    what, allowed = subject.step_name, "a per_sample_loss(batch) of the module without one"
    if subject.hook is not None:
        what, allowed = "per_sample_loss", "without it"
    return Scan(
        subject,
        ids,
        layer=layer,
        share=share,
        prepare=prepare,
        rehearsed=lambda: NoCollectives(what, allowed),
    )


def _refuse_another_data_set(name: str, there: Fingerprint, here: Fingerprint) -> None:
    if there == here:
        return
    detail = (
        f"Its {name} set is another than rank 0's ({here.kind} with {here.size:,} samples, there "
        f"{there.kind} with {there.size:,}), so that ids would mean other samples; allowed: the "
        "same data set on all ranks."
    )
    raise CommandError(ErrorCode.UNSUPPORTED, detail)


def _ends(share: range) -> list[int]:
    return [share.start, share.stop]


def _plain(ruling: Ruling) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(ruling)
    return found


def _ruling_of(plain: dict[str, Any]) -> Ruling:
    return msgspec.convert(plain, Ruling)


def refused_or(work: Callable[[], Any]) -> Any:
    """What rank 0 is answered: a refusal as one, so that it stays of its kind."""
    try:
        return [None, work()]
    except CommandError as error:
        return [{"code": str(error.code), "detail": error.detail, "field": error.field}, None]


def raise_refused(heard: Mapping[int, Any]) -> dict[int, Any]:
    """What the others found; raises the first refusal among it, with the rank."""
    for rank, (refusal, _) in heard.items():
        if refusal is not None:
            code, detail = ErrorCode(refusal["code"]), f"Rank {rank}: {refusal['detail']}"
            raise CommandError(code, detail, field=refusal["field"])
    return {rank: found for rank, (_, found) in heard.items()}


def gathered(part: Any) -> list[Any]:
    """The parts of all on rank 0, in their order, nothing on the others; collective."""
    found: list[Any] = [None] * dist.get_world_size() if dist.get_rank() == 0 else []
    dist.gather_object(part, found or None)
    return found
