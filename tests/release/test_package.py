"""What is shipped: files and metadata of wheel and sdist, the work of others in them."""

from __future__ import annotations

import email
import json
import re
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from otf_core import __version__
from otf_core.extras import EXTRAS, PACKAGES
from release import api, bundled
from tests.release.built import ROOT, build

WEB = "otf_core/dashboard/web/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")


def _files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


@pytest.mark.timeout(180)
def test_the_wheel_holds_what_runs_and_nothing_else(wheel: Path) -> None:
    names = {name for name in _files(wheel) if ".dist-info/" not in name}

    sources = ROOT / "src"
    code = {p.relative_to(sources).as_posix() for p in sources.rglob("*.py")}
    page = {name for name in names if name.startswith(WEB)}
    assert {name for name in names if name.endswith(".py")} == {
        name for name in code if "/node_modules/" not in name
    }
    assert names - code - page == {
        "otf_core/py.typed", "otf_core/runs/report.css", "otf_lightning/py.typed",
    }  # fmt: skip
    assert {name.removeprefix(WEB).partition("/")[0] for name in page} == {"dist"}


@pytest.mark.timeout(180)
def test_the_page_is_in_the_wheel_and_finds_its_files(wheel: Path) -> None:
    files = _files(wheel)
    page = files[f"{WEB}dist/index.html"].decode()
    asked = re.findall(r'(?:src|href)="\./([^"]+)"', page)
    assert {Path(name).suffix for name in asked} >= {".js", ".css"}
    assert all(files[f"{WEB}dist/{name}"] for name in asked)


@pytest.mark.timeout(180)
def test_the_metadata_is_whole(wheel: Path) -> None:
    files = _files(wheel)
    about = f"otf_lightning-{__version__}.dist-info"
    said = email.message_from_bytes(files[f"{about}/METADATA"])
    assert wheel.name == f"otf_lightning-{__version__}-py3-none-any.whl"
    assert said["Version"] == __version__ == _project()["version"]
    assert said["License-Expression"] == "MIT"
    assert set(said.get_all("Provides-Extra", [])) == {*EXTRAS, "all", "dev", "docs"}
    assert files[f"{about}/entry_points.txt"].decode().count(":main") == 2
    for name in ("LICENSE", "THIRD_PARTY_LICENSES.txt"):
        assert files[f"{about}/licenses/{name}"] == (ROOT / name).read_bytes()
    assert files[f"{about}/sboms/page.cdx.json"] == bundled.SBOM.read_bytes()


@pytest.mark.timeout(180)
def test_the_sdist_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    there = {p.name for p in source.iterdir()}
    assert there >= {"README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "docs"}
    assert not [p for p in source.rglob("*") if p.name in ("node_modules", "__pycache__")]
    assert _files(build(source, tmp_path / "out", "wheel")) == _files(wheel)


def test_the_table_of_extras_is_that_of_the_project() -> None:
    project = _project()
    declared: dict[str, list[str]] = project["optional-dependencies"]

    def packages(extra: str) -> set[str]:
        found: set[str] = set()
        for each in declared[extra]:
            name = re.match(r"[\w-]+", each)
            assert name is not None
            inner = re.match(r"otf-lightning\[(.*)\]", each)
            found |= set().union(*map(packages, inner[1].split(","))) if inner else {name[0]}
        return found

    for extra, names in EXTRAS.items():
        assert packages(extra) == {PACKAGES.get(name, name) for name in names}, extra
    assert packages("all") == set().union(*map(packages, EXTRAS))
    assert packages("all") <= packages("dev")


def test_the_sbom_is_of_the_page_s_lock() -> None:
    lock = bundled.read_lock()
    assert bundled.SBOM.read_text() == bundled.text_of(bundled.sbom(lock)), "make records"
    wanted = json.loads((bundled.WEB / "package.json").read_text())["dependencies"]
    found = bundled.packages(lock)
    assert wanted.keys() <= found.keys()
    permitted = {"MIT", "ISC", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0"}
    assert {row["license"] for row in found.values()} <= permitted


def test_the_licences_of_others_are_passed_on() -> None:
    text = bundled.LICENCES.read_text()
    for name, row in bundled.packages(bundled.read_lock()).items():
        assert f"\n{name} {row['version']} ({row['license']})\n" in text, "make records"
    modules = bundled.WEB / "node_modules"
    if modules.is_dir():
        assert text == bundled.licences(bundled.read_lock(), modules), "make records"


def test_what_only_builds_the_page_is_not_told_as_part_of_it() -> None:
    row = {"version": "1.0.0", "license": "MIT", "integrity": "sha512-AAAA"}
    lock = {
        "name": "page",
        "packages": {
            "": {}, "node_modules/a": row, "node_modules/b": {**row, "dev": True},
            "node_modules/a/node_modules/@s/c": row,
        },
    }  # fmt: skip
    said = bundled.sbom(lock)
    assert [each["purl"] for each in said["components"]] == [
        "pkg:npm/a@1.0.0", "pkg:npm/%40s/c@1.0.0",
    ]  # fmt: skip
    assert said["components"][0]["hashes"] == [{"alg": "SHA-512", "content": "000000"}]
    del row["license"]
    with pytest.raises(bundled.LicenceError, match=r"names no licence of a 1\.0\.0"):
        bundled.sbom(lock)


def test_a_package_without_a_licence_is_not_passed_on(tmp_path: Path) -> None:
    lock = {"packages": {"node_modules/a": {"version": "1.0.0", "license": "MIT"}}}
    (tmp_path / "a").mkdir()
    with pytest.raises(bundled.LicenceError, match="has no file LICENSE"):
        bundled.licences(lock, tmp_path)
    (tmp_path / "a/LICENSE.md").write_text("as you like\n")
    assert bundled.licences(lock, tmp_path).endswith(
        "a 1.0.0 (MIT)\n-------------\n\nas you like\n"
    )


def test_the_public_names_are_those_that_were_written_down() -> None:
    """A change here is a change of what people build on: `make records`, and look at the diff."""
    told, pinned = api.text().splitlines(), api.PINNED.read_text().splitlines()
    gone = [line for line in pinned if line not in told]
    new = [line for line in told if line not in pinned]
    assert (gone, new) == ([], []), "make records"
    assert told == pinned
