"""``otf``: see and steer runs from a terminal. Main thread; never imports torch.

Rule 1: exit 0 only when applied; 2 usage; 3 refused, or not answered in the time given; 4 no run
answers.
Rule 2: with ``--json`` stdout is one JSON object: the reply's data, or the error object.
Rule 3: a verb of the wire is a row of ``client.verbs``; only what has no command is written here.
Rule 4: heavy imports are where they are used: ``otf status`` answers within 250 ms.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from otf_core import extras
from otf_core.cli.archive import import_runs
from otf_core.cli.arguments import param_of, settings_of
from otf_core.cli.export import export_group
from otf_core.cli.failure import EXIT_NO_RUN, EXIT_REFUSED, EXIT_USAGE, Failure
from otf_core.client import (
    Client,
    ClientError,
    NoDashboardError,
    NotConnectedError,
)
from otf_core.client.choosing import ChoiceError, choose
from otf_core.client.choosing import name_of as _name
from otf_core.client.verbs import VERBS, UsageError, Verb, request_of

TAIL_SHOWN: Final = 10


def _fail(status: int, code: str, detail: str, **more: Any) -> NoReturn:
    raise Failure(status, {"error": code, "code": code, "detail": detail, **more})


def _need(what: str, extra: str) -> None:
    """Raises Failure (3): it is not installed, and how it comes to be."""
    lacks = extras.lacking(what, extra)
    if lacks is not None:
        _fail(EXIT_REFUSED, "unsupported", lacks)


def _failure_of(error: ClientError) -> Failure:
    nobody = isinstance(error, NoDashboardError | NotConnectedError)
    said = {key: value for key, value in error.error.items() if key not in ("ok", "connected")}
    return Failure(EXIT_NO_RUN if nobody else EXIT_REFUSED, said)


def _out(text: str) -> None:
    click.echo(text)


def _out_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


# -- choosing a run ------------------------------------------------------------------------------


def choose_session(sessions: Sequence[Mapping[str, Any]], asked: str | None) -> Mapping[str, Any]:
    """The live session that is meant: by run name, session id or run id.

    Raises:
        Failure: none is live (4), none fits (4), or several could be meant (2).
    """
    try:
        return choose(sessions, asked)
    except ChoiceError as error:
        if error.several:
            detail = str(error).replace("say which.", "say which with --run.")
            _fail(EXIT_USAGE, "usage", detail, field="run", allowed=error.allowed)
        more = {"allowed": error.allowed} if asked is not None else {}
        _fail(EXIT_NO_RUN, "no_run", str(error), **more)


# -- the verbs of the wire -----------------------------------------------------------------------


def _run_verb(verb: Verb, given: dict[str, Any]) -> None:
    as_json, asked, wait_s = given.pop("as_json"), given.pop("run"), given.pop("wait")
    may = given.pop("yes", True)
    try:
        cmd, payload = request_of(verb, given)
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    client = Client.from_rendezvous()
    session = choose_session(client.sessions(), asked)
    if verb.asks is not None and not may:
        _confirm(verb, verb.asks.format(name=_name(session)))
    key = session["session_id"]
    data = client.send(key, cmd, payload, wait_s, by="cli", client=_who())
    if as_json:
        _out_json(data)
        return
    if isinstance(data, dict) and (data.get("path") or data.get("ckpt") or verb.word == "status"):
        session = client.session(key)  # knows the size of the checkpoint by now
    _out(verb.say(_name(session), data if isinstance(data, dict) else {}, session))


def _who() -> str:
    """user@host, so that all who watch see who did it."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no name for this user id
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _confirm(verb: Verb, question: str) -> None:
    """Ask on the terminal; where there is none the answer must be given with --yes."""
    if not sys.stdin.isatty():
        msg = f"otf {verb.word} asks first, and there is no terminal to ask on: say --yes."
        raise click.UsageError(msg)
    if not click.confirm(question, err=True):
        detail = f"otf {verb.word} was not confirmed; nothing was sent."
        _fail(EXIT_REFUSED, "not_confirmed", detail)


def _json_option() -> click.Option:
    return click.Option(["as_json", "--json"], is_flag=True, help="One JSON object on stdout.")


