"""Graphs of autograd that live on between two steps: no checkpoint can hold one.

A graph whose backward has run is over: what it had saved is gone, and going through it again
raises. Of what has saved nothing (sums, scalings) that cannot be told.
"""

from __future__ import annotations

from typing import Any, Final

import torch

# What is used of torch 2.13 beyond its documentation: owner -> names.
PRIVATE: Final = {"autograd": ("_get_sequence_nr",), "autograd.Node": ("_sequence_nr",)}
MOST: Final = 200  # nodes that are looked at


def now() -> int:
    """A number that later nodes of this thread's graphs are not below."""
    private: Any = torch.autograd
    number: int = private._get_sequence_nr()  # noqa: SLF001 -- see PRIVATE
    return number


def lives_on(tensor: torch.Tensor, turn: int) -> bool | None:
    """Whether a backward may yet go through a tensor's graph into what was before this turn.

    Args:
        turn: ``now`` when this turn of the loop began.

    Returns:
        None: there is a graph, of this turn alone; it matters only where it is used later.
    """
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    older = False
    while waiting and len(seen) < MOST:
        node = waiting.pop()
        if node is None or node in seen or hasattr(node, "variable"):  # gathers a gradient
            continue
        seen.add(node)
        if _is_over(node):
            return False
        if node._sequence_nr() < turn:  # noqa: SLF001 -- see PRIVATE
            older = True
        waiting += [each for each, _ in node.next_functions]
    return (older or None) if seen else False


def _is_over(node: Any) -> bool:
    names = [n for n in dir(node) if n.startswith("_saved_") or n == "saved_tensors"]
    try:
        for name in names:
            getattr(node, name)
    except RuntimeError:  # "Trying to backward through the graph a second time"
        return True
    return False
