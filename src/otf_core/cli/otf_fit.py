"""``otf-fit``: somebody's training script under control, not one line changed.

``otf-fit [options] train.py …`` or ``-m pkg.train …`` runs it as ``python`` would. Nothing of ours
ever goes to stdout, and torch is imported when the script does. ``otf-fit pkg.mod:Class …`` trains
a module that has no loop of its own.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import os
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from otf_core.script import by_value
from otf_core.script.border import Border
from otf_core.script.imported import when_imported
from otf_core.script.loops import LOOPS
from otf_core.script.run import CannotRunError, Target, folder_of, run

REFUSED_CODE: Final = 3
_CLASS: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Asked(NamedTuple):
    """What was typed: our options, and what is to be run."""

    options: dict[str, Any]
    stop_code: int
    target: Target

    @property
    def project(self) -> str:
        """What a run is filed under where nothing else is said: the script's name."""
        name = self.target.name
        return name.rpartition(".")[2] if self.target.module else Path(name).stem


def main() -> None:
    """Run the script; the exit code is the script's."""
    ours, command = _split(sys.argv[1:])
    if command and _CLASS.fullmatch(command[0]) and not os.path.exists(command[0]):
        _train(command[0], [*ours, *command[1:]])
        return
    asked = parse(sys.argv[1:])
    host = Host(asked)
    sys.argv = [asked.target.name, *asked.target.args]  # names the run where torch is there already
    atexit.register(host.close)  # first, so that it runs behind all that the script registers
    with when_imported("torch", host.attach), when_imported(by_value.PICKLER, by_value.mend):
        try:
            run(asked.target)
        except CannotRunError as error:
            host.ending = error
            sys.stderr.write(f"{error}\n")
            sys.exit(error.code)
        except BaseException as error:
            host.ending = error
            host.refuse_if_not_there(error)
            raise
        host.ended = True
        host.refuse_if_not_there(None)


def _train(place: str, args: list[str]) -> None:
    """A module without a loop, by ours."""
    from otf_core.runner import command

    try:
        command.run_module(place, args)
    except command.UsageError as error:
        _end(str(error), 2)
    except command.REFUSALS as error:
        _end(str(error), REFUSED_CODE)


