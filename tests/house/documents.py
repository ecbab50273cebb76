"""Reads the project's documents for the tests that hold them true."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def section(text: str, title: str) -> str:
    """From the heading that ends in ``title`` to the next one of its rank or above."""
    found = re.search(rf"^(#+) (?:[\d.]+ )?{re.escape(title)}$", text, re.MULTILINE)
    assert found is not None, f"no section {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end is not None else rest


def table(text: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first column is headed ``first``; cells without backticks."""
    rows: list[dict[str, str]] = []
    heads: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            if rows:
                break
            heads = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not heads:
            heads = cells if cells[0] == first else []
        elif set(cells[0]) - set("-: "):
            rows.append(dict(zip(heads, cells, strict=True)))
    assert rows, f"no table headed {first!r}"
    return rows


def names(cell: str) -> tuple[set[str], set[str]]:
    """The fields that a cell lists before its first remark: those always there, those with a ``?``.

    What stands in brackets or backticks says more of a field and is left out.
    """
    plain = re.sub(r"\{.*?\}|\(.*?\)|\[.*?\]|`.*?`|/", "", cell.replace(" *or* ", ", "))
    words = [part.split()[0] for part in plain.partition(";")[0].split(",") if part.strip()]
    found = [word for word in words if re.fullmatch(r"\w+\??", word)]
    optional = {word[:-1] for word in found if word.endswith("?")}
    return {word for word in found if not word.endswith("?")}, optional
