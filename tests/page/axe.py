"""axe-core in a page of a test: what stands in the way of people who use it otherwise."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from playwright.sync_api import Page

AXE = Path("src/otf_core/dashboard/web/node_modules/axe-core/axe.min.js")
ROOT = Path(__file__).parents[2]

RUN = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .flatMap(({ id, nodes }) => nodes.map((node) =>
      `${id}: ${node.html} (${node.any.map((one) => one.message).join("; ")})`));
}"""


@cache
def _source() -> str:
    path = ROOT / AXE
    if not path.is_file():
        pytest.skip("axe-core is not there: the page was built without its development packages")
    return path.read_text()


def findings(page: Page) -> list[str]:
    """The serious and critical ones, each with the element it is about."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(_source())
    found: list[str] = page.evaluate(RUN)
    return found
