"""Files that a person asks for: where one may lie, and how it comes there; any one thread.

Rule 1: a named file lies below home or the working directory once links are followed, has the
ending of its format, and takes no other file's place but that of an earlier one of ours.
Rule 2: without a name it lies in ``exports`` of the run's folder, under a name that is free.
Rule 3: it is there whole or not at all. What we wrote is listed in ``exports/written.json``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from otf_core.errors import CommandError, ErrorCode
from otf_core.protocol import automatic_names
from otf_core.state.manifest import whole_file

EXPORTS: Final = "exports"
WRITTEN: Final = "written.json"
Stamp = tuple[int, int]  # bytes, and when it was written in ns since 1970: another file has others


class OutFiles:
    """The files of one session.

    Args:
        run_dir: of the run that trains; None: the disk has none.
    """

    def __init__(self, run_dir: Callable[[], Path | None]) -> None:
        self._run_dir = run_dir
        self._written: dict[str, Stamp] = {}  # also where no run folder can list it

    def file(self, asked: str | None, *, name: str, ending: str) -> OutFile:
        """Where to write; nothing is written yet.

        Args:
            asked: the path that a person named, in the working directory if it is relative.
            name: without a path, the file's name in ``exports``, without its ending.
            ending: of its format, as ``.csv``.

        Raises:
            CommandError: ``bad_payload``, a path that is not allowed; ``not_allowed_now``, none
                was named and there is no run folder.
        """
        path = self._in_exports(name, ending) if asked is None else self._named(asked, ending)
        return OutFile(self, path)

    def is_ours(self, path: Path) -> bool:
        """Whether a file is one that an export wrote, and has been left as it was."""
        return not path.is_symlink() and stamp_of(path) in self._known(str(path))

    def note(self, path: Path, stamp: Stamp) -> None:
        """List a file. OSError as the disk has it."""
        self._written[str(path)] = stamp
        run_dir = self._run_dir()
        if run_dir is None:
            return
        folder = run_dir / EXPORTS
        folder.mkdir(exist_ok=True)
        listed = {**_listed(folder / WRITTEN), str(path): stamp}
        kept = {each: s for each, s in listed.items() if each == str(path) or Path(each).exists()}
        with whole_file(folder / WRITTEN) as file:
            file.write(msgspec.json.format(msgspec.json.encode(kept)))

    def _known(self, path: str) -> list[Stamp | None]:
        """As it was written by this session, or by any run of the project."""
        run_dir = self._run_dir()
        lists = [self._written]
        if run_dir is not None:
            lists += [_listed(each) for each in run_dir.parent.glob(f"*/{EXPORTS}/{WRITTEN}")]
        return [each[path] for each in lists if path in each]

    def _in_exports(self, name: str, ending: str) -> Path:
        run_dir = self._run_dir()
        if run_dir is None:
            detail = "An export was asked, but there is no run folder; allowed: an out_path."
            raise CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="out_path")
        folder = Path(os.path.realpath(run_dir)) / EXPORTS
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _disk(folder, error) from error
        return next(
            path
            for each in automatic_names(name)
            if not os.path.lexists(path := folder / f"{each}{ending}")
        )

    def _named(self, asked: str, ending: str) -> Path:
        try:
            path = Path(os.path.realpath(Path(asked).parent)) / Path(asked).name
            there = _is_there(path)
        except (OSError, ValueError) as error:  # a zero byte, a name that is too long
            raise _refused(asked, f"cannot be looked up ({error})", "another path") from None
        roots = self._roots()
        if not any(path.is_relative_to(root) for root in roots):
            allowed = " or ".join(str(root) for root in roots) or "no path here; leave it out"
            raise _refused(asked, f"is {path}", f"a file below {allowed}")
        if path.suffix.lower() != ending or not path.stem.strip("."):
            raise _refused(asked, f"ends in {path.suffix[:20]!r}", f"a name that ends in {ending}")
        if not path.parent.is_dir():
            raise _refused(asked, f"has no folder {path.parent}", "a folder that is there")
        if there and not self.is_ours(path):
            why = "is there already, and is not as an export left it"
            raise _refused(asked, why, "a new name, or that of an earlier export")
        return path

    def _roots(self) -> list[Path]:
        """Below which a named file may lie; the root of all is no bound."""
        run_dir, found = self._run_dir(), []
        for place in (Path.home, Path.cwd):
            with contextlib.suppress(OSError, RuntimeError):  # nobody's home; a folder that is gone
                found.append(place())
        found += [] if run_dir is None else [run_dir / EXPORTS]
        real = dict.fromkeys(Path(os.path.realpath(each)) for each in found)
        return [each for each in real if each != each.parent]


class OutFile:
    """One that is about to be written; made by ``OutFiles.file``.

    Attributes:
        path: where it will be, without links.
        bytes: its size, once it is written.
    """

    def __init__(self, files: OutFiles, path: Path) -> None:
        self._files, self.path, self.bytes = files, path, 0

    @contextlib.contextmanager
    def write(self) -> Iterator[IO[bytes]]:
        """A file that can be written and sought in; whole and in its place behind the block.

        Raises:
            CommandError: ``not_allowed_now``, the disk; ``bad_payload``, somebody has put a file
                there meanwhile. What was there is as it was, also where the block raises.
        """
        part = self.path.with_name(f".otf-{secrets.token_hex(6)}.part")
        try:
            try:
                with part.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                stamp = stamp_of(part)
                assert stamp is not None
                self._put(part, stamp)
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)
        except OSError as error:
            raise _disk(self.path, error) from error
        self.bytes = stamp[0]

    def _put(self, part: Path, stamp: Stamp) -> None:
        ours = self._files.is_ours(self.path)
        # Before it is there: what is not there and is listed does no harm.
        self._files.note(self.path, stamp)
        if ours:
            part.replace(self.path)
        else:
            try:
                os.link(part, self.path)  # fails where there is one by now; a rename would not
            except FileExistsError:
                why = "has been written by somebody else meanwhile"
                raise _refused(str(self.path), why, "a new name") from None
            except OSError:  # a file system without links
                if os.path.lexists(self.path):
                    raise
                part.replace(self.path)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def stamp_of(path: Path) -> Stamp | None:
    """What tells a file from one that took its place; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _listed(path: Path) -> dict[str, Stamp]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Stamp])
    except (OSError, ValueError):
        return {}


def _refused(asked: str, why: str, allowed: str) -> CommandError:
    detail = f"{asked[-200:]!r} was asked, which {why}; allowed: {allowed}. Nothing was written."
    return CommandError(ErrorCode.BAD_PAYLOAD, detail, field="out_path")


def _disk(path: Path, error: OSError) -> CommandError:
    why = (error.strerror or str(error)).lower()
    detail = f"{path} cannot be written ({why}); what was there before is as it was."
    return CommandError(ErrorCode.NOT_ALLOWED_NOW, detail, field="out_path")
