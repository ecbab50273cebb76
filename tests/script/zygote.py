"""Has torch imported, and forks a process for every script that it is asked to run.

Reads one JSON object a line: ``mode`` ("python" or "otf-fit"), ``argv``, ``cwd``, ``env``,
``stdout``, ``stderr``. Answers the child's process id, and when it has ended its exit status.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import runpy
import signal
import sys
from typing import Any


def main() -> None:
    for slow in ("numpy", "torch", "torch._dynamo"):
        importlib.import_module(slow)
    answer("ready")
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            become(asked)
            return
        answer({"pid": pid})
        _, status = os.waitpid(pid, 0)
        answer({"status": os.waitstatus_to_exitcode(status)})


def answer(said: object) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def become(asked: dict[str, Any]) -> None:
    """Run it as the main program of this process, which ends as any other does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    random.seed(0)  # a forked process has another seed each time
    os.environ.update(asked["env"])
    script, *_ = [word for word in asked["argv"] if word.endswith(".py")]
    folder = os.path.dirname(os.path.abspath(script))
    if asked["mode"] == "python":
        sys.argv, sys.path[0] = asked["argv"], folder
        runpy.run_path(script, run_name="__main__")
    else:
        from otf_core.cli import otf_fit

        if fault := asked["env"].get("FAULT"):
            put_in_fault(*fault.split(" "))
            random.seed(0)  # rich draws when it is imported
        sys.argv = ["otf-fit", *asked["argv"]]
        otf_fit.main()


def put_in_fault(module: str, path: str, nth: str) -> None:
    """The nth call of one of our functions fails, and all later ones."""
    owner: Any = importlib.import_module(module)
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), itertools.count(1)

    def fails(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= int(nth):
            raise ZeroDivisionError("planted")
        return function(*args, **kwargs)

    setattr(owner, name, fails)


if __name__ == "__main__":
    main()
