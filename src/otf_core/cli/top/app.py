"""The page in a terminal, with Textual; its event loop only.

Rule 1: one feed writes to the board, one timer draws it, at most five times a second.
Rule 2: nothing that blocks runs in the loop: REST calls are in threads, which touch no board.
Rule 3: a key sends a command and changes nothing else; what has become of it comes by the feed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from otf_core.cli.top import command
from otf_core.cli.top.dialogs import Answer, Ask, Choice, Keys
from otf_core.cli.top.screen import PANES, Shown, checkpoint_line, screen
from otf_core.cli.top.typed import Typed, read
from otf_core.client import Client, ClientError, NoDashboardError, RefusedError
from otf_core.client.band import closed, controls
from otf_core.client.board import READS, Board, Row
from otf_core.client.live import NotLetInError, live
from otf_core.client.states import name_of
from otf_core.client.verbs import UsageError
from otf_core.client.words import number

DRAW_S: Final = 0.2
NUMBERS_S: Final = 1.0
WAITS_S: Final = (0.5, 1.0, 2.0, 5.0)
READ_WAIT_S: Final = 10.0
ROWS_SCROLLED: Final = 5


class Top(App[int]):
    """All of it."""

    CSS = """
    Screen { background: transparent; overflow: hidden; }
    #board { width: 100%; height: 1fr; }
    #line { dock: bottom; height: 1; border: none; padding: 0; display: none; }
    """
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""  # the keys are verbs until a line is asked for
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "hold"),
        Binding("c", "verb('save_ckpt')"),
        Binding("v", "verb('validate_now')"),
        Binding("t", "verb('test_now')"),
        Binding("r", "roll_back"),
        Binding("x", "stop"),
        Binding("up", "run(-1)"),
        Binding("down", "run(1)"),
        Binding("tab", "pane(1)", priority=True),
        Binding("shift+tab", "pane(-1)", priority=True),
        Binding("pageup", "scroll(1)"),
        Binding("pagedown", "scroll(-1)"),
        Binding("colon,ctrl+p", "type"),
        Binding("question_mark", "keys"),
        Binding("escape", "close"),
        Binding("q", "quit"),
        Binding("ctrl+c", "quit", priority=True),
    ]

    def __init__(self, find: Callable[[], Client]) -> None:
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self.board, self.shown = Board(), Shown()
        self._find = find
        self._client: Client | None = None
        self._typed: dict[str, Typed] = {}
        self._drawn: tuple[Any, ...] = ()
        self._told_for: set[str] = set()
        self._numbers_due = asyncio.Event()

    def compose(self) -> ComposeResult:
        """The board, and a line to type on."""
        yield Static(id="board")
        yield Input(id="line", placeholder="a verb of otf: set lr 0.0005", compact=True)

    def on_mount(self) -> None:
        """Start looking and drawing."""
        self.board.lose("looking", self.board.now_ts(), "")
        self.run_worker(self._follow(), exit_on_error=True)
        self.run_worker(self._fetch(), exit_on_error=True)
        self.set_interval(DRAW_S, self.draw)
        self.draw()

    # -- drawing ----------------------------------------------------------------------------------

    def draw(self) -> None:
        """If something has changed, or a second has passed."""
        size = self.size
        state = (self.board.version, int(self.board.now_ts()), size, self.shown)
        if state == self._drawn or size.width == 0:
            return
        self._drawn = state
        lines = screen(self.board, size.width, self.board_height, self.shown)
        self.query_one("#board", Static).update(Text("\n").join(lines))

    @property
    def board_height(self) -> int:
        """Lines there are for the board."""
        return self.size.height - (1 if self.query_one("#line", Input).display else 0)

    def on_resize(self) -> None:
        """All of it anew."""
        self._drawn = ()
        self.draw()

    # -- what the dashboard tells -----------------------------------------------------------------

    async def _follow(self) -> None:
        """Look for a dashboard, and follow it; for ever."""
        tries = 0
        while True:
            try:
                client = self._find()
                async with live(client, command.NAME) as feed:
                    async for message in feed.messages():
                        tries = 0
                        self._take(client, message)
            except NotLetInError as error:
                self.board.lose("refused", self._local_ts(), str(error))
            except NoDashboardError as error:
                was = self.board.link.state
                known = was in ("up", "lost") or bool(self.board.sessions)
                self.board.lose("lost" if known else "looking", self._local_ts(), str(error))
            wait_s = WAITS_S[min(tries, len(WAITS_S) - 1)]
            tries += 1
            self.board.link.retry_ts = self._local_ts() + wait_s
            await asyncio.sleep(wait_s)

    def _local_ts(self) -> float:
        return self.board.now_ts()

    def _take(self, client: Client, message: dict[str, Any]) -> None:
        self.board.take(message, self.board.now_ts() - self.board.skew_s)
        if message.get("kind") == "welcome":
            self._client = client
            self.shown = Shown(self.shown.pane, self.shown.back, command.where(client))
            self._told_for.clear()
            self._numbers_due.set()
            self.run_worker(self._settle(client))
        elif message.get("kind") == "receipt":
            self._show_answer(message["receipt"])

    async def _settle(self, client: Client) -> None:
        """After a lost connection: what has become of what we had sent."""
        ours = [held for held in self.board.receipts.values() if held.mine and not held.settled]
        for held in ours:
            key = str(held.receipt["id"])
            try:
                said = await asyncio.to_thread(client.answer, held.session_id, key)
            except RefusedError:
                said = {"state": "unknown"}
            except ClientError:
                return
            if said["state"] == "unknown":
                self.board.take_receipt(held.session_id, {**held.receipt, "state": "unknown"})
            elif said.get("reply") is not None:
                reply = said["reply"]
                state = "applied" if reply.get("ok") is True else "refused"
                more = {"state": state, "reply": reply, "answered_ts": self.board.now_ts()}
                self.board.take_receipt(held.session_id, {**held.receipt, **more})

    async def _fetch(self) -> None:
        """Numbers and history of the run that is looked at; by REST, thinned by the dashboard."""
        while True:
            try:
                async with asyncio.timeout(NUMBERS_S):
                    await self._numbers_due.wait()
            except TimeoutError:
                pass  # a second has passed
            self._numbers_due.clear()
            row, client = self.board.current(), self._client
            if row is None or client is None or self.board.link.state != "up":
                continue
            try:
                await self._fetch_one(client, row)
            except ClientError as error:
                self.log(str(error))  # the feed says so as well, in its own time

    async def _fetch_one(self, client: Client, row: Row) -> None:
        key = row.session["session_id"]
        if key not in self._told_for:
            told = await asyncio.to_thread(command.history_of, client, row)
            self._told_for.add(key)
            self.board.told_of(key).take(told)
            self.board.version += 1
        curves = await asyncio.to_thread(command.curves_of, client, row)
        self.board.take_curves(row, curves)

    # -- keys -------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:  # noqa: ARG002 -- Textual's shape
        """While a line is typed or a dialog is open, the keys are theirs."""
        if action in ("quit", "close"):
            return True
        return not self.query_one("#line", Input).display and len(self.screen_stack) == 1

    def action_hold(self) -> None:
        """Pause or resume, whichever is offered."""
        row = self.board.current()
        if row is not None:
            self._press(controls(self.board, row)[0].cmd)

    def action_verb(self, cmd: str) -> None:
        """A command without arguments."""
        self._press(cmd)

    def _can(self, cmd: str) -> bool:
        """Whether its control is neither off nor pending."""
        found = [c for c in controls(self.board, self.board.current()) if c.cmd == cmd]
        ready = bool(found) and found[0].state not in ("off", "pending")
        if not ready:
            self.bell()
        return ready

    def _press(self, cmd: str, payload: dict[str, Any] | None = None) -> None:
        row = self.board.current()
        if row is not None and self._can(cmd):
            self._send(row, cmd, payload or {})

    def action_stop(self) -> None:
        """Ask how, then stop."""
        row = self.board.current()
        if row is None or not self._can("stop"):
            return
        name, step = name_of(row.session), number(row.session.get("step"))
        choices = [
            Choice("Keep training", None),
            Choice("Stop and save a checkpoint   (otf stop)", {}),
            Choice("Stop without saving   (otf stop --no-save)", {"save": False}),
        ]
        self._ask(f"Stop {name} at step {step}?", choices, row, "stop")

    def action_roll_back(self) -> None:
        """Ask to which checkpoint, then roll back."""
        row = self.board.current()
        if row is None or not self._can("rollback"):
            return
        now_ts, step = self.board.now_ts(), row.session.get("step")
        choices = [Choice("Stay where it is", None)]
        for checkpoint in self.board.checkpoints_of(row):
            at = checkpoint.get("step")
            redo = f"  {number(step - at)} steps to redo" if step and isinstance(at, int) else ""
            label = checkpoint_line(checkpoint, now_ts).strip() + redo
            choices.append(Choice(label, {"checkpoint": checkpoint.get("id")}))
        self._ask(
            f"Roll {name_of(row.session)} back to which checkpoint?", choices, row, "rollback"
        )

    def _ask(self, question: str, choices: list[Choice], row: Row, cmd: str) -> None:
        def chosen(payload: dict[str, Any] | None) -> None:
            # The run may have ended, or another be looked at, while the question stood.
            now = self.board.current()
            if payload is not None and now is not None and now.key == row.key and self._can(cmd):
                self._send(now, cmd, payload)

        self.push_screen(Ask(question, choices), chosen)

    def action_run(self, by: int) -> None:
        """The next run of the list."""
        rows, row = self.board.rows(), self.board.current()
        if row is None:
            return
        at = next(n for n, each in enumerate(rows) if each.key == row.key)
        self.board.chosen = rows[(at + by) % len(rows)].key
        self.board.version += 1
        self.shown = Shown(self.shown.pane, 0, self.shown.where)
        self._numbers_due.set()
        self.draw()

    def action_pane(self, by: int) -> None:
        """The next pane, where only one is shown."""
        at = (PANES.index(self.shown.pane) + by) % len(PANES)
        self.shown = Shown(PANES[at], 0, self.shown.where)
        self.draw()

    def action_scroll(self, by: int) -> None:
        """The log, up and down."""
        back = max(0, self.shown.back + by * ROWS_SCROLLED)
        self.shown = Shown(self.shown.pane, back, self.shown.where)
        self.draw()

    def action_keys(self) -> None:
        """What the keys do."""
        self.push_screen(Keys())

    async def action_quit(self) -> None:
        """Leave; runs go on."""
        self.exit(0)

    # -- the line that is typed -------------------------------------------------------------------

    def action_type(self) -> None:
        """Open it."""
        line = self.query_one("#line", Input)
        line.value = ""
        line.display = True
        line.focus()
        self._drawn = ()

    def action_close(self) -> None:
        """Close it."""
        line = self.query_one("#line", Input)
        line.display = False
        self.set_focus(None)
        self._drawn = ()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Send what was typed, or say what is wrong with it."""
        self.action_close()
        if event.value.strip():
            self.typed(event.value)

    def typed(self, line: str) -> None:
        """One line, as ``otf`` would take it."""
        row, shut = self.board.current(), closed(self.board, self.board.current())
        try:
            said = read(line)
        except UsageError as error:
            self.push_screen(Answer(line, str(error)))
            return
        if row is None or shut is not None:
            self.push_screen(Answer(line, f"Not now: {shut or 'no run'}. Nothing was sent."))
        elif said.verb.asks is not None:
            question = said.verb.asks.format(name=name_of(row.session))
            choices = [Choice("No", None), Choice(f"Yes: {said.verb.word}", said.payload)]
            self.push_screen(
                Ask(question, choices),
                lambda payload: None if payload is None else self._send(row, said.cmd, payload),
            )
        elif said.cmd in READS:
            self.run_worker(self._read(row, said, line))
        else:
            self._send(row, said.cmd, said.payload, said)

    async def _read(self, row: Row, said: Typed, line: str) -> None:
        """What only asks needs no receipt."""
        assert self._client is not None
        try:
            data = await asyncio.to_thread(
                self._client.send, row.session["session_id"], said.cmd, said.payload,
                READ_WAIT_S, by="cli", client=command.NAME,
            )  # fmt: skip
        except ClientError as error:
            self.push_screen(Answer(line, str(error)))
            return
        answer = said.verb.say(name_of(row.session), data, row.session)
        self.push_screen(Answer(line, answer))

    def _show_answer(self, receipt: dict[str, Any]) -> None:
        """What was typed here and has more to say than a line, or was refused."""
        key, reply = str(receipt.get("id")), receipt.get("reply")
        if key not in self._typed or reply is None:
            return
        said = self._typed.pop(key)
        row = self.board.current()
        if reply.get("ok") is not True:
            why = reply.get("detail") or reply.get("error") or "no reason given"
            self.push_screen(Answer(said.verb.word, f"Refused: {why}\nNothing changed."))
        elif row is not None and isinstance(reply.get("data"), dict):
            answer = said.verb.say(name_of(row.session), reply["data"], row.session)
            if "\n" in answer:
                self.push_screen(Answer(said.verb.word, answer))

    # -- sending ----------------------------------------------------------------------------------

    def _send(
        self, row: Row, cmd: str, payload: dict[str, Any], typed: Typed | None = None
    ) -> None:  # fmt: skip
        client, request_id = self._client, str(uuid.uuid4())
        if client is None or closed(self.board, row) is not None:
            self.bell()
            return
        if typed is not None:
            self._typed[request_id] = typed
        session_id = row.session["session_id"]
        self.board.asked(session_id, request_id, cmd, payload)
        self.draw()
        self.run_worker(self._submit(client, session_id, request_id, (cmd, payload)))

    async def _submit(
        self, client: Client, session_id: str, request_id: str, asked: tuple[str, dict[str, Any]]
    ) -> None:
        cmd, payload = asked
        try:
            await asyncio.to_thread(
                client.submit, session_id, cmd, payload,
                request_id=request_id, by="cli", client=command.NAME,
            )  # fmt: skip
        except RefusedError as error:
            self.board.refused(session_id, request_id, error.error)
            held = self.board.receipts.get(request_id)
            if held is not None:
                self._show_answer(held.receipt)
        except NoDashboardError as error:
            self.log(str(error))  # nobody can tell whether it arrived; settled on reconnect
