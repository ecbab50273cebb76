"""What the documents name exists: files, links, commands, arguments, and the snippets run."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import click
import lightning as L
import pytest
import torch

from otf_core import __version__
from otf_core.cli.otf import app
from otf_core.client.verbs import VERBS
from otf_core.control.actions import NOT_IN_THIS_VERSION
from otf_lightning import OnTheFlyCallback, inside
from otf_lightning.digits import Digits, LitDigits
from tests.house.documents import ROOT, read, section, table

DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/howto.md",
    "docs/protocol.md",
    "docs/architecture.md",
    "docs/runner.md",
    "docs/frameworks.md",
    "docs/scripts.md",
    "docs/dashboard.md",
    "docs/distributed.md",
    "docs/agents.md",
    "docs/steering.md",
    "docs/lightning.md",
    "examples/README.md",
)
PICTURE = "docs/images/live.png"
TOP = {"src", "tests", "docs", "examples", "benchmarks"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", read(name))
    broken = [
        link
        for link in links
        if not link.startswith("https://")
        and not ((ROOT / name).parent / link.partition("#")[0]).exists()
    ]
    assert not broken


def test_the_picture_is_one() -> None:
    picture = ROOT / PICTURE
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(head[16:20], "big") >= 1000, "too small to be read"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_path_in_the_text_exists(name: str) -> None:
    quoted = re.findall(r"`([\w./-]+)`", read(name))
    paths = [text for text in quoted if "/" in text and text.split("/")[0] in TOP]
    assert not [path for path in paths if not (ROOT / path).exists()]
    files = [text for text in quoted if re.fullmatch(r"[A-Za-z]\w*\.(md|toml)", text)]
    assert not [file for file in files if not (ROOT / file).exists()]


def test_the_architecture_names_every_module_of_the_core() -> None:
    text = read("docs/architecture.md")
    core = ROOT / "src" / "otf_core"
    modules = [
        path for path in core.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    ]
    left_out = [path.name for path in modules if f"src/otf_core/{path.name}" not in text]
    assert not left_out


def test_every_place_inside_lightning_is_explained() -> None:
    said = "\n".join(
        row["place"] for row in table(section(read("docs/architecture.md"),
                                              "What stands on private names of Lightning"), "place")
    )  # fmt: skip
    for owner, names in inside.PRIVATE.items():
        last = owner.rpartition(".")[2]
        known = [name for name in names if f"`{name}`" in said or f".{name}`" in said]
        assert known or f"`{last}`" in said, f"{owner}: {names}"


def _words(text: str) -> set[str]:
    """``otf WORD`` wherever it stands as code."""
    return set(re.findall(r"(?:^|`)otf ([a-z]+)", text, re.MULTILINE))


def test_every_command_that_is_documented_is_one_and_the_other_way_round() -> None:
    there = set(app.commands)
    assert _words("\n".join(map(read, DOCUMENTS))) <= there
    rows = table(section(read("README.md"), "Commands"), "command")
    assert {row["command"].strip("`").split()[1] for row in rows} == there
    assert {verb.word for verb in VERBS} < there


def test_every_option_that_is_documented_is_one() -> None:
    from otf_lightning import demo

    rows = table(section(read("README.md"), "Commands"), "command")
    for row in rows:
        word = row["command"].strip("`").split()[1]
        asked = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", row["what it does"]))
        if word == "demo":
            assert asked <= set(re.findall(r'"(--[a-z]+)"', inspect.getsource(demo.main)))
            continue
        command = app.commands[word]
        several = [*command.commands.values()] if isinstance(command, click.Group) else [command]
        there = {o for c in several for p in c.params for o in (*p.opts, *p.secondary_opts)}
        assert asked <= there, word
        takes_json = word not in ("dashboard", "demo", "mcp")  # which speaks to an agent
        assert ("--json" in there) == takes_json
    for verb in VERBS:
        options = {o for p in app.commands[verb.word].params for o in p.opts}
        assert {"--run", "--wait"} <= options


def test_the_arguments_of_the_callback_are_those_of_its_signature() -> None:
    rows = table(section(read("README.md"), "The callback"), "argument")
    written = {row["argument"].strip("`"): row["default"].strip("`") for row in rows}
    parameters = inspect.signature(OnTheFlyCallback.__init__).parameters
    there = {
        name: (f'"{p.default}"' if isinstance(p.default, str) else repr(p.default))
        for name, p in parameters.items()
        if name != "self"
    }
    assert list(written.items()) == list(there.items())


def test_every_variable_of_the_environment_is_read_and_the_other_way_round() -> None:
    rows = table(section(read("README.md"), "Environment"), "variable")
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r'"((?:OTF|ONTHEFLY)_[A-Z_]+|XDG_RUNTIME_DIR)"', code))
    assert {row["variable"].strip("`") for row in rows} == used


def _python(text: str, having: str) -> str:
    return next(str(s) for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if having in s)


def test_the_snippet_of_the_readme_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OTF_DASHBOARD", "off")
    quiet = "logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=3"
    snippet = _python(read("README.md"), "OnTheFlyCallback").replace(
        "L.Trainer(", f"L.Trainer(accelerator='cpu', {quiet}, "
    )
    names: dict[str, Any] = {"model": LitDigits(), "data": Digits()}
    exec(compile(snippet, "README.md", "exec"), names)
    trainer: L.Trainer = names["trainer"]
    assert trainer.global_step == 3
    assert len(list(tmp_path.glob("otf_runs/*/LitDigits/journal/*.jsonl"))) == 1


def test_the_example_does_what_the_snippet_does() -> None:
    example = (ROOT / "examples" / "lightning_digits.py").read_text()
    for line in _python(read("README.md"), "OnTheFlyCallback").splitlines():
        if "import" in line or line.startswith("trainer.fit("):
            assert line in example
    assert len(example.splitlines()) <= 50


def test_the_client_snippets_name_what_there_is() -> None:
    from otf_core import client

    for name in ("README.md", "docs/agents.md"):
        text = _python(read(name), "connect")
        called = set(re.findall(r"run\.(\w+)\(", text))
        assert {"pause", "set", "resume"} <= called
        assert all(callable(getattr(client.Run, each)) for each in called)
        assert callable(client.connect_async)


def test_every_make_target_that_is_named_is_one() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word
        for name in DOCUMENTS
        for word in re.findall(r"(?:^|`)make ([a-z]+)", read(name), re.MULTILINE)
    }
    assert named <= targets


def test_the_changelog_is_about_this_version_and_its_wire() -> None:
    text = read("CHANGELOG.md")
    assert f"## [{__version__}] - Unreleased" in text
    wire = section(text, "Protocol")
    listed = wire.partition("`unsupported` in this version: ")[2].partition(".")[0]
    assert set(re.findall(r"\w+", listed)) == NOT_IN_THIS_VERSION.keys()
