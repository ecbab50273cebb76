"""What opens over the board; each closes with Esc and changes nothing by itself."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from otf_core.client.words import one_line

_CSS: Final = """
.box { width: 90%; max-width: 96; height: auto; max-height: 90%; border: round ansi_cyan;
       padding: 0 1; background: ansi_default; }
Ask, Answer, Keys { align: center middle; background: transparent; }
OptionList { border: none; padding: 0; height: auto; max-height: 16; background: ansi_default; }
OptionList > .option-list--option-highlighted { text-style: reverse bold; }
VerticalScroll { height: auto; max-height: 100%; }
"""
KEYS: Final = (
    ("Space", "pause, resume"),
    ("C", "save a checkpoint"),
    ("V", "validate"),
    ("T", "test"),
    ("R", "roll back: asks to which checkpoint"),
    ("X", "stop: asks how"),
    ("↑ ↓", "choose the run"),
    ("Tab", "Runs, Log, Checkpoints"),
    ("PgUp PgDn", "scroll the log"),
    (": Ctrl-P", "type any verb of otf: set lr 0.0005, fork, scan, params …"),
    ("Esc", "close what is open"),
    ("q Ctrl-C", "leave; runs go on"),
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One answer; without a payload nothing is sent."""

    label: str
    payload: dict[str, Any] | None


class Ask(ModalScreen[dict[str, Any] | None]):
    """A question; the answer that changes nothing has the focus."""

    CSS = _CSS
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)")]

    def __init__(self, question: str, choices: list[Choice]) -> None:
        super().__init__()
        self._question, self._choices = question, choices

    def compose(self) -> ComposeResult:
        """The question above its answers."""
        with Vertical(classes="box"):
            yield Static(Text(one_line(self._question), style="bold"))
            yield OptionList(*(Option(Text(one_line(c.label))) for c in self._choices))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Taken."""
        self.dismiss(self._choices[event.option_index].payload)


class Answer(ModalScreen[None]):
    """Text that is longer than a line."""

    CSS = _CSS
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q", "dismiss(None)")]

    def __init__(self, title: str, said: str) -> None:
        super().__init__()
        self._title, self._said = title, said

    def compose(self) -> ComposeResult:
        """A heading and what was said."""
        lines = [one_line(line) for line in self._said.splitlines()]
        with VerticalScroll(classes="box"):
            yield Static(Text(one_line(self._title), style="bold"))
            yield Static(Text("\n".join(lines)))
            yield Static(Text("Esc closes", style="bright_black"))


class Keys(Answer):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark", "dismiss(None)")]

    def __init__(self) -> None:
        super().__init__("Keys", "\n".join(f"{key:<10} {what}" for key, what in KEYS))
