"""What may be at the other end of a run: nobody, a dashboard that reads, one that has stalled."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator

HELLO = json.dumps({"id": "h", "cmd": "hello", "payload": {"protocol": "otf/1"}}).encode() + b"\n"
REPLAY = json.dumps({"id": "r", "cmd": "resume_from", "payload": {"seq": 0}}).encode() + b"\n"


@contextlib.contextmanager
def absent() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{free.getsockname()[1]}"  # bound, not listening: refused at once


@contextlib.contextmanager
def _serving(*, reads: bool) -> Iterator[str]:
    with socket.socket() as server:
        # Small, so that a dashboard that does not read is felt within a short run.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.bind(("127.0.0.1", 0))
        server.listen()
        over = threading.Event()
        open_: list[socket.socket] = []

        def serve() -> None:
            while not over.is_set():
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                open_.append(peer)
                with contextlib.suppress(OSError):
                    peer.sendall(HELLO + REPLAY)
                    while reads and peer.recv(65536):
                        pass

        thread = threading.Thread(target=serve, name="peer")
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            for peer in open_:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
                peer.close()
            thread.join()


def reading() -> contextlib.AbstractContextManager[str]:
    """A dashboard that takes everything."""
    return _serving(reads=True)


def stalled() -> contextlib.AbstractContextManager[str]:
    """A dashboard that shakes hands and never reads again."""
    return _serving(reads=False)


PEERS = {"absent": absent, "reading": reading, "stalled": stalled}
