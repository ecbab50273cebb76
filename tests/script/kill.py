"""A script run to its end, or killed at a step and gone on, each in a fork of this process."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import importlib
import io
import json
import os
import random
import sys
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch

from otf_core.opening import RunOptions
from otf_core.script import marks
from otf_core.script.control import ScriptControl
from otf_core.script.run import Target, run
from otf_core.state.keeper import Origin, ResumeError
from otf_core.state.rng import get_rng
from tests.exact import forked

SHAPES: Final = Path(__file__).parent / "shapes"
TIMEOUT_S: Final = 60.0


@dataclasses.dataclass
class Ended:
    """What a script has left.

    Attributes:
        code: its exit code.
        digest: of weights, optimizers, random numbers.
        out: its stdout.
        said: what otf said.
        saved: the checkpoint at which it was killed.
        steps: that were trained in all.
    """

    code: int | None = None
    digest: dict[str, str] = dataclasses.field(default_factory=dict)
    out: str = ""
    said: list[str] = dataclasses.field(default_factory=list)
    saved: str | None = None
    steps: int = 0
    printed: int = 0
    exactness: str = ""


def warm_up() -> None:
    """What every fork would otherwise import for itself; no optimizer may be made."""
    importlib.import_module("torch._dynamo")
    torch.ones(1, requires_grad=True).sum().backward()


def plainly(script: Path, folder: Path) -> Ended:
    """As python runs it."""
    return _in_fork(lambda ended: _execute(script, ended.digest_path), script, folder, "plain")


def with_otf(
    script: Path,
    folder: Path,
    name: str,
    *,
    origin: str | None = None,
    kill_at: int | None = None,
    leave: Iterable[str] = (),
    back: tuple[int, int] = (-1, -1),
) -> Ended:
    """As otf-fit runs it.

    Args:
        origin: the checkpoint from which it goes on.
        kill_at: the step behind which it is saved, and killed by SIGKILL.
        leave: what is not put back.
        back: it is saved behind the first of these steps, and taken back behind the second.
    """

    def main(ended: _Told) -> None:
        controls: list[ScriptControl] = []

        def begin(marked: str) -> None:  # the script is ``__main__`` by now
            before(marked)
            start = Origin(Path(origin), None) if origin is not None else None
            try:
                control = ScriptControl(
                    _options(folder, name), folder=marked, say=ended.say, origin=start
                )
            except ResumeError as error:
                ended.say(str(error))
                sys.exit(3)
            control._reentry.core._leave = frozenset(leave)
            _change_moments(control, leave)
            control.attach()
            _at_each_step(control, ended, kill_at, back)
            controls.append(control)

        before = marks.begin
        try:
            with mock.patch.object(marks, "begin", begin):
                run(Target(str(script), [ended.digest_path]))
        finally:
            for control in controls:
                _end(control, ended)

    return _in_fork(main, script, folder, name)


def _change_moments(control: ScriptControl, leave: Iterable[str]) -> None:
    """The random numbers under which iterations began (a name in their position) are others."""
    apply = control._reentry.core.apply
    changed = [each for each in leave if each.startswith("rng_")]

    def changing(state: Any, moment: Any) -> Any:
        torch.manual_seed(99)
        for node in state["nodes"]:
            if node.get("k") == "batches":
                node["state"]["iterator"].update(dict.fromkeys(changed, get_rng()))
        return apply(state, moment)

    if changed:
        control._reentry.core.apply = changing  # type: ignore[method-assign]


def _options(folder: Path, name: str) -> RunOptions:
    return RunOptions(
        save_dir=folder / f"{name}-runs", project="p", dashboard="off", telemetry="off"
    )


def _end(control: ScriptControl, ended: _Told) -> None:
    ended.tell(steps=control.driver.step)
    if (said := control.never_arrived()) is not None:
        ended.say(said)
        sys.exit(3)
    control.close(sys.exception())


def _at_each_step(
    control: ScriptControl, ended: _Told, kill_at: int | None, back: tuple[int, int]
) -> None:
    tick: Callable[..., Any] = control.safe_point
    kept: list[bytes] = []

    def safe_point(frame: types.FrameType) -> None:
        tick(frame)
        control.frame = frame
        step = control.driver.step
        if step == back[0] and not kept:
            kept.append(_saved(control._delegate.capture()))
            sys.stdout.flush()
            ended.tell(printed=os.fstat(sys.stdout.fileno()).st_size)
        elif step == back[1] and len(kept) == 1:
            kept.append(b"")
            control._delegate.apply(torch.load(io.BytesIO(kept[0]), weights_only=True))
        if step == kill_at:
            _save_and_die(control, ended)
        control.frame = None

    control.safe_point = safe_point  # type: ignore[method-assign]


def _saved(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _save_and_die(control: ScriptControl, ended: _Told) -> None:
    session = control.session
    assert session is not None
    saved = session.save("ring")
    assert saved.wait(30.0)
    assert saved.error is None, saved.error
    ended.tell(saved=saved.path, exactness=session.exactness.text)
    sys.stdout.flush()
    forked.kill_myself()


class _Told:
    """What a fork tells while it lives."""

    def __init__(self, folder: Path, name: str) -> None:
        self.digest_path = str(folder / f"{name}.digest")
        self.path = folder / f"{name}.told"
        self.path.write_text("")

    def say(self, line: str) -> None:
        self.tell(say=line)

    def tell(self, **values: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def _execute(script: Path, digest_path: str) -> None:
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(script), __builtins__=builtins)
    sys.modules["__main__"] = main
    sys.argv = [str(script), digest_path]
    sys.path[0] = str(script.parent)
    exec(compile(script.read_bytes(), str(script), "exec", dont_inherit=True), main.__dict__)


def _in_fork(main: Callable[[_Told], None], script: Path, folder: Path, name: str) -> Ended:
    folder.mkdir(parents=True, exist_ok=True)
    told = _Told(folder, name)

    def child() -> int:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        with (folder / f"{name}.out").open("w") as out, contextlib.redirect_stdout(out):
            code = 0
            try:
                main(told)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            sys.stdout.flush()
        return code

    outcome = forked.run(child, folder, name, TIMEOUT_S)
    ended = Ended(code=outcome.result if outcome.how == "done" else None)
    if outcome.how not in ("done", "killed"):
        ended.said.append(f"{outcome.how}: {outcome.told()}")
    for line in told.path.read_text().splitlines():
        for key, value in json.loads(line).items():
            if key == "say":
                ended.said.append(value)
            else:
                setattr(ended, key, value)
    ended.out = (folder / f"{name}.out").read_text()
    if Path(told.digest_path).exists():
        ended.digest = json.loads(Path(told.digest_path).read_text())
    return ended


def killed_and_gone_on(
    script: Path, folder: Path, step: int, leave: Iterable[str] = ()
) -> tuple[Ended, Ended]:
    """The run that was killed behind a step, and the one that goes on from there."""
    killed = with_otf(script, folder, f"killed-{step}", kill_at=step)
    if killed.saved is None:
        return killed, killed
    name = "-".join(["on", str(step), *leave])
    return killed, with_otf(script, folder, name, origin=killed.saved, leave=leave)


def fault(plain: Ended, killed: Ended, on: Ended) -> str | None:
    """Why what follows a kill is not what it would have been; None: it is."""
    if killed.saved is None:
        return f"not killed: {killed.said}"
    if on.code != 0:
        return f"exit code {on.code}: {on.said}"
    if on.digest != plain.digest:
        parts = [k for k in plain.digest if on.digest.get(k) != plain.digest[k]]
        return f"other {', '.join(parts)}"
    rest = plain.out[len(killed.out) :]
    if not plain.out.startswith(killed.out) or not on.out.endswith(rest):
        return f"other output: {on.out[-300:]!r} in place of {rest[-300:]!r}"
    return None


def taken_back(script: Path, folder: Path, plain: Ended, steps: int) -> str | None:
    """Why a run that is taken back while it runs ends otherwise; None: it does not."""
    back = max(1, steps // 3), steps - 1
    ended = with_otf(script, folder, "back", back=back)
    if ended.code != 0:
        return f"exit code {ended.code}: {ended.said}"
    if ended.digest != plain.digest:
        return "another end"
    rest = plain.out[ended.printed :]
    again = ended.out.endswith(rest) and len(ended.out) > len(plain.out)
    return None if again else f"other output: {ended.out[-300:]!r} in place of {rest[-300:]!r}"


def main() -> None:
    """``python -m tests.script.kill folder shape [step …]``."""
    torch.set_num_threads(1)
    forked.adopt_orphans()
    warm_up()
    folder, shape, *steps = sys.argv[1:]
    script = SHAPES / f"{shape}.py"
    plain = plainly(script, Path(folder) / shape)
    say = lambda *words: sys.stdout.write(" ".join(map(str, words)) + "\n")  # noqa: E731
    say(shape, "plain", plain.code, plain.said)
    attached = with_otf(script, Path(folder) / shape, "otf")
    say(
        "attached",
        attached.digest == plain.digest and attached.out == plain.out,
        attached.said,
        attached.steps,
    )
    for step in map(int, steps or range(1, attached.steps + 1)):
        killed, on = killed_and_gone_on(script, Path(folder) / shape, step)
        say(step, fault(plain, killed, on) or "exact", killed.exactness, on.said[1:])


if __name__ == "__main__":
    main()