def _run_option() -> click.Option:
    return click.Option(
        ["run", "--run"], help="Run name, session id or run id, if several are live."
    )


def _command_of(verb: Verb) -> click.Command:
    def callback(**given: Any) -> None:
        _run_verb(verb, given)

    wait = click.Option(
        ["wait", "--wait"], type=click.FloatRange(0), metavar="SECONDS",
        help="Give up waiting for the answer after so long; the command may yet apply.",
    )  # fmt: skip
    params = [*map(param_of, verb.args), _run_option(), wait, _json_option()]
    if verb.asks is not None:
        params.append(click.Option(["yes", "--yes"], is_flag=True, help="Do not ask first."))
    settings = settings_of(verb.word)
    return click.Command(
        verb.word, callback=callback, params=params, help=verb.help, context_settings=settings
    )


# -- what has no command of its own --------------------------------------------------------------


@click.command("dashboard", help="Serve the page and take trainers, until Ctrl-C.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="The page's; 0: any free one."
)
@click.option(
    "--control-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The trainers'; 0: any free one.",
)
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path("otf_runs"),
              help="Where runs keep their journals.")  # fmt: skip
@click.option("--host", "--listen", "host", default="127.0.0.1",
              help="Where the page listens, 0.0.0.0 for all; trainers: always local.")  # fmt: skip
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate, PEM: https.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option("--insecure", is_flag=True, help="Serve other machines without TLS all the same.")
@click.option("--allow-host", multiple=True, help="A Host name that a proxy in front sends.")
@click.option("--root-path", default="", help="The prefix that a proxy in front leaves on paths.")
@click.option("--share", is_flag=True, help="Print a second link, which only watches.")
@click.option("--url", "ask_url", is_flag=True, help="Print the link of the one that runs.")
@click.option("--read-only", is_flag=True, help="With --url: the link that only watches.")
@click.option("--max-db", type=click.FloatRange(0.01), default=2.0, metavar="GB",
              help="What the folder's database may take; the rest stays in journals.")  # fmt: skip
@click.option("--force", is_flag=True, help="Start beside one that runs; new runs find this one.")
def dashboard(**given: Any) -> None:
    """Start the dashboard's process, or say where it is."""
    if given["read_only"] and not given["ask_url"]:
        msg = "--read-only goes with --url; a dashboard that starts prints that link with --share."
        raise click.UsageError(msg)
    if given["ask_url"]:
        client = Client.from_rendezvous(timeout_s=2.0)
        client.health()
        _out(client.watch_url if given["read_only"] else client.page_url)
        return
    tls = _tls_of(given["host"], given["tls_cert"], given["tls_key"], insecure=given["insecure"])
    running = None if given["force"] else _running_dashboard()
    if running is not None:
        detail = (
            f"A dashboard runs already at {running}; its link: otf dashboard --url "
            "(another one beside it: --force)."
        )
        _fail(EXIT_REFUSED, "not_allowed_now", detail)
    _need("The dashboard", "dashboard")
    from otf_core.dashboard import serve

    options = serve.Options(
        host=given["host"], port=given["port"], control_port=given["control_port"],
        folder=given["folder"], allow_hosts=given["allow_host"], tls=tls, share=given["share"],
        root_path=_root_path_of(given["root_path"]),
        max_db_bytes=int(given["max_db"] * 1e9),
    )  # fmt: skip
    sys.exit(serve.run(options))


def _tls_of(
    host: str, cert: Path | None, key: Path | None, *, insecure: bool
) -> tuple[Path, Path] | None:
    """Certificate and key; without them other machines are served only where it was said so."""
    from otf_core.rendezvous import is_loopback

    if cert is not None and key is not None:
        return cert, key
    if cert is not None or key is not None:
        msg = "--tls-cert and --tls-key go together: a certificate and its key."
        raise click.UsageError(msg)
    if is_loopback(host):
        return None
    if not insecure:
        detail = (
            f"--host {host} serves other machines, and without TLS the token can be read on the "
            "way. Either give --tls-cert FILE and --tls-key FILE, or say --insecure; or stay on "
            "127.0.0.1 and come by ssh -L 8000:127.0.0.1:8000 HOST with --port 8000."
        )
        _fail(EXIT_REFUSED, "not_allowed_now", detail)
    click.echo(
        f"otf dashboard: --insecure: whoever is on the way to {host} can read the token and "
        "steer the runs.",
        err=True,
    )
    return None


