"""The live feed of a dashboard, ``/api/live``, for a program with an event loop.

Needs ``websockets``; everything else of the client does without.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from otf_core.client.client import Client, ClientError, NoDashboardError

REFUSED: Final = (4401, 4429)  # a wrong token, too many wrong ones
MAX_MESSAGE_BYTES: Final = 512 * 1024 * 1024
OPEN_S: Final = 10.0


class NotLetInError(ClientError):
    """The dashboard does not take this token, or none from here for a while."""

    def __init__(self, url: str, why: str) -> None:
        detail = f"the dashboard at {url} does not take this token ({why})"
        super().__init__({"error": "unauthorized", "code": "unauthorized", "detail": detail})


class LiveFeed:
    """One connection: what the dashboard says, as it says it."""

    def __init__(self, socket: ClientConnection, url: str) -> None:
        self._socket, self._url = socket, url

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Messages, the welcome first, for ever.

        Raises:
            NotLetInError: the token is not its.
            NoDashboardError: the connection has gone.
        """
        while True:
            try:
                message = json.loads(await self._socket.recv())
            except ConnectionClosed as error:
                raise self._gone(error) from error
            except ValueError as error:
                detail = f"What answers at {self._url} is no dashboard (no JSON)."
                raise NoDashboardError(detail) from error
            if isinstance(message, dict):
                yield message

    def _gone(self, error: ConnectionClosed) -> ClientError:
        if error.rcvd is not None and error.rcvd.code in REFUSED:
            return NotLetInError(self._url, error.rcvd.reason)
        return NoDashboardError(f"The connection to {self._url} is gone ({error}).")


@contextlib.asynccontextmanager
async def live(client: Client, name: str) -> AsyncIterator[LiveFeed]:
    """Connect and show the token.

    Args:
        name: what we call ourselves, as all who watch are shown it.

    Raises:
        NotLetInError: the dashboard refuses us by name.
        NoDashboardError: nothing answers there.
    """
    url = "ws" + client.url.removeprefix("http").rstrip("/") + "/api/live"
    opened = connect(
        url, max_size=MAX_MESSAGE_BYTES, proxy=None, open_timeout=OPEN_S, compression=None,
        ssl=client.ssl_context(),
    )  # fmt: skip
    try:
        socket = await opened
        client.believe(socket.transport.get_extra_info("ssl_object"))
    except (OSError, InvalidHandshake, InvalidMessage) as error:
        detail = f"The dashboard at {client.url} does not answer ({error}); start: otf dashboard"
        raise NoDashboardError(detail) from error
    async with socket:
        try:
            await socket.send(json.dumps({"token": client.token, "client": name}))
        except ConnectionClosed as error:
            detail = f"The connection to {client.url} is gone ({error})."
            raise NoDashboardError(detail) from error
        yield LiveFeed(socket, client.url)
