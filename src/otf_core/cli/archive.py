"""``otf import``, and exports of runs that no process trains; never imports torch."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from otf_core.cli.failure import EXIT_REFUSED, EXIT_USAGE, Failure
from otf_core.client import sentences
from otf_core.client.verbs import EXPORTS, UsageError, request_of
from otf_core.client.words import size
from otf_core.errors import CommandError, ErrorCode, OtfError


def also_from_folders(command: click.Command) -> None:
    """With ``--dir`` it is done here, from what lies on the disk; nothing for the others."""
    offline = OFFLINE.get(command.name or "")
    if offline is None:
        return
    live = command.callback
    assert live is not None
    help_text = "Of a run that no process trains: where runs are kept, or one run's own folder."
    command.params.append(
        click.Option(["folder", "--dir"], type=click.Path(path_type=Path), help=help_text)
    )

    def callback(folder: Path | None, **given: Any) -> None:
        if folder is None:
            live(**given)
            return
        as_json, asked = given.pop("as_json"), given.pop("run")
        given.pop("wait")
        with refusals():
            data, said = offline(_run_in(folder, asked), given)
        _tell(data, said, as_json=as_json)

    command.callback = callback


@click.command("import", help="Put the runs of an archive where they go on.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path("otf_runs"),
              help="Where runs are kept.")  # fmt: skip
@click.option("--as", "project", help="As a project of this name, beside the one that is there.")
@click.option("as_json", "--json", is_flag=True, help="One JSON object on stdout.")
def import_runs(path: Path, folder: Path, project: str | None, as_json: bool) -> None:  # noqa: FBT001 -- click passes by name
    """Unpack, verify, put in place."""
    from otf_core.runs.unarchive import unpack

    with refusals():
        found = unpack(path, folder, project=project)
    names = ", ".join(Path(each).name for each in found.folders)
    without = f"; without {', '.join(found.missing)}" if found.missing else ""
    data = {
        "project": found.project,
        "folders": found.folders,
        "bytes": found.bytes,
        "missing": found.missing,
    }
    said = (
        f"Imported {names} ({size(found.bytes)}) into {folder / found.project}{without}\n"
        f'The script goes on with resume="auto", or with otf-fit --resume auto'
    )
    _tell(data, said, as_json=as_json)


# What is done here.


def _archive(folder: Path, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from otf_core.runs.archive import pack, relatives

    payload = _payload("archive", given)
    names = payload.get("runs")
    folders = relatives(folder.parent, folder.name)
    if names is not None:
        folders = [_run_in(folder.parent, name) for name in names]
    out = _out_file(folder, payload, ".zip")
    with out.write() as file:
        found = pack(folders, file, checkpoints=payload.get("checkpoints", "newest"))
    data = {
        "out_path": str(out.path),
        "bytes": out.bytes,
        "runs": [run.run_id for run in found.runs],
        "checkpoints": sum(len(run.checkpoints) for run in found.runs),
        "missing": found.missing,
    }
    return data, sentences.exported_archive(folder.name, data, {})


def _report(folder: Path, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from otf_core.runs.report import report

    payload = _payload("report", given)
    if (run_id := payload.get("run_id")) is not None:
        folder = _run_in(folder.parent, run_id)
    out = _out_file(folder, payload, ".html")
    page = report(folder.parent, folder.name, now_ts=time.time())
    with out.write() as file:
        file.write(page.encode("utf-8", "replace"))
    data = {"out_path": str(out.path), "bytes": out.bytes, "run_id": folder.name}
    return data, sentences.exported_report(folder.name, data, {})


def _weights(folder: Path, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    payload = _payload("weights", given)
    if (run_id := payload.get("run_id")) is not None:
        folder = _run_in(folder.parent, run_id)
    asked = {"folder": str(folder), "checkpoint": None, "out_path": None, **payload}
    command = [sys.executable, "-m", "otf_core.runs.offline_weights"]
    done = subprocess.run(
        command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        detail = f"Weights of {folder.name} could not be read; the process that did has failed."
        raise CommandError(ErrorCode.INTERNAL, detail)
    found = json.loads(done.stdout)
    if (error := found.get("error")) is not None:
        raise Failure(EXIT_REFUSED, error)
    return found["data"], sentences.exported_weights(folder.name, found["data"], {})


Offline = Callable[[Path, dict[str, Any]], tuple[dict[str, Any], str]]
OFFLINE: Final[dict[str, Offline]] = {
    "archive": _archive,
    "report": _report,
    "weights": _weights,
}


def _payload(word: str, given: dict[str, Any]) -> dict[str, Any]:
    """As it would go over the wire."""
    verb = next(verb for verb in EXPORTS if verb.word == word)
    try:
        return request_of(verb, given)[1]
    except UsageError as error:
        raise click.UsageError(str(error)) from error


def _out_file(folder: Path, payload: dict[str, Any], ending: str) -> Any:
    from otf_core.runs.out_files import OutFiles

    return OutFiles(lambda: folder).file(payload.get("out_path"), name=folder.name, ending=ending)


def _run_in(folder: Path, asked: str | None) -> Path:
    """The folder of the run that is meant: by its id, or ``PROJECT/RUN``; else the newest.

    Raises:
        Failure: there is none, or several could be meant.
    """
    from otf_core.state.run_folder import record_of

    folder = folder.absolute()
    if asked is None and (folder / "run.json").is_file():
        return folder
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    found = [
        path.parent
        for place in places
        for path in place.glob("*/run.json")
        if (record := record_of(path.parent)) is not None and record.run_id == path.parent.name
    ]
    if asked is not None:
        project, _, name = asked.rpartition("/")
        found = [f for f in found if f.name == name and project in ("", f.parent.name)]
        if len(found) > 1:
            which = ", ".join(f"{f.parent.name}/{f.name}" for f in found)
            _refuse(EXIT_USAGE, f"{len(found)} runs could be meant: {which}; say which with --run.")
    if not found:
        which = "No run" if asked is None else f"No run {asked[:120]!r}"
        _refuse(EXIT_REFUSED, f"{which} lies in {folder}.")
    return max(found, key=lambda f: (f / "run.json").stat().st_mtime)


def _refuse(status: int, detail: str) -> NoReturn:
    code = "usage" if status == EXIT_USAGE else "not_found"
    raise Failure(status, {"error": code, "code": code, "detail": detail})


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What cannot be ends the command with its sentence."""
    try:
        yield
    except CommandError as error:
        raise Failure(EXIT_REFUSED, error.to_wire()) from error
    except OtfError as error:
        code = "not_allowed_now"
        raise Failure(EXIT_REFUSED, {"error": code, "code": code, "detail": str(error)}) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        detail = f"{where}{error.strerror or error}; nothing was put in place."
        said = {"error": "not_allowed_now", "code": "not_allowed_now", "detail": detail}
        raise Failure(EXIT_REFUSED, said) from error


def _tell(data: dict[str, Any], said: str, *, as_json: bool) -> None:
    click.echo(json.dumps(data, ensure_ascii=False) if as_json else said)
