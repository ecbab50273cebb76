"""A script is run as python runs it: what it sees, prints, leaves, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.script.rig import PATIENCE_S, environment

SCRIPTS = {
    "what a script sees": """
        import os, sys
        print(__name__, __file__, __spec__, __package__, __doc__, __builtins__.__name__)
        print(type(__loader__).__name__, sorted(globals()))
        print(sys.argv, sys.path, os.getcwd())
        print(sys.modules["__main__"].__dict__ is globals(), "torch" in sys.modules)
        """,
    "atexit that pickles": """
        import atexit, pickle
        class Kept:
            pass
        atexit.register(lambda: print(type(pickle.loads(pickle.dumps(Kept()))) is Kept))
        """,
    "spawned child": """
        import multiprocessing as mp
        class Answer:
            def __init__(self, n): self.n = n
        def work(n):
            print("child", __name__, flush=True)
            return Answer(n + 1)
        if __name__ == "__main__":
            with mp.get_context("spawn").Pool(1) as pool:
                print(pool.apply(work, (4,)).n)
        """,
    "a function that goes to another python by value": """
        import subprocess, sys
        import cloudpickle
        def total(n):
            found = 0
            for i in range(n):
                while found < i: found += 1
                found += sum(1 for _ in range(2))
            return found
        class Sums:
            def them(self): return [total(n) for n in range(3)]
        there = "import pickle, sys; f, a = pickle.load(sys.stdin.buffer); print(f(5), a.them())"
        sent = cloudpickle.dumps((total, Sums()))
        done = subprocess.run([sys.executable, "-c", there], input=sent, capture_output=True)
        print(done.stdout, done.stderr, total(5))
        """,
    "exit with words": "import sys\nprint(1)\nsys.exit('words')",
    "exit with a code": "import sys\nprint(1)\nsys.exit(3)",
    "exit with nothing": "exit()",
    "interrupt": """
        import os, signal
        print(1, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        print(2)
        """,
    "interrupt that is caught": """
        import os, signal
        try:
            os.kill(os.getpid(), signal.SIGINT)
            input()
        except KeyboardInterrupt:
            print("caught")
        """,
    "SIGTERM": """
        import os, signal
        print(1, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print(2)
        """,
    "own excepthook": """
        import sys
        def hook(kind, error, trace):
            print("hook", kind.__name__, error, trace.tb_frame.f_code.co_name, trace.tb_lineno)
        sys.excepthook = hook
        def fail():
            raise ValueError("no")
        fail()
        """,
    "excepthook that fails": """
        import sys
        def hook(*_):
            sys.exit(7)
        sys.excepthook = hook
        1 / 0
        """,
    "error in a function": """
        def outer():
            for n in range(3):
                inner(n)
        def inner(n):
            while True:
                return 1 // (1 - n)
        outer()
        """,
    "error with a cause": """
        def fail():
            try:
                {}["a"]
            except KeyError as error:
                raise RuntimeError("wrapped") from error
        try:
            fail()
        except RuntimeError:
            raise LookupError("again")
        """,
    "group of errors": """
        def fail(n):
            try:
                1 / n
            except ZeroDivisionError as error:
                return error
        raise ExceptionGroup("both", [fail(0), fail(0)])
        """,
    "syntax error": "print(1)\nif True print(2)",
    "syntax error of the compiler": "print(1)\nreturn 2",
    "warning of the compiler": "if 1 is 1:\n    print('\\d')",
    "another encoding": "# coding: latin-1\nprint(len('\xe9'))",
    "import error": "import nothing_like_this",
    "own module": "import local\nprint(local.value(3), local.__file__)",
    "late thread": """
        import threading
        def late():
            threading.main_thread().join()
            for n in range(2):
                print("late", n)
        threading.Thread(target=late).start()
        print("main")
        """,
    "nothing at all": "",
    "docstring and future": '''
        """Words."""
        from __future__ import annotations
        def f(x: nothing): ...
        print(__doc__, f.__annotations__)
        ''',
    "warning at run time": "import warnings\nwarnings.warn('careful')",
    "loops that run when the last objects go": """
        class Files:
            def __init__(self, *names):
                self.names = names
            def close(self):
                for name in self.names:
                    print("removed", name)
                while self.names:
                    self.names = self.names[1:]
            def __del__(self):
                self.close()
        def items():
            for n in range(3):
                try:
                    yield n
                finally:
                    print("left", n)
        files = Files("a", "b")
        files.itself = files
        waiting = items()
        next(waiting)
        """,
    "a generator that is open at the end, and a copy of builtins": """
        import builtins, pathlib
        pathlib.copied = dict(vars(builtins))
        def forever():
            while True:
                for n in range(3):
                    yield n
        waiting = forever()
        next(waiting)
        """,
    "error in a class body": "class A:\n    for n in (1, 0):\n        1 / n",
}


def both(argv: list[str], folder: Path) -> list[tuple[int, bytes, list[str]]]:
    """Exit code, stdout, and stderr without our lines: under python and under otf-fit."""
    found = []
    for how in ([], ["-m", "otf_core.cli.otf_fit"]):
        done = subprocess.run(
            [sys.executable, *how, *argv],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        lines = done.stderr.decode(errors="replace").splitlines()
        theirs = [line for line in lines if not line.startswith("otf: ")]
        found.append((done.returncode, done.stdout, theirs))
    return found


def written(text: str) -> bytes:
    return (textwrap.dedent(text).lstrip("\n") + "\n").encode("latin-1")


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_as_under_python(name: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_bytes(written(SCRIPTS[name]))
    (tmp_path / "local.py").write_text(
        "def value(n):\n    for _ in range(n):\n        n += 1\n    return n\n"
    )
    bare, under = both(["script.py", "--lr", "3e-4", "--", "-m"], tmp_path)
    assert under == bare


@pytest.mark.parametrize(
    "argv",
    [
        ["./folder/../folder/script.py"],
        ["folder/script.py", "-h"],
        ["-m", "package.train", "a", "--b"],
        ["-m", "package"],
        ["missing.py"],
    ],
)
def test_a_path_and_a_module_are_found_as_python_finds_them(
    argv: list[str], tmp_path: Path
) -> None:
    says = (
        "import sys, os\nfrom pathlib import Path\n"
        "print(sys.argv, sys.path[0], os.getcwd(), __file__, __package__)\n"
        "print(__spec__ and (__spec__.name, __spec__.origin), __name__)\n"
        "def fail():\n    for n in 'ab':\n        raise OSError(n)\nfail()\n"
    )
    for place in ("folder/script.py", "package/train.py", "package/__main__.py"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(says)
    (tmp_path / "package" / "__init__.py").write_text("print('package')\n")
    bare, under = both(argv, tmp_path)
    if argv[0] == "-m":  # python shows runpy's own frames there
        hidden = [n for n, line in enumerate(bare[2]) if "runpy" in line]
        assert hidden
        del bare[2][hidden[0] : hidden[-1] + 1]
    assert under == bare


def test_a_module_that_is_not_there_is_said(tmp_path: Path) -> None:
    bare, under = both(["-m", "nothing_like_this"], tmp_path)
    assert under == bare
    folder = tmp_path / "folder"
    folder.mkdir()
    _, (code, out, said) = both([str(folder)], tmp_path)
    assert (code, out) == (2, b"")
    assert said == [
        f"otf-fit was asked to run '{folder}', a folder; allowed: a file, or -m and a module"
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "which script?"),
        (["--telemetry", "all", "x.py"], "invalid choice"),
        (["--dashboard", "stdio", "x.py"], "stdout is the script's"),
        (["--lr", "x.py"], "unrecognized arguments"),
        (["--keep-checkpoints", "many", "x.py"], "invalid int"),
    ],
)
def test_what_cannot_be_run_is_a_usage_error(argv: list[str], said: str, tmp_path: Path) -> None:
    _, (code, out, lines) = both(argv, tmp_path)
    assert (code, out) == (2, b"")
    assert said in "\n".join(lines)


def test_help_is_ours_only_before_the_script(tmp_path: Path) -> None:
    _, (code, out, _) = both(["--help"], tmp_path)
    assert code == 0
    assert b"--pause-at-start" in out
    assert os.linesep.encode() in out