def _root_path_of(asked: str) -> str:
    path = asked.rstrip("/")
    if path and not path.startswith("/"):
        msg = f"--root-path was {asked!r}; allowed: a path from the root, as /user/me/proxy/8000."
        raise click.UsageError(msg)
    return path


def _running_dashboard() -> str | None:
    """The URL, without its token, of a dashboard that answers."""
    try:
        client = Client.from_rendezvous(timeout_s=2.0)
        client.health()
    except NoDashboardError:
        return None
    return client.url


@click.command("top", help="The page in a terminal: see runs, and steer them by single keys.")
@click.option("--once", is_flag=True, help="Print one screen as plain text, and end.")
@click.option("--url", help="A dashboard's address, as it prints it; else the one that runs here.")
@click.option("as_json", "--json", is_flag=True, help="The same as one JSON object on stdout.")
def top(once: bool, url: str | None, as_json: bool) -> None:  # noqa: FBT001 -- click passes by name
    """Exit 0 when it was left by its key."""
    from otf_core.cli.top.command import print_once, run

    sys.exit(print_once(url, as_json=as_json) if once or as_json else run(url))


@click.command("mcp", help="Serve runs to an agent, over stdio (Model Context Protocol).")
@click.option("--write", is_flag=True, help="The agent may change runs; without it, only look.")
@click.option("--bounds", multiple=True, metavar="NAME=LEAST:GREATEST",
              help="Narrower than the run's own, as lr=1e-5:1e-2; may be repeated.")  # fmt: skip
@click.option("--per-minute", type=click.IntRange(1), default=10, help="Changes, at most.")
@click.option("--run", "only", help="Only this run: its name, session id or run id.")
@click.option("--url", help="A dashboard's address, as it prints it; else the one that runs here.")
def mcp(write: bool, bounds: tuple[str, ...], per_minute: int, only: str | None,  # noqa: FBT001 -- click passes by name
        url: str | None) -> None:  # fmt: skip
    """Until the agent hangs up."""
    from otf_core.agents.guard import Guard, Rules, bounds_of
    from otf_core.agents.tools import Tools

    try:
        rules = Rules(write=write, bounds=dict(map(bounds_of, bounds)), per_minute=per_minute)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _need("otf mcp", "agents")
    from otf_core.agents.server import serve

    names: dict[str, str] = {}
    tools = Tools(
        lambda: Client.from_url(url) if url is not None else Client.from_rendezvous(),
        Guard(rules),
        who=lambda: f"{names.get('client', 'an agent')} by mcp, {_who()}",
        only=only,
    )
    serve(tools, names)


