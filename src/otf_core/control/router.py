"""From the name of a command to the function that carries it out.

Rule 1: what is wrong with a registration shows when the session starts, not when somebody asks.
Rule 2: a payload is decoded into its struct before any handler runs.
Rule 3: the router is the border around handlers: whatever one raises becomes one reply, and never
reaches the training.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from otf_core import protocol
from otf_core.control.agreement import PeerLostError, StepAgreement
from otf_core.control.bus import Ticket
from otf_core.errors import CommandError, ErrorCode, LocalProtocolError

Handler = Callable[[Ticket], Any]
Check = Callable[[Ticket], None]


class Later:
    """What a handler returns that answers its ticket itself, when it is done."""


LATER: Final = Later()


class CommandRouter:
    """The table of handlers of one session.

    Args:
        on_crash: called with the ticket and the traceback when a handler fails by our own fault.
        agreement: of several ranks; a reply says how many of them have followed.
    """

    def __init__(
        self,
        on_crash: Callable[[Ticket, str], None] = lambda _ticket, _text: None,
        agreement: StepAgreement | None = None,
    ) -> None:
        self._agreement = agreement
        self._handlers: dict[str, tuple[Handler, Check | None]] = {}
        self._unsupported: dict[str, str] = {}
        self._on_crash = on_crash
        # Asked before a command is carried out, whoever gave it; raises CommandError.
        self.refuse: Callable[[str], None] = lambda _cmd: None

    def on(self, name: str, *, check: Check | None = None) -> Callable[[Handler], Handler]:
        """Register a handler; before the session starts.

        Args:
            name: a command of ``protocol.COMMANDS``.
            check: runs on the reader thread before the command is accepted; raises CommandError.

        Raises:
            LocalProtocolError: no such command, or one that has a handler already.
        """
        if name not in protocol.COMMANDS:
            msg = (
                f"handler for {name!r} was asked; there are {', '.join(sorted(protocol.COMMANDS))}"
            )
            raise LocalProtocolError(msg)
        self._refuse_twice(name)

        def register(handler: Handler) -> Handler:
            self._refuse_twice(name)
            self._handlers[name] = handler, check
            return handler

        return register

    def _refuse_twice(self, name: str) -> None:
        if name in self._handlers or name in self._unsupported:
            msg = f"handler for {name!r} was asked twice; allowed: one per command"
            raise LocalProtocolError(msg)

    def unsupported(self, reasons: Mapping[str, str]) -> None:
        """Commands that this run cannot carry out, each with one sentence that says why.

        The reason wins over a handler: a run of several ranks takes some commands back so.
        """
        for name in reasons:
            self._handlers.pop(name, None)
        self._unsupported.update(reasons)

    def missing(self) -> list[str]:
        """Commands of the protocol with neither a handler nor a reason."""
        known = self._handlers.keys() | self._unsupported.keys()
        return sorted(protocol.COMMANDS.keys() - known - protocol.ANSWERED_BY_CHANNEL)

    def capabilities(self) -> list[str]:
        """Every command that this run can carry out."""
        return sorted(self._handlers.keys() | protocol.ANSWERED_BY_CHANNEL)

    def allow(self, name: str) -> None:
        """Raise CommandError where this run cannot carry the command out; any thread."""
        if name in self._unsupported:
            raise CommandError(ErrorCode.UNSUPPORTED, self._unsupported[name])
        if name not in self._handlers:
            detail = f"{name} was asked; this session has nothing that carries it out."
            raise CommandError(ErrorCode.UNSUPPORTED, detail)

    def check(self, ticket: Ticket) -> None:
        """Refuse before accepting; reader thread. Raises CommandError."""
        name = ticket.request.cmd
        self.allow(name)
        _, check = self._handlers[name]
        if check is None:
            return
        try:
            check(ticket)
        except CommandError:
            raise
        except Exception as error:
            self._on_crash(ticket, traceback.format_exc())
            raise crashed(name, error) from error

    def run(self, ticket: Ticket) -> None:
        """Carry the command out and answer it; the thread of its lane."""
        self.carry_out(ticket, self._handle)

    def _handle(self, ticket: Ticket) -> Any:
        self.refuse(ticket.request.cmd)
        return self._handlers[ticket.request.cmd][0](ticket)

    def carry_out(self, ticket: Ticket, handler: Handler) -> None:
        """One handler, or a part of what one has put off with LATER; as ``run``."""
        agreement = self._agreement
        mark = agreement.mark if agreement is not None else 0
        try:
            data = handler(ticket)
        except CommandError as error:
            ticket.fail(error)
        except PeerLostError as error:  # the run learns of it where it looks next
            detail = f"{ticket.request.cmd} was not carried out: {error}."
            ticket.fail(CommandError(ErrorCode.INTERNAL, detail))
        except Exception as error:  # noqa: BLE001 -- border: a handler's fault is a reply, not a dead run
            self._on_crash(ticket, traceback.format_exc())
            ticket.fail(crashed(ticket.request.cmd, error))
        else:
            if data is LATER:
                return
            if agreement is not None and isinstance(data, dict) and "applied_step" in data:
                data = {**data, **agreement.followed(mark)}
            ticket.reply(data)


def crashed(cmd: str, error: BaseException) -> CommandError:
    """The reply for a failure that is ours, or the user's in code that we called."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return CommandError(ErrorCode.INTERNAL, f"{cmd} failed with {said[:500]}; training goes on.")
