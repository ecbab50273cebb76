"""docs/runner.md says what the Runner has and what it refuses, and nothing else."""

from __future__ import annotations

import dataclasses
import re

from otf_core.runner.callback import HOOKS
from otf_core.runner.facade import READS, WRITES
from otf_core.runner.options import Options
from otf_core.runner.refusals import ARGUMENTS, CALLS, MODULES, REFUSALS, TRAINER
from tests.house.documents import read, section, table

TEXT = read("docs/runner.md")


def test_what_is_refused_is_documented_with_its_sentence() -> None:
    parts = section(TEXT, "What it refuses").split("| asked for | instead |")[1:]
    tables = [table("| asked for | instead |" + part, "asked for") for part in parts]
    written = [{row["asked for"].strip("`"): row["instead"] for row in rows} for rows in tables]
    assert written == [ARGUMENTS, CALLS, MODULES, TRAINER]
    assert sum(map(len, written)) == len(REFUSALS)


def test_the_options_are_those_of_the_runner() -> None:
    written = {
        row["option"].strip("`"): row["default"].strip("`")
        for row in table(section(TEXT, "Options"), "option")
    }
    fields = dataclasses.fields(Options)
    there = {
        field.name: f'"{field.default}"' if isinstance(field.default, str) else repr(field.default)
        for field in fields
    }
    assert list(written.items()) == list(there.items())


def test_the_callbacks_methods_are_those_that_are_called() -> None:
    [line] = [line for line in section(TEXT, "Options").splitlines() if "`callbacks=`" in line]
    assert tuple(re.findall(r"`(on_\w+)`", line)) == HOOKS


def test_what_a_module_finds_in_its_trainer_is_listed() -> None:
    text = section(TEXT, "What a module finds in `self.trainer`")
    found, _, may_set = text.partition("It may set")
    assert re.findall(r"`(\w+)`", found) == [*sorted(READS), "print"]
    assert tuple(re.findall(r"`(\w+)`", may_set)) == WRITES
