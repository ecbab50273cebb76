"""Pages of the site that are made of files outside `docs`, so that each text exists once.

A hook of mkdocs (mkdocs.yml): the start page is README.md, tutorials are the notebooks, and links
between them and the documents are led to the pages that they have become.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY_LICENSES.txt": "licences.md",
    "LICENSE": "licence.md",
}
TEXTS: Final = {"THIRD_PARTY_LICENSES.txt": "What others have made", "LICENSE": "Licence"}
_LINK: Final = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Puts the notebooks where the table of contents has room for them."""
    for section in config["nav"]:
        if "Tutorials" in section:
            section["Tutorials"] = [{_title(nb): f"tutorials/{nb.stem}.md"} for nb in notebooks()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made."""
    from mkdocs.structure.files import File  # noqa: PLC0415, RUF100 -- only mkdocs runs this

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a document in docs/ that lead out of it."""
    made = page.file.generated_by is not None
    return markdown if made else led(markdown, f"docs/{page.file.src_uri}")


def notebooks() -> list[Path]:
    return sorted((ROOT / "examples").glob("[0-9][0-9]_*.ipynb"))


def pages() -> dict[str, str]:
    """Path in the site -> its text, for all that is not in docs/."""
    found: dict[str, str] = {}
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        told = f"# {TEXTS[source]}\n\n```text\n{text}```\n" if source in TEXTS else text
        found[page] = led(told, source)
    for notebook in notebooks():
        source = f"examples/{notebook.name}"
        found[_page_of(source) or ""] = led(_of_notebook(notebook), source)
    return found


def led(text: str, source: str) -> str:
    """The text with its links as the site has them; what it does not have becomes plain words."""
    here = _page_of(source) or source

    def one(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        page = _page_of(target)
        if page is None:
            return f"] (`{target}`)"
        return f"]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{link[2] or ''})"

    return _LINK.sub(one, text)


def _page_of(path: str) -> str | None:
    """Where a file of the project is in the site; None: it is not."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    name = re.fullmatch(r"examples/(\d\d_\w+)\.ipynb", path)
    return f"tutorials/{name[1]}.md" if name else None


def _title(notebook: Path) -> str:
    return _of_notebook(notebook).partition("\n")[0].removeprefix("# ")


def _of_notebook(notebook: Path) -> str:
    """Text and code; what the code answers is seen by whoever runs it."""
    parts = []
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(f"```python\n{text}\n```")
        else:
            parts.append(text)
    where = (
        f"*This page is the notebook `examples/{notebook.name}`; run it to see what it answers.*"
    )
    return "\n\n".join([parts[0], where, *parts[1:]]) + "\n"
