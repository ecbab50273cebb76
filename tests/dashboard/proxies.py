"""What may stand between browser and dashboard: a forwarded port, proxies with a prefix."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

Rewrite = Callable[[bytes], bytes]


def stripping(prefix: str) -> Rewrite:
    """A proxy that takes its prefix off, and says so in a header, as they do."""

    def rewrite(head: bytes) -> bytes:
        method, target, rest = head.split(b" ", 2)
        assert target.startswith(prefix.encode()), target
        version, _, fields = rest.partition(b"\r\n")
        said = b"X-Forwarded-Prefix: /somewhere/else\r\nX-Forwarded-Host: evil.example\r\n"
        target = target[len(prefix) :] or b"/"
        return b" ".join((method, target, version)) + b"\r\n" + said + fields

    return rewrite


def keeping(head: bytes) -> bytes:
    """A proxy, or ``ssh -L``, that sends on what comes."""
    return head


@contextlib.asynccontextmanager
async def proxy(upstream: int, rewrite: Rewrite) -> AsyncIterator[int]:
    """In front of a port here; its own port. One request a connection, or a WebSocket."""
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        head = await reader.readuntil(b"\r\n\r\n")
        if b"upgrade: websocket" not in head.lower():
            head = head[:-2] + b"Connection: close\r\n\r\n"
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", upstream)
        try:
            up_writer.write(rewrite(head))
            await asyncio.gather(
                pipe(reader, up_writer), pipe(up_reader, writer), return_exceptions=True
            )
        finally:
            tasks.discard(task)
            up_writer.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