class Host:
    """What is ours in the script's process, from the moment on that torch is there.

    Attributes:
        ending: what the script has ended with.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked, self._pid = asked, os.getpid()
        self._control: Any = None
        self._border = LOOPS.border = Border(say)
        self._border.refuses = self._refuses
        self.ending: BaseException | None = None
        self.ended = False

    def attach(self) -> None:
        """The script has imported torch: come in behind it."""
        if self._border.crossed:
            return
        try:
            self._attach()
        except Exception as error:  # noqa: BLE001 -- the border of a script
            self._border.cross(error)

    def _attach(self) -> None:
        path, folder = sys.path[:], folder_of(self._asked.target)
        rng = random.getstate()  # rich draws when it is imported
        # Not a module of the script's that is called as one that we need.
        sys.path[:] = [entry for entry in path if entry != folder]
        try:
            from otf_core import spawn
            from otf_core.opening import RunOptions
            from otf_core.script.control import ScriptControl
            from otf_core.script.ranks import expected, refused
            from otf_core.state.keeper import ResumeError
            from otf_core.steering.recipe import RecipeError
        finally:
            sys.path[:] = path
            random.setstate(rng)
        try:
            options = RunOptions(**{"project": self._asked.project, **self._asked.options})
        except ValueError as error:
            _end(str(error), 2)
        except RecipeError as error:
            _end(str(error), REFUSED_CODE)
        if options.recipe is not None and expected() > 1:
            _end(f"a recipe was asked for {expected()} ranks; allowed: one process", 2)
        if why := refused(options.every, expected()):
            _end(why, 2)
        try:
            if options.dashboard == "spawn" and _is_first_rank():  # now, not within a step
                dashboard = spawn.start_dashboard(Path(options.save_dir))
                options = dataclasses.replace(options, dashboard=dashboard)
        except RuntimeError as error:
            _end(str(error), REFUSED_CODE)
        asked = options.asked_origin() is not None
        try:
            self._control = ScriptControl(
                options,
                folder=folder,
                stop_code=self._asked.stop_code,
                say=say,
                origin=options.origin(None) if expected() == 1 else None,
                find=(lambda: options.origin(None)) if asked and expected() > 1 else None,
                border=self._border,
            )
        except ResumeError as error:
            _end(str(error), REFUSED_CODE)
        self._control.attach()

    def _refuses(self, said: str) -> bool:
        """A run that is to go on, before it is known from where."""
        if self._asked.options.get("resume") or os.environ.get("OTF_RESUME"):
            _end(f"{said}; the run does not go on, nothing was trained", REFUSED_CODE)
        return False

    def refuse_if_not_there(self, ending: BaseException | None) -> None:
        """A script that was to go on is over, and never was at the place: said, with its code."""
        said = self._control.never_arrived() if self._control is not None else None
        if said is not None:
            if said:
                say(said)
            if ending is None or isinstance(ending, SystemExit):
                sys.exit(REFUSED_CODE)

    def close(self) -> None:
        """The process is about to end, its threads and ``atexit`` functions are through."""
        if os.getpid() != self._pid:
            return
        trained = False
        try:
            trained = self._control is not None and self._control.close(self.ending)
        except Exception as error:  # noqa: BLE001 -- the border of a script
            self._border.cross(error, "the record of the run ends there")
        if self.ended and not trained and not self._border.crossed:
            say(_nothing_trained())


def say(line: str) -> None:
    """One line for the person at the terminal, wherever the script has led its stderr."""
    if _is_first_rank() and sys.__stderr__ is not None:
        with contextlib.suppress(OSError, ValueError):  # the script may have closed it
            sys.__stderr__.write(f"otf: {line}\n")
            sys.__stderr__.flush()


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _nothing_trained() -> str:
    if "torch" not in sys.modules:
        return "nothing was trained: the script did not import torch"
    said = "no training was seen: no optimizer has stepped, and there was no backward"
    if any(name.startswith("multiprocessing.popen_") for name in sys.modules):
        return f"{said} in this process; its child processes are plain python, otf is not in them"
    return said


def _end(said: str, code: int) -> NoReturn:
    if _is_first_rank():
        sys.stderr.write(f"otf-fit: {said}\n")
    sys.exit(code)


def parse(argv: Sequence[str]) -> Asked:
    """What was typed. Ends the process with usage and exit code 2 where that is nothing."""
    parser = _parser()
    ours, command = _split(argv)
    given = vars(parser.parse_args(ours))
    stop_code = given.pop("stop_code")
    if given["dashboard"] == "stdio" or os.environ.get("OTF_DASHBOARD") == "stdio":
        parser.error(
            "dashboard stdio: stdout is the script's; allowed: auto, spawn, off, host:port"
        )
    if not command or command == ["-m"]:
        parser.error("which script? otf-fit [options] train.py …, or -m pkg.train …")
    as_module = command[0] == "-m"
    name, *args = command[1:] if as_module else command
    target = Target(name, args, module=as_module)
    return Asked({k: v for k, v in given.items() if v is not None}, stop_code, target)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options, and from the script's name on what is the script's."""
    n = 0
    while n < len(argv):
        word = argv[n]
        if word == "--":
            return [*argv[:n]], [*argv[n + 1 :]]
        if word == "-m" or not word.startswith("-"):
            break
        takes_value = "=" not in word and word not in _FLAGS
        n += 2 if takes_value else 1
    return [*argv[:n]], [*argv[n:]]


_FLAGS: Final = ("--pause-at-start", "-h", "--help")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="otf-fit",
        usage="otf-fit [options] [--] train.py …  |  otf-fit [options] [--] -m pkg.train …  |  "
        "otf-fit pkg.mod:Class --data pkg.mod:Data … (--help behind the class)",
        description="Run a PyTorch training script as python would, and see, pause, change and "
        "stop it. Options stand before the script's name.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--project", metavar="NAME", help="folder of the run; the script's name")
    add("--run-name", metavar="NAME", help="the class of its model")
    add("--save-dir", metavar="DIR", help="where runs are kept; otf_runs")
    add("--dashboard", metavar="WHERE", help="auto, spawn, off, or host:port; auto")
    add("--resume", metavar="CHECKPOINT", help="go on from this file, or auto")
    add("--checkpoint-every", type=_every, metavar="N", help="steps, or a time as in 10min")
    add("--keep-checkpoints", type=int, metavar="N", help="automatic ones that are kept; 5")
    add("--telemetry", choices=("full", "basic", "off"), help="values of every step; full")
    add("--pause-at-start", action="store_true", default=None, help="hold at the first safe point")
    add("--max-pause", type=float, metavar="S", help="end a forgotten pause after S seconds")
    add("--at-max-pause", choices=("resume", "park"), help="what becomes of it then; resume")
    add("--guards", metavar="RULES", help="as in nan:pause;spike:rollback,z=8; none")
    add("--recipe", metavar="FILE", help="do what was done to another run; otf export recipe")
    add("--notify", action="append", metavar="WHOM", help="desktop, or the URL of a webhook")
    add("--stop-code", type=int, default=0, metavar="N", help="exit code of otf stop; 0")
    return parser


def _every(text: str) -> int | str:
    return int(text) if text.isdigit() else text


if __name__ == "__main__":
    main()
