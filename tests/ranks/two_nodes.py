"""Two machines with one rank each, as two network namespaces joined by a cable; run in the first:
``unshare --map-root-user --net python -m tests.ranks.two_nodes FOLDER``.

The dashboard is on the first machine's loopback, where the second cannot reach it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from otf_core.testing import LoopbackListener
from tests.ranks.rig import done, ended, held, started

ADDRESSES: Final = ("10.77.0.1", "10.77.0.2")


def ip(*args: str, within: tuple[str, ...] = ()) -> None:
    subprocess.run([*within, "ip", *args], check=True)


@contextlib.contextmanager
def joined() -> Iterator[tuple[str, ...]]:
    """What a command is to begin with to run on the other machine."""
    # It says a word when its network is another one.
    keeper = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert keeper.stdout is not None
    try:
        keeper.stdout.readline()
        other = ("nsenter", "--net", f"--target={keeper.pid}")
        ip(
            "link",
            "add",
            "cable0",
            "type",
            "veth",
            "peer",
            "name",
            "cable1",
            "netns",
            str(keeper.pid),
        )
        for n, (within, address) in enumerate(zip(((), other), ADDRESSES, strict=True)):
            ip("link", "set", "lo", "up", within=within)
            ip("address", "add", f"{address}/24", "dev", f"cable{n}", within=within)
            ip("link", "set", f"cable{n}", "up", within=within)
        yield other
    finally:
        keeper.communicate()


def node(number: int, folder: Path, port: int) -> tuple[str, ...]:
    """The command that is typed there."""
    return (
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
        *("--node-rank", str(number), "--master-addr", ADDRESSES[0], "--master-port", "29477"),
        *("-m", "tests.ranks.fitted", str(folder), str(port)),
    )


def main(folder: Path) -> None:
    with joined() as other, LoopbackListener(legacy_allowed=False) as listener:
        # A name of the machine need not lead to it here.
        first, second = ({"NODES": "2", "GLOO_SOCKET_IFNAME": f"cable{n}"} for n in range(2))
        with (
            started(*node(0, folder, listener.port), env=first) as here,
            started(*other, *node(1, folder, listener.port), env=second) as there,
            held(listener) as dashboard,
        ):
            done(dashboard, "set_param", path="lr", value=0.01)
            done(dashboard, "resume")
            stands = done(dashboard, "pause")["step"]
            assert done(dashboard, "save_ckpt")["step"] == stands
            done(dashboard, "resume")
            step = done(dashboard, "stop")["step"]
            for agent in (here, there):
                ended(agent)
        (folder / "told").write_text(f"{listener.port} {step}")


if __name__ == "__main__":
    os.environ["XDG_RUNTIME_DIR"] = sys.argv[1]
    main(Path(sys.argv[1]))
