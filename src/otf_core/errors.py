"""Errors of the core; the lowest floor, so that nothing loops.

Rule 1: every message says what was asked, what was found and what is allowed.
Rule 2: what somebody on the wire did wrong is a CommandError and is answered; it is never raised
into training.
"""

from __future__ import annotations

import enum
from typing import Any


class ErrorCode(enum.StrEnum):
    """Why a command was refused; the wire's ``code``."""

    BAD_PAYLOAD = "bad_payload"
    UNKNOWN_COMMAND = "unknown_command"
    NOT_ALLOWED_NOW = "not_allowed_now"
    NOT_FOUND = "not_found"
    BUSY = "busy"
    UNAUTHORIZED = "unauthorized"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


class OtfError(Exception):
    """Base of everything that this package raises on purpose."""


class LocalProtocolError(OtfError):
    """Our side was asked to do what the protocol does not allow; a mistake of the caller."""


class RemoteProtocolError(OtfError):
    """The other side sent what is no message; it is answered and skipped."""


class CommandError(OtfError):
    """A command that is refused, or has failed; becomes the error reply.

    Args:
        code: one of the table in docs/protocol.md.
        detail: one sentence that says what was asked, found and allowed.
        field: the payload key at fault.
        allowed: what would have been taken: ``{"min": …, "max": …}`` or a list.
        retry_after_s: for ``busy``, when to ask again, in seconds.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        *,
        field: str | None = None,
        allowed: Any = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.field, self.allowed, self.retry_after_s = field, allowed, retry_after_s

    def to_wire(self) -> dict[str, Any]:
        """``{error, code, detail, field?, allowed?, retry_after_s?}`` as otf/1 has it."""
        optional = {
            "field": self.field,
            "allowed": self.allowed,
            "retry_after_s": self.retry_after_s,
        }
        said = {key: value for key, value in optional.items() if value is not None}
        return {"error": self.code.value, "code": self.code.value, "detail": self.detail, **said}