@click.command(
    "demo",
    help="Train a real model on real digits, with a dashboard.",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def demo(args: tuple[str, ...]) -> None:
    """Become ``python -m otf_lightning.demo``, so that this package never imports lightning."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "otf_lightning.demo", *args])


def newest_of_each_run(sessions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A run that was resumed has several sessions; the one that is connected, else the last."""
    found: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for session in sorted(sessions, key=lambda s: (s["connected"], s["started_ts"])):
        found[session["project"], session["run_id"]] = session
    shown = {session["session_id"] for session in found.values()}
    return [session for session in sessions if session["session_id"] in shown]


@click.command("ps", help="List the runs that the dashboard knows.")
@click.option("--all", "everything", is_flag=True, help="Those read from journals too.")
@click.option("as_json", "--json", is_flag=True, help="One JSON object on stdout.")
def ps(everything: bool, as_json: bool) -> None:  # noqa: FBT001 -- click passes by name
    """A table of sessions."""
    found = Client.from_rendezvous().sessions()
    shown = newest_of_each_run([s for s in found if everything or s["state"] != "journal"])
    if as_json:
        _out_json({"sessions": shown})
    elif not shown:
        _out("No run yet — the dashboard listens.")
    else:
        from otf_core.cli.tables import sessions_table

        sessions_table(shown)


@click.command("runs", help="Draw the runs, each below the one that it was forked from.")
@click.option("as_json", "--json", is_flag=True, help="One JSON object on stdout.")
def runs(as_json: bool) -> None:  # noqa: FBT001 -- as above
    """A tree of runs."""
    found = Client.from_rendezvous().runs()
    if as_json:
        _out_json({"runs": found})
    elif not found:
        _out("No run yet — the dashboard listens.")
    else:
        from otf_core.cli.tables import runs_tree

        runs_tree(found)


@click.command("tail", help="Follow a run's events, or show the last few with -n.")
@click.option("-n", "count", type=click.IntRange(1), help="Show so many and end; do not follow.")
@click.option("--type", "types", multiple=True, help="Only events of this type; may be repeated.")
@click.option("run", "--run", help="Run name, session id or run id, if several are live.")
@click.option("as_json", "--json", is_flag=True, help="Events as JSON, one a line.")
def tail(count: int | None, types: tuple[str, ...], run: str | None, as_json: bool) -> None:  # noqa: FBT001 -- as above
    """Events as readable lines."""
    from otf_core.cli.lines import event_line

    client = Client.from_rendezvous()
    session = choose_session(client.sessions(), run)
    key = session["session_id"]
    start = max(0, session["last_seq"] - 2000)
    last = client.events(key, after=start, types=types or None, limit=10_000)
    shown = last[-(count or TAIL_SHOWN) :]
    for event in shown:
        _out(json.dumps(event, ensure_ascii=False) if as_json else event_line(event))
    sys.stdout.flush()
    if count is not None:
        return
    after = last[-1]["event_seq"] if last else start
    for event in client.follow(key, after=after, types=types or None):
        _out(json.dumps(event, ensure_ascii=False) if as_json else event_line(event))
        sys.stdout.flush()


@click.command(
    "doctor",
    help="Check what otf needs, and whether each live run resumes exactly. With the folder of a "
    "run that is over: whether that one does.",
)
@click.argument("run_folder", metavar="PATH", required=False, type=click.Path(path_type=Path))
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=Path("otf_runs"))
@click.option("as_json", "--json", is_flag=True, help="One JSON object on stdout.")
def doctor(run_folder: Path | None, folder: Path, as_json: bool) -> None:  # noqa: FBT001 -- as above
    """Exit 0 if nothing that is needed is missing."""
    from otf_core.cli.doctor import examine, examine_run

    findings = examine(folder) if run_folder is None else [examine_run(run_folder)]
    if as_json:
        _out_json(
            {
                "ok": all(f.state != "bad" for f in findings),
                "checks": [f.to_json() for f in findings],
            }
        )
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[finding.state]
            _out(f"{mark} {finding.name}: {finding.said}")
            for reason in finding.reasons:
                _out(f"       {reason}")
    if any(finding.state == "bad" for finding in findings):
        sys.exit(EXIT_REFUSED)


@click.group(
    name="otf",
    help="See, pause, change and save a training run while it trains.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="otf-lightning", prog_name="otf")
def app() -> None:
    """The group that holds all commands."""


_export = export_group(_command_of)
for _command in (
    dashboard,
    demo,
    ps,
    runs,
    tail,
    top,
    mcp,
    doctor,
    import_runs,
    *map(_command_of, VERBS),
    _export,
):
    app.add_command(_command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point: runs a command and ends the process with its status."""
    given = list(sys.argv[1:] if args is None else args)
    as_json = "--json" in given and given[:1] not in (["dashboard"], ["demo"])
    try:
        try:
            app.main(args=given, prog_name="otf", standalone_mode=False)
        except ClientError as error:
            raise _failure_of(error) from error
    except click.exceptions.Abort:
        sys.exit(130)  # Ctrl-C
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left
        sys.exit(0)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        if as_json:
            usage = {"error": "usage", "code": "usage", "detail": error.format_message()}
            _out_json(getattr(error, "error", usage))
        elif isinstance(error, Failure):
            click.echo(f"otf: {error.message}", err=True)
        else:
            error.show()
        sys.exit(getattr(error, "status", error.exit_code))
    sys.exit(0)


if __name__ == "__main__":
    main()
