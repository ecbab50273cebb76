"""``show()``: a run in a notebook, live where there is a dashboard, and as a still picture.

Rule 1: what a notebook shows is kept in its file, so no token is in it: the live part is opened
with a ticket, which is worth nothing once it was used, or a minute later.
Rule 2: the still picture is there in any case, below the live page, and is seen wherever that is
not: in a saved notebook whose dashboard is gone, on a page made from it.
Rule 3: what a run is called is text of somebody else.
"""

from __future__ import annotations

import html
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from otf_core.client import Client, ClientError
from otf_core.client.states import More, state_sentence
from otf_core.client.words import one_line
from otf_core.runs import told
from otf_core.runs.archive import ArchiveError
from otf_core.runs.picture import picture
from otf_core.runs.told import ToldRun
from otf_core.state import run_folder

if TYPE_CHECKING:
    from otf_lightning.callback import OnTheFlyCallback

HEIGHT: Final = 640
ASK_S: Final = 2.0
_STATES: Final = {"completed": "finished", "stopped": "interrupted", "failed": "failed"}
_HOW: Final = "otf dashboard --url prints the link with its token; without a browser: otf top"


def show(
    run: OnTheFlyCallback | str | Path | None = None,
    *,
    folder: str | Path = "otf_runs",
    height: int = HEIGHT,
    live: bool = True,
    base_url: str | None = None,
) -> Shown:
    """Show a run in Jupyter or VS Code, at once; elsewhere what is returned says where it is.

    Args:
        run: a callback, the name of a run, or its folder; the newest run if none is given.
        folder: where runs are looked for.
        height: of the live page, in px.
        live: False for the still picture alone.
        base_url: where the browser reaches the dashboard, if not at its own address: behind a
            proxy ``/user/me/proxy/8000/``. On a JupyterHub it is that of jupyter-server-proxy.

    Raises:
        ValueError: there is no such run; those that there are stand in the message.
    """
    found = _find(run, Path(folder))
    shown = Shown(found, _dashboard() if live else None, height=height, base_url=base_url)
    shown.display()
    return shown


class Shown:
    """What is shown: HTML for a notebook, text for everything else."""

    def __init__(
        self, run_dir: Path | None, dashboard: Client | None, *, height: int, base_url: str | None
    ) -> None:
        self._run_dir, self._dashboard = run_dir, dashboard
        self._height, self._base_url = height, base_url
        self._shown_in: object = None
        self._run, self._why = _read(run_dir)

    @property
    def url(self) -> str | None:
        """Where the live page is, without its token."""
        return self._dashboard.url if self._dashboard is not None else None

    def __repr__(self) -> str:
        if self.url is not None:
            where = f"live at {self.url} — {_HOW}"
        else:
            where = "no dashboard runs; start one with: otf dashboard"
        return f"{one_line(self._sentence())}\n{where}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._html()}

    def display(self) -> None:
        """Show it now, where there is a notebook."""
        shell = _shell()
        if shell is not None:
            publish(self._repr_mimebundle_())
            self._shown_in = shell.execution_count

    def _ipython_display_(self) -> None:
        """As the last line of a cell that has shown it already: nothing more."""
        shell = _shell()
        if shell is not None and self._shown_in == shell.execution_count:
            return
        publish(self._repr_mimebundle_())

    def _sentence(self) -> str:
        if self._run is None:
            return self._why
        record = self._run.record
        alive = run_folder.is_alive(record)
        state = _STATES.get(str(record.status), "running" if alive else "journal")
        series = self._run.series.get("val_loss")
        more = More()
        if series is not None and series.values:
            best = min(series.values)
            at = series.steps[series.values.index(best)]
            more = More(val_loss=series.values[-1], best=best, best_step=at)
        said = {
            "run_name": record.run_id, "state": state, "step": self._run.step or record.step,
            "last_ts": self._run.last_ts, "finished": {"error": _error(self._run)},
        }  # fmt: skip
        return state_sentence(said, time.time(), more)

    def _html(self) -> str:
        sentence = html.escape(one_line(self._sentence()))
        still = picture(self._run, self._sentence()) if self._run is not None else ""
        still = f'<div style="max-width:880px">{still}</div>'
        head = f'<p style="margin:4px 0 8px"><b>{sentence}</b></p>'
        address = self._address()
        if address is None:
            return f'<div class="otf-show">{head}{still}</div>'
        note = html.escape(f"The page of {self.url} — {_HOW}")
        # What stands inside is shown where the page cannot be.
        page = (
            f'<object data="{html.escape(address)}" type="text/html" width="100%" '
            f'height="{self._height:d}" title="otf dashboard" '
            f'style="border:1px solid #c6cbc6;border-radius:6px">{still}</object>'
        )
        small = f'<p style="margin:4px 0;font-size:85%;opacity:.75">{note}</p>'
        return f'<div class="otf-show">{head}{page}{small}</div>'

    def _address(self) -> str | None:
        """Of the live page, with a new ticket."""
        if self._dashboard is None:
            return None
        try:
            ticket = self._dashboard.ticket()
        except ClientError:
            return None  # it has ended meanwhile
        return urljoin(self._base_url or _base_of(self._dashboard), ticket)


def publish(bundle: dict[str, str]) -> None:
    """Put it below the cell."""
    from IPython.display import publish_display_data

    publish_display_data(bundle)  # type: ignore[no-untyped-call]


def _base_of(dashboard: Client) -> str:
    """Where the browser of this notebook reaches a dashboard of this machine."""
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if prefix:
        return f"{prefix.rstrip('/')}/proxy/{urlsplit(dashboard.url).port}/"
    # Where Jupyter opens itself: of another site a browser may keep nothing for the tab, and the
    # page would be without its token when the notebook is loaded anew.
    return dashboard.url.replace("://127.0.0.1:", "://localhost:", 1)


def _dashboard() -> Client | None:
    try:
        client = Client.from_rendezvous(timeout_s=ASK_S)
        client.health()
    except ClientError:
        return None
    return client


def _shell() -> Any:
    """The kernel's shell; None in plain Python and in a terminal."""
    import sys

    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if shell is not None and getattr(shell, "kernel", None) is not None else None


def _find(asked: OnTheFlyCallback | str | Path | None, folder: Path) -> Path | None:
    """The folder of the run that is meant; None where there is none yet."""
    if asked is not None and not isinstance(asked, str | Path):
        return asked.run_dir
    if isinstance(asked, Path) or (asked is not None and (Path(asked) / "run.json").exists()):
        if run_folder.record_of(Path(asked)) is None:
            msg = f"{asked} is no folder of a run: there is no run.json that can be read."
            raise ValueError(msg)
        return Path(asked)
    found = run_folder.records(folder, None)
    fits = [(d, r) for d, r in found if asked in (None, r.run_id, r.run_name)]
    if not fits and asked is not None:
        known = ", ".join(one_line(record.run_id) for _, record in found[-20:]) or "none"
        msg = f"no run {asked!r} in {folder}; there are: {known}."
        raise ValueError(msg)
    return fits[-1][0] if fits else None


def _read(run_dir: Path | None) -> tuple[ToldRun | None, str]:
    """What it has told; or None and why not."""
    if run_dir is None:
        return None, "No run yet"
    try:
        run: ToldRun = told.read(run_dir.resolve().parent, run_dir.name).run
    except (ArchiveError, OSError) as error:
        return None, f"{run_dir.name} cannot be read: {error}"
    return run, ""


def _error(run: ToldRun) -> str | None:
    ends = [e for e in run.events if e.get("type") == "trainingFinished"]
    return str(ends[-1]["error"])[:500] if ends and ends[-1].get("error") else None
