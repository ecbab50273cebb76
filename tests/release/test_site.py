"""The site: every page is reached, every link leads to one, every reference is to something."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from release import site
from tests.release.built import ROOT


def _site() -> dict[str, Any]:
    found: dict[str, Any] = site.on_config(yaml.safe_load((ROOT / "mkdocs.yml").read_text()))
    return found


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in _pages(part)]


def _texts() -> dict[str, str]:
    docs = ROOT / "docs"
    written = {p.relative_to(docs).as_posix(): p for p in docs.rglob("*.md")}
    return site.pages() | {
        name: site.on_page_markdown(
            path.read_text("utf-8"),
            SimpleNamespace(file=SimpleNamespace(generated_by=None, src_uri=name)),
        )
        for name, path in written.items()
    }


def test_every_page_is_in_the_table_of_contents_and_the_other_way_round() -> None:
    config = _site()
    reached = _pages(config["nav"])
    assert len(reached) == len(set(reached))
    assert {*reached, config["not_in_nav"].strip()} == _texts().keys()


def test_every_notebook_is_a_tutorial() -> None:
    tutorials = next(s["Tutorials"] for s in _site()["nav"] if "Tutorials" in s)
    there = [p.stem for p in sorted((ROOT / "examples").glob("*.ipynb"))]
    assert [Path(page).stem for entry in tutorials for page in entry.values()] == there
    assert all(re.match(r"\w", title) for entry in tutorials for title in entry)


def test_every_link_leads_to_a_page_of_the_site() -> None:
    texts = _texts()
    for name, text in texts.items():
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", text):
            target = (ROOT / "docs" / name).parent / link
            page = target.resolve().relative_to((ROOT / "docs").resolve()).as_posix()
            assert page in texts or target.is_file(), f"{name}: {link}"


def test_every_reference_is_to_something() -> None:
    said = "\n".join(p.read_text() for p in (ROOT / "docs/reference").glob("*.md"))
    named = re.findall(r"^::: ([\w.]+)$", said, re.MULTILINE)
    assert len(named) >= 20
    for each in named:
        module, _, name = each.rpartition(".")
        assert getattr(importlib.import_module(module), name).__doc__, each


@pytest.mark.parametrize(
    ("text", "source", "led"),
    [
        ("[a](docs/runs.md#scan)", "README.md", "[a](runs.md#scan)"),
        ("[a](../README.md)", "docs/runs.md", "[a](index.md)"),
        ("[a](../examples/01_first_run.ipynb)", "docs/runs.md", "[a](tutorials/01_first_run.md)"),
        ("[a](../docs/runs.md)", "examples/01_first_run.ipynb", "[a](../runs.md)"),
        ("[a](../protocol.md#x)", "docs/reference/client.md", "[a](../protocol.md#x)"),
        ("[a](../src/x.py)", "docs/runs.md", "[a] (`src/x.py`)"),
        ("[a](https://x.org/y) [b](#c)", "README.md", "[a](https://x.org/y) [b](#c)"),
    ],
)
def test_a_link_is_led_to_what_its_target_has_become(text: str, source: str, led: str) -> None:
    assert site.led(text, source) == led
