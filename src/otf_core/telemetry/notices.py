"""Whom to tell that a run is paused, finished, failed, stalled or guarded, and in which words.

Rule: a URL and what goes with it may be secret. They are in no event, log, error, checkpoint or
``repr``; a person is shown the host alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import urlsplit

What = Literal["paused", "finished", "failed", "stalled", "guard"]
WHATS: Final[tuple[What, ...]] = ("paused", "finished", "failed", "stalled", "guard")
LOCAL: Final = ("127.0.0.1", "localhost", "::1")
KEYS: Final = ("url", "desktop", "on", "template", "headers", "timeout_s", "tries")
# What a template may name, in braces; each is there for every notice, null where it means nothing.
NAMES: Final = (
    "what", "text", "title", "run_id", "project", "session_id", "host", "pid", "step", "epoch",
    "reason", "status", "error", "checkpoint", "ts",
)  # fmt: skip
MAX_TEXT_CHARS: Final = 1000
MAX_TIMEOUT_S: Final = 30.0
MAX_TRIES: Final = 10
_NAME: Final = re.compile(r"\{(\w*)\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One of whom is told.

    Attributes:
        url: of a webhook, which gets a POST of JSON; None: the desktop of this machine.
        on: what it is told of.
        template: JSON with ``{names}`` of ``NAMES`` in its texts; None: all of them by name. A text
            that is one name alone becomes its value.
        headers: sent with it.
        timeout_s: of each try.
        tries: in all, with growing waits between them.
    """

    url: str | None = dataclasses.field(default=None, repr=False)
    on: tuple[What, ...] = WHATS
    template: Any = dataclasses.field(default=None, repr=False)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    timeout_s: float = 5.0
    tries: int = 3

    @property
    def shown(self) -> str:
        """What a person is shown of it."""
        return "the desktop" if self.url is None else f"{urlsplit(self.url).hostname}"

    def body(self, notice: Mapping[str, Any]) -> Any:
        """What is sent."""
        return dict(notice) if self.template is None else filled(self.template, notice)


def targets(asked: Any, env: Mapping[str, str] | None = None) -> tuple[Target, ...]:
    """What ``notify=`` and ``OTF_NOTIFY`` mean, together.

    Args:
        asked: None, "desktop", a URL, a mapping of ``KEYS``, or several of them.
        env: of the process.

    Raises:
        ValueError: what is not allowed; it says what is, and shows no URL.
    """
    env = os.environ if env is None else env
    found = _several(asked, env, "notify")
    text = env.get("OTF_NOTIFY", "").strip()
    if text.startswith(("[", "{")):
        try:
            given = json.loads(text)
        except ValueError:
            msg = "OTF_NOTIFY was asked to be JSON, and is none"
            raise ValueError(msg) from None
        return (*found, *_several(given, env, "OTF_NOTIFY"))
    return (*found, *_several(text.split(), env, "OTF_NOTIFY"))


def _several(asked: Any, env: Mapping[str, str], who: str) -> tuple[Target, ...]:
    if asked is None:
        return ()
    if isinstance(asked, str | Mapping):
        return (_target(asked, env, who),)
    if isinstance(asked, Sequence):
        return tuple(_target(each, env, who) for each in asked)
    raise _refused(who, f"a {type(asked).__name__}")


def _target(asked: Any, env: Mapping[str, str], who: str) -> Target:
    if isinstance(asked, str):
        asked = {"desktop": True} if asked == "desktop" else {"url": asked}
    if not isinstance(asked, Mapping):
        raise _refused(who, f"a {type(asked).__name__}")
    if strange := [str(key)[:40] for key in asked if key not in KEYS]:
        msg = f"{who} was asked with {', '.join(strange)}; allowed: {', '.join(KEYS)}"
        raise ValueError(msg)
    url, desktop = asked.get("url"), bool(asked.get("desktop"))
    if (url is None) != desktop:
        raise _refused(who, "neither or both of url and desktop")
    return Target(
        url=None if url is None else _url(_of_env(url, env, who), who),
        on=_on(asked.get("on"), who),
        template=_template(asked.get("template"), who),
        headers=_headers(asked.get("headers") or {}, env, who),
        timeout_s=_number(asked.get("timeout_s", 5.0), "timeout_s", 0.1, MAX_TIMEOUT_S, who),
        tries=int(_number(asked.get("tries", 3), "tries", 1, MAX_TRIES, who)),
    )


def _refused(who: str, found: str) -> ValueError:
    return ValueError(
        f"{who} was asked to be {found}; allowed: 'desktop', a URL with https, a mapping with "
        f"{', '.join(KEYS)}, or several of these"
    )


def _of_env(value: Any, env: Mapping[str, str], who: str) -> str:
    """``env:NAME`` is what that variable holds, so that a secret need not stand in a file."""
    if not isinstance(value, str):
        raise _refused(who, f"a url or header that is a {type(value).__name__}")
    if not value.startswith("env:"):
        return value
    name = value.removeprefix("env:")
    if not env.get(name):
        msg = f"{who} was asked to read the environment variable {name!r}, which is not set"
        raise ValueError(msg)
    return env[name]


