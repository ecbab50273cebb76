"""The hooks of modules and tensors are those that were, or it is told that they are not."""

# ruff: noqa: E501 -- tables of scripts

from __future__ import annotations

from pathlib import Path

import pytest

from tests.script.again import goes_on
from tests.script.test_models import source

SETUP = (
    "net, h = nn.Linear(2, 2), None\ndef one(*a): pass\ndef two(*a): pass\n"
    "class Called:\n  def __call__(self, *a): pass\n"
    "def all_of(*fs):\n  for f in fs: net.register_forward_hook(f)\n"
)
FIRST = "h = net.register_forward_hook(one)"

# what is there before the loop, what the first turn does, what is told.
OTHERS = {
    "one that comes": ("", FIRST, "Linear: they were one:6, and are none here"),
    "one whose handle is not kept": ("", "net.register_forward_hook(one)", "they were one:6"),
    "one that goes": (FIRST, "h.remove()", "they were none, and are one:6 here"),
    "another": (FIRST, "h.remove(); h = net.register_forward_hook(two)", "they were two:7"),
    "another order": ("all_of(one, two)", "net._forward_hooks.clear(); all_of(two, one)", "two:7, one:6,"),
    "another kind": (FIRST, "h.remove(); h = net.register_forward_pre_hook(one)", "they were one:6"),
    "backward": ("", "net.register_full_backward_hook(one)", "they were one:6"),
    "before backward": ("", "net.register_full_backward_pre_hook(one)", "they were one:6"),
    "an object": ("", "net.register_forward_hook(Called())", "they were Called"),
    "a lambda": (
        "net.register_forward_hook(lambda *a: None)",
        "net._forward_hooks.clear()\n    net.register_forward_hook(lambda *a: None)",
        "they were <lambda>:",
    ),
    "of a tensor": ("", "net.weight.register_hook(one)", "a tensor of shape (2, 2): they were one:6"),
    "its handle": ("", FIRST, "the handle of the hook one:6, registered after this place"),
    "on a copy": ("kept = None", f"{FIRST}\n    kept = copy.deepcopy(net); h.remove()", "they were one:6"),
}  # fmt: skip


def of(before: str, change: str) -> str:
    return source(f"{SETUP}{before}", f"if turn == 0:\n    {change}", "h is None")


@pytest.mark.parametrize("what", OTHERS)
def test_hooks_that_came_or_went_are_told(what: str, tmp_path: Path) -> None:
    before, change, told = OTHERS[what]
    found = goes_on(of(before, change), tmp_path)
    assert told in "; ".join(found.given.lost)


@pytest.mark.parametrize("before", [FIRST, "all_of(one, two, Called(), lambda *a: None)"])
def test_hooks_that_the_script_registers_at_its_start_go_on(before: str, tmp_path: Path) -> None:
    found = goes_on(of(before, "pass"), tmp_path)
    assert found.given.lost == []
    assert found.on == found.whole


def test_a_handle_that_has_removed_its_hook_is_there_again(tmp_path: Path) -> None:
    change = f"if turn == 0: {FIRST}; h.remove()\nif turn == 2: h.remove()"
    found = goes_on(source(SETUP, change, "type(h).__name__, len(net._forward_hooks)"), tmp_path)
    assert found.given.lost == []
    assert found.on == found.whole