def _url(url: str, who: str) -> str:
    try:
        split = urlsplit(url)
        host, scheme, _ = split.hostname, split.scheme, split.port
    except ValueError:
        host, scheme = None, ""
    plain = all(c.isprintable() and c.isascii() and c != " " for c in url)
    if not (plain and host and (scheme == "https" or (scheme == "http" and host in LOCAL))):
        raise _refused(who, "a URL without https (only one of this machine may have http)")
    return url


def _on(asked: Any, who: str) -> tuple[What, ...]:
    if asked is None:
        return WHATS
    names = [asked] if isinstance(asked, str) else [*asked]
    if not names or any(name not in WHATS for name in names):
        msg = f"{who} was asked with on={names!r}; allowed: {', '.join(WHATS)}"
        raise ValueError(msg)
    return tuple(what for what in WHATS if what in names)


def _headers(asked: Any, env: Mapping[str, str], who: str) -> dict[str, str]:
    if not isinstance(asked, Mapping):
        raise _refused(who, f"headers that are a {type(asked).__name__}")
    found = {str(name): _of_env(value, env, who) for name, value in asked.items()}
    for name, value in found.items():
        if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.isprintable():
            msg = f"{who} was asked with a header {name[:40]!r} that is none"
            raise ValueError(msg)
    return found


def _number(value: Any, name: str, low: float, high: float, who: str) -> float:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    if not right or not low <= value <= high:
        msg = f"{who} was asked with {name}={value!r}; allowed: {low} to {high}"
        raise ValueError(msg)
    return float(value)


def _template(template: Any, who: str) -> Any:
    for text in _texts(template, who):
        if strange := [name for name in _NAME.findall(text) if name not in NAMES]:
            msg = f"{who} was asked with {{{strange[0]}}} in its template; allowed: " + ", ".join(
                f"{{{name}}}" for name in NAMES
            )
            raise ValueError(msg)
    return template


def _texts(template: Any, who: str) -> list[str]:
    if isinstance(template, str):
        return [template]
    if isinstance(template, Mapping):
        return [text for value in template.values() for text in _texts(value, who)]
    if isinstance(template, list | tuple):
        return [text for value in template for text in _texts(value, who)]
    if isinstance(template, int | float | bool | None):
        return []
    raise _refused(who, f"a template with a {type(template).__name__}, which JSON has not")


def filled(template: Any, notice: Mapping[str, Any]) -> Any:
    """A template with the values of a notice."""
    if isinstance(template, str):
        if (alone := _NAME.fullmatch(template)) is not None:
            return notice[alone[1]]
        return _NAME.sub(lambda found: _shown(notice[found[1]]), template)
    if isinstance(template, Mapping):
        return {str(key): filled(value, notice) for key, value in template.items()}
    if isinstance(template, list | tuple):
        return [filled(value, notice) for value in template]
    return template


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


# What is told.


def notice_of(event: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an event means for those who are told; None: nothing.

    Args:
        event: as it stands in the journal.
        about: project, host and pid of the run.
    """
    said = _SAY.get(str(event.get("type")), lambda _: None)(event)
    if said is None:
        return None
    what, text, more = said
    run, step = event.get("run_id"), event.get("step")
    at = f" at step {step:,}" if isinstance(step, int) else ""
    found: dict[str, Any] = dict.fromkeys(NAMES)
    found |= {name: event.get(name) for name in ("run_id", "session_id", "step", "epoch", "ts")}
    found |= {**about, **more, "what": what}
    found["title"] = f"{run}: {what}"
    found["text"] = f"{run} {text.format(at=at)}"[:MAX_TEXT_CHARS]
    return found


_Said = tuple[What, str, dict[str, Any]] | None


def _braced(text: Any) -> str:
    return str(text).replace("{", "{{").replace("}", "}}")


def _paused(event: Mapping[str, Any]) -> _Said:
    return "paused", "is paused{at}", {"checkpoint": event.get("ckpt")}


def _over(event: Mapping[str, Any]) -> _Said:
    status, error = event.get("status"), event.get("error")
    if status == "failed":
        why = f": {_braced(error)}" if error else ""
        return "failed", f"has failed{{at}}{why}", {"status": status, "error": error}
    words = "has finished{at}" if status == "completed" else "was stopped{at}"
    return "finished", words, {"status": status}


def _stalled(event: Mapping[str, Any]) -> _Said:
    if event.get("over") is True:
        return None
    where = event.get("where")
    inside = f", in {_braced(where)}" if where else ""
    seconds = event.get("seconds")
    return (
        "stalled",
        f"stands still: no batch has ended for {seconds} s{{at}}{inside}",
        {"reason": where},
    )


def _rank(event: Mapping[str, Any]) -> _Said:
    if event.get("state") != "failed":
        return None
    why = event.get("why")
    more = {"reason": why, "checkpoint": event.get("checkpoint")}
    return "failed", f"has lost a rank{{at}}: {_braced(why)}", more


def _guarded(event: Mapping[str, Any]) -> _Said:
    rule, did = event.get("rule"), event.get("did")
    found = event.get("text") or f"{event.get('metric')} is {event.get('value')}; {did}"
    return "guard", f"is guarded by {_braced(rule)}{{at}}: {_braced(found)}", {"reason": rule}


_SAY: Final[Mapping[str, Any]] = {
    "paused": _paused,
    "trainingFinished": _over,
    "stall": _stalled,
    "rank_state": _rank,
    "guard": _guarded,
}
TYPES: Final = frozenset(_SAY)
