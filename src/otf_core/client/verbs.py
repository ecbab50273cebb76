"""The verbs, once: the word, the wire's command, its arguments, and the sentence of its answer.

The command line is made from this table, and so is whatever else speaks to people in verbs. A verb
that is only on the command line (``ps``, ``tail`` …) is not here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from otf_core.client import sentences

Kind = Literal["text", "int", "float", "flag", "value", "several"]
Payload = dict[str, Any]


class UsageError(ValueError):
    """What was typed makes no request; the message says what would."""


@dataclasses.dataclass(frozen=True)
class Arg:
    """One argument of a verb.

    Attributes:
        key: of the payload, unless the verb has a ``request`` that makes another of it.
        words: option names; none for a positional argument.
        kind: "value" is read as bool, int, float or text, whichever fits first; "several" takes
            any number of texts, and is sent as a list.
        sent: what a flag sends when it is given.
        required: of a positional argument; an option may always be left out.
        shown: what a positional argument is called in the usage; its key if not given.
    """

    key: str
    help: str
    words: tuple[str, ...] = ()
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    sent: Any = True
    required: bool = True
    shown: str | None = None


@dataclasses.dataclass(frozen=True)
class Verb:
    """A row of ``VERBS``.

    Attributes:
        say: name of the run, reply's data and session -> one sentence, or several lines.
        request: what was given -> the command and payload that are sent, where they are not simply
            ``cmd`` and the arguments. Raises ``UsageError``.
        asks: what a person is asked first, with ``{name}`` for the run; None if nothing is lost.
    """

    word: str
    cmd: str
    help: str
    say: Callable[[str, Any, Mapping[str, Any]], str]
    args: tuple[Arg, ...] = ()
    request: Callable[[Payload], tuple[str, Payload]] | None = None
    asks: str | None = None


def request_of(verb: Verb, given: Mapping[str, Any]) -> tuple[str, Payload]:
    """The command and payload of a verb's arguments; what was not given is left out.

    Raises:
        UsageError: they do not go together.
    """
    payload: Payload = {}
    for arg in verb.args:
        value = given.get(arg.key)
        if arg.kind == "flag":
            if value:
                payload[arg.key] = arg.sent
        elif arg.kind == "several":
            if value:
                payload[arg.key] = list(value)
        elif value is not None:
            payload[arg.key] = read_value(value) if arg.kind == "value" else value
    return verb.request(payload) if verb.request is not None else (verb.cmd, payload)


def read_value(text: str) -> bool | int | float | str:
    """``true``, 3, 1e-4 or text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _set(given: Payload) -> tuple[str, Payload]:
    if given.pop("mul", None):
        if "value" not in given:
            msg = "otf set NAME VALUE --mul takes the factor as VALUE."
            raise UsageError(msg)
        given["mul"] = given.pop("value")
    if "value" not in given and "mul" not in given and "to" not in given:
        msg = "otf set takes NAME and VALUE, or NAME with --to and --over."
        raise UsageError(msg)
    return "set_param", given


def _preview(given: Payload) -> tuple[str, Payload]:
    """Of the rate if nothing is named."""
    steps = {"steps": given.pop("steps")} if "steps" in given else {}
    changes = [_set({"path": "lr", **given})[1]] if given else []
    return "preview_params", {"changes": changes, **steps}


def _resume(given: Payload) -> tuple[str, Payload]:
    """With a name it is a value that goes on as the script has it."""
    return ("set_param", {**given, "release": True}) if given else ("resume", {})


def _roll_back(given: Payload) -> tuple[str, Payload]:
    """A number is a step, what looks like a file is one, all else is a checkpoint's id."""
    to = str(given["to"])
    if to.isdigit():
        return "rollback", {"step": int(to)}
    if os.sep in to or to.endswith((".ckpt", ".pt")):
        # The trainer has a working directory of its own.
        return "load_ckpt", {"path": os.path.abspath(os.path.expanduser(to))}
    return "rollback", {"checkpoint": to}


def read_ids(text: str) -> list[int]:
    """``3,5,8-20``: numbers and ranges, both ends included.

    Raises:
        UsageError: it is none.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            msg = f"--ids takes numbers and ranges, as in 3,5,8-20; found {part.strip()[:40]!r}."
            raise UsageError(msg)
        found += range(int(first), int(last or first) + 1)
    return found


def _read_json(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        msg = f"""--selection takes JSON, as in '{{"kind": "label_noise"}}'; found {text[:40]!r}."""
        raise UsageError(msg)
    return found


def _read_weights(path: str) -> list[float]:
    """A number on each line of a text file."""
    try:
        return [float(line) for line in Path(path).read_text().split()]
    except (OSError, ValueError) as error:
        msg = f"--weights takes a file with a number for each sample: {error}."
        raise UsageError(msg) from error


def _selected(given: Payload, word: str) -> Payload:
    """Ids, a share of the worst or JSON as a selection, where there are any."""
    ids, worst = given.pop("ids", None), given.pop("worst", None)
    if [ids, worst, given.get("selection")].count(None) < 2:
        msg = f"otf {word} takes --ids, --worst or --selection, one of them."
        raise UsageError(msg)
    if "selection" in given:
        given["selection"] = _read_json(given["selection"])
    if ids is not None:
        given["selection"] = {"kind": "indices", "ids": read_ids(ids)}
    if worst is not None:
        given["selection"] = {"kind": "quantile", "from": round(1.0 - worst, 12), "to": 1.0}
    return given


def _compare(given: Payload) -> tuple[str, Payload]:
    return "compare", _selected(given, "compare")


def _fork(given: Payload) -> tuple[str, Payload]:
    """What is put in place of the parent's own values, as the wire has it."""
    given = _selected(given, "fork")
    if "weights" in given:
        given["weights"] = _read_weights(given["weights"])
    rates = {name: given.pop(name) for name in ("lr", "lr_mul", "wd_mul") if name in given}
    return "fork", {**given, **({"hparams": rates} if rates else {})}


def _merge(given: Payload) -> tuple[str, Payload]:
    """A parent may name its checkpoint: ``RUN/CHECKPOINT``."""
    named = [str(parent).partition("/") for parent in given.pop("parents")]
    if len(named) < 2:
        msg = "otf merge takes the names of two runs or more, or RUN/CHECKPOINT."
        raise UsageError(msg)
    given["parents"] = [run_id for run_id, _, _ in named]
    if any(checkpoint for _, _, checkpoint in named):
        given["checkpoints"] = [checkpoint or None for _, _, checkpoint in named]
    if (weights := given.pop("weights", None)) is not None:
        try:
            given["weights"] = [float(weight) for weight in weights.split(",")]
        except ValueError as error:
            msg = f"--weights takes a number for each run, as in 3,1; found {weights[:40]!r}."
            raise UsageError(msg) from error
    if given.pop("preview", False):
        return "merge_preview", given
    return "merge", given


def _show(given: Payload) -> tuple[str, Payload]:
    return "show_samples", {**given, "ids": read_ids(given["ids"])}


def _scan(given: Payload) -> tuple[str, Payload]:
    if (ids := given.pop("ids", None)) is not None:
        given["ids"] = read_ids(ids)
    return "scan", given


def _absolute(given: Payload) -> None:
    """A file is in the working directory of who asks; the trainer has one of its own."""
    if "out_path" in given:
        given["out_path"] = os.path.abspath(os.path.expanduser(given["out_path"]))


def _export_samples(given: Payload) -> tuple[str, Payload]:
    given = _selected(given, "export samples")
    _absolute(given)
    return "export_subset", given


def _export_weights(given: Payload) -> tuple[str, Payload]:
    _absolute(given)
    return "export_weights", given


def _export_archive(given: Payload) -> tuple[str, Payload]:
    _absolute(given)
    if (runs := given.pop("runs", None)) is not None:
        given["runs"] = [name.strip() for name in runs.split(",")]
    return "export_session", given


def _export_report(given: Payload) -> tuple[str, Payload]:
    _absolute(given)
    return "export_report", given


def _export_recipe(given: Payload) -> tuple[str, Payload]:
    _absolute(given)
    return "export_recipe", given


def _health(given: Payload) -> tuple[str, Payload]:
    return f"{given['check']}_health", {}


def _extend(given: Payload) -> tuple[str, Payload]:
    if len(given) != 1:
        msg = "otf extend takes --epochs N or --steps N, one of them: the new total."
        raise UsageError(msg)
    return "extend", given


def _undo(given: Payload) -> tuple[str, Payload]:
    """A number is one of the ledger, all else the id of a request."""
    named = given.pop("which", None)
    if named is None:
        return "undo", given
    which = {"change": int(named)} if str(named).isdigit() else {"request_id": named}
    return "undo", {**which, **given}


def _guard(given: Payload) -> tuple[str, Payload]:
    """``--set z=8,window=30`` are settings of what watches."""
    if (settings := given.pop("params", None)) is not None:
        pairs = [each.partition("=") for each in settings.split(",")]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            msg = f"--set takes NAME=VALUE, as in z=8,window=30; found {settings[:40]!r}."
            raise UsageError(msg)
        given["params"] = {name.strip(): read_value(value.strip()) for name, _, value in pairs}
    if given.pop("off", False):
        given["enabled"] = False
    return "set_guard", given


def _reset(given: Payload) -> tuple[str, Payload]:
    return "reset_session", {"reason": "manual", **given}


_CHANGE: Final = (
    Arg("value", "The new value.", kind="value", required=False, shown="[VALUE]"),
    Arg("mul", "VALUE is a factor.", ("--mul",), "flag"),
    Arg("until", "Only until this step; then it is the script's again.", ("--until",), "int"),
    Arg("to", "Go there over so many steps, in place of the schedule.", ("--to",), "float"),
    Arg("over", "How many.", ("--over",), "int"),
    Arg("shape", "On which way.", ("--shape",), choices=("linear", "cosine")),
    Arg("mode", "Under a schedule: scale what remains of it, or hold the value.",
        ("--mode",), choices=("scale", "override")),
)  # fmt: skip
_AT_STEP: Final = Arg("at_step", "Not before this step.", ("--at-step",), "int")

VERBS: Final[tuple[Verb, ...]] = (
    Verb("status", "status", "Say what the run is doing.", sentences.status),
    Verb(
        "pause", "pause", "Hold the run after the batch; it saves a checkpoint.", sentences.paused,
        (Arg("reason", "Why, for the record.", ("--reason",)), _AT_STEP),
    ),
    Verb(
        "resume", "resume", "Let a held run go on; with NAME, give that value back to the script.",
        sentences.resumed,
        (Arg("path", "A value that was set: otf resume lr.", shown="NAME", required=False),),
        request=_resume,
    ),
    Verb(
        "park", "park", "Move a held run's memory on the GPU to the host, and free the GPU.",
        sentences.parked,
        (Arg("back", "Bring it back; the run stays held.", ("--back",), "flag"),),
    ),
    Verb("save", "save_ckpt", "Save a checkpoint.", sentences.saved),
    Verb(
        "validate", "validate_now", "Run the validation loop now.", sentences.validated,
        (
            Arg("limit_batches", "At most so many batches.", ("--limit-batches",), "int"),
            Arg("label", "What to call the result.", ("--label",)),
        ),
    ),
    Verb(
        "test", "test_now", "Run the test loop now.", sentences.tested,
        (Arg("label", "What to call the result.", ("--label",)),),
    ),
    Verb(
        "results", "results",
        "List what tests and validations have found, of parents and forks too.", sentences.results,
        (Arg("run_id", "Only of this run.", ("--of",)),),
    ),
    Verb(
        "set", "set_param", "Set a parameter: otf set lr 0.0005, otf set after_fit hold",
        sentences.was_set,
        (
            Arg("path", "Its name, as otf params lists it.", shown="NAME"), *_CHANGE, _AT_STEP,
        ),
        request=_set,
    ),
    Verb(
        "preview", "preview_params",
        "Say what a value will be in the coming steps, and with a change: otf preview lr 0.0005",
        sentences.previewed,
        (
            Arg("path", "Its name; lr if none is given.", shown="[NAME]", required=False),
            *_CHANGE, _AT_STEP,
            Arg("steps", "How many; to the end of the run if not given.", ("--steps",), "int"),
        ),
        request=_preview,
    ),
    Verb("params", "list_params", "List the parameters that can be set.", sentences.params),
    Verb(
        "checkpoints", "list_checkpoints", "List the checkpoints, newest first.",
        sentences.checkpoints,
        (Arg("run_id", "Only of this run.", ("--of",)),),
    ),
    Verb(
        "rollback", "rollback",
        "Put the run back, in place: otf rollback 200, otf rollback 200-ring, or a file.",
        sentences.rolled_back,
        (Arg("to", "A step, a checkpoint's id or its file.", shown="STEP|CHECKPOINT_ID|PATH"),),
        request=_roll_back,
    ),
    Verb(
        "fork", "fork",
        "Go on as another run, from here or from a checkpoint; its parent stays as it is.",
        sentences.forked,
        (
            Arg("run_name", "Its name; fork1, fork2 … if none is given.", ("--name",)),
            Arg("checkpoint", "From this one, an id or a file.", ("--from",)),
            Arg("parent_run_id", "From this run.", ("--of",)),
            Arg("ids", "On these samples of the training data: 3,5,8-20.", ("--ids",)),
            Arg("worst", "On this share of it, by the highest loss: 0.1.", ("--worst",), "float"),
            Arg("selection", "On a selection, as JSON: see docs/protocol.md.", ("--selection",)),
            Arg("weights", "A file: how often each of its samples is drawn, a number a line.",
                ("--weights",)),
            Arg("batch_size", "Its batch size.", ("--batch-size",), "int"),
            Arg("lr", "Its learning rate.", ("--lr",), "float"),
            Arg("lr_mul", "A factor on the learning rate.", ("--lr-mul",), "float"),
            Arg("wd_mul", "A factor on the weight decay.", ("--wd-mul",), "float"),
            Arg("steps", "It is held after so many steps.", ("--steps",), "int"),
            Arg("epochs", "It is held after so many epochs.", ("--epochs",), "int"),
            Arg("patience", "It is held after so many validations without a better loss.",
                ("--patience",), "int"),
        ),
        request=_fork,
    ),
    Verb(
        "merge", "merge",
        "Merge the weights of runs into a new one, which goes on from the first; with --preview "
        "say what each strategy would be worth.",
        sentences.merged,
        (
            Arg("parents", "Runs, or RUN/CHECKPOINT.", kind="several", shown="RUN..."),
            Arg("preview", "Try every strategy on the validation set; nothing is merged.",
                ("--preview",), "flag"),
            Arg("strategy", "linear if none is given.", ("--strategy",),
                choices=("linear", "fisher", "ties", "soup", "adapter")),
            Arg("weights", "How much of each run: 3,1.", ("--weights",)),
            Arg("base", "For ties: what all have begun from, as RUN/CHECKPOINT.", ("--base",)),
            Arg("recalibrate", "Gather BatchNorm's statistics anew over the training set.",
                ("--recalibrate",), "flag"),
            Arg("optimizer", "Its state: the first run's, or fresh.", ("--optimizer",),
                choices=("parent", "fresh")),
            Arg("monitor", "Judge by this metric; val_loss if none is given.", ("--monitor",)),
            Arg("mode", "Whether less of it is better.", ("--mode",), choices=("min", "max")),
            Arg("limit_batches", "Validate with so many batches at most.", ("--limit-batches",),
                "int"),
            Arg("new_name", "Its name; merge1, merge2 … if none is given.", ("--name",)),
            Arg("steps", "It is held after so many steps.", ("--steps",), "int"),
            Arg("epochs", "It is held after so many epochs.", ("--epochs",), "int"),
        ),
        request=_merge,
    ),
    Verb(
        "scan", "scan", "Find the loss of each sample, and say what they tell.",
        sentences.scanned,
        (
            Arg("on", "train, val or test.", ("--on",), choices=("train", "val", "test")),
            Arg("ids", "Only of these samples: 3,5,8-20.", ("--ids",)),
            Arg("background", "While it trains, in slices between its batches.", ("--background",),
                "flag"),
            Arg("share", "Which share of the run's time that takes: 0.05.", ("--share",), "float"),
        ),
        request=_scan,
    ),
    Verb(
        "show", "show_samples", "Say what some samples are: otf show 3,5,8-20.", sentences.shown,
        (
            Arg("ids", "Indices of the data set.", shown="IDS"),
            Arg("on", "train, val or test.", ("--on",), choices=("train", "val", "test")),
        ),
        request=_show,
    ),
    Verb(
        "compare", "compare", "Compare runs on the same samples: mean loss, and which is better.",
        sentences.compared,
        (
            Arg("runs", "Run names; those that this session has had if none is given.",
                kind="several", shown="[RUN]...", required=False),
            Arg("on", "train, val or test.", ("--on",), choices=("train", "val", "test")),
            Arg("ids", "Only on these samples: 3,5,8-20.", ("--ids",)),
            Arg("worst", "Only on this share, by the highest loss of the run named first: 0.1.",
                ("--worst",), "float"),
            Arg("selection", "Only on a selection, as JSON.", ("--selection",)),
        ),
        request=_compare,
    ),
    Verb(
        "health", "numerics_health", "Look for what is wrong with the run, without changing it.",
        sentences.healthy,
        (
            Arg("check", "dist, throughput, activations, numerics or determinism.",
                choices=("dist", "throughput", "activations", "numerics", "determinism")),
        ),
        request=_health,
    ),
    Verb(
        "cancel", "cancel", "End the scan, comparison, test, check or export that is running.",
        sentences.cancelled,
    ),
    Verb(
        "switch", "switch_run", "Go on with another run from where it was left; it stays paused.",
        sentences.switched,
        (Arg("run_id", "Its name, as otf runs lists it.", shown="RUN"),),
    ),
    Verb(
        "undo", "undo", "Take back the last command that changed the run.", sentences.undone,
        (
            Arg("which", "Another one than the last: its number in otf changes, or its request id.",
                required=False, shown="[CHANGE]"),
            Arg("restore", "Put the run back to before the command, as if it had never been.",
                ("--restore",), "flag"),
        ),
        request=_undo,
    ),
    Verb(
        "changes", "list_changes", "List what was changed in the run, by whom and when.",
        sentences.changes,
        (Arg("limit", "Only so many of the newest.", ("-n", "--limit"), "int"),),
    ),
    Verb(
        "extend", "extend", "Train longer: a new total of epochs or of steps.", sentences.extended,
        (
            Arg("max_epochs", "The new total of epochs.", ("--epochs",), "int"),
            Arg("max_steps", "The new total of steps.", ("--steps",), "int"),
        ),
        request=_extend,
    ),
    Verb(
        "reset", "reset_session", "Put the run back to before its first step; it stays paused.",
        sentences.was_reset, request=_reset,
        asks="Put {name} back to before its first step? What was trained since is lost, but for "
        "its checkpoints and its journal.",
    ),
    Verb(
        "stop", "stop", "End training; it saves a checkpoint.", sentences.stopped,
        (Arg("save", "Without a checkpoint.", ("--no-save",), "flag", sent=False),),
    ),
    Verb(
        "guards", "list_guards", "List the rules that watch the run, and what they have done.",
        sentences.guards,
    ),
    Verb(
        "guard", "set_guard",
        "Change a rule that watches the run, or make one: otf guard spike --watch spike",
        sentences.guard_set,
        (
            Arg("rule", "Its name, as otf guards lists it.", shown="RULE"),
            Arg("watch", "What a new one looks for.", ("--watch",),
                choices=("nan", "spike", "plateau", "overfit", "limit")),
            Arg("metric", "In which value: loss, val_loss, grad_norm, or a logged name.",
                ("--metric",)),
            Arg("action", "What is done.", ("--action",), choices=("notify", "pause", "rollback")),
            Arg("params", "Settings of what watches: z=8,window=30.", ("--set",)),
            Arg("lr", "Factor on the learning rate behind a rollback.", ("--lr",), "float"),
            Arg("back", "So many steps before, at least.", ("--back",), "int"),
            Arg("most", "So many steps are given up at most.", ("--most",), "int"),
            Arg("budget", "How often it may still act.", ("--budget",), "int"),
            Arg("then", "In place of a rollback when that is used up.", ("--then",),
                choices=("pause", "notify")),
            Arg("cool_down", "Steps of rest after it has acted.", ("--cool-down",), "int"),
            Arg("enabled", "Let it act again.", ("--on",), "flag"),
            Arg("off", "Let it act no more.", ("--off",), "flag"),
            Arg("remove", "Take it away.", ("--remove",), "flag"),
        ),
        request=_guard,
    ),
    Verb(
        "note", "note", "Write a note into the run's record.", sentences.noted,
        (
            Arg("text", "At most 4,096 characters."),
            Arg("step", "Of this step.", ("--step",), "int"),
        ),
    ),
)  # fmt: skip

# Words behind ``otf export``.
EXPORTS: Final[tuple[Verb, ...]] = (
    Verb(
        "samples", "export_subset",
        "Write samples of a set as a table: index, loss, label, prediction, and what of them is "
        "plain.",
        sentences.exported,
        (
            Arg("format", "csv, json, parquet or feather; by the ending of --out, else csv.",
                ("--format",), choices=("csv", "json", "parquet", "feather")),
            Arg("on", "train, val or test.", ("--on",), choices=("train", "val", "test")),
            Arg("ids", "Only these samples: 3,5,8-20.", ("--ids",)),
            Arg("worst", "Only this share, by the highest loss: 0.1.", ("--worst",), "float"),
            Arg("selection", "Only a selection, as JSON.", ("--selection",)),
            Arg("out_path", "The file; in the run's folder if none is given.", ("--out",)),
        ),
        request=_export_samples,
    ),
    Verb(
        "weights", "export_weights",
        "Write weights as safetensors: of where the run stands, or of a checkpoint.",
        sentences.exported_weights,
        (
            Arg("checkpoint", "Of this one, by its id.", ("--checkpoint",)),
            Arg("run_id", "Of this run of the session.", ("--of",)),
            Arg("out_path", "The file; in the run's folder if none is given.", ("--out",)),
        ),
        request=_export_weights,
    ),
    Verb(
        "archive", "export_session",
        "Pack a run and its relatives into one file, which another machine goes on from.",
        sentences.exported_archive,
        (
            Arg("runs", "Only these: base,fork1.", ("--only",)),
            Arg("checkpoints", "Of each run the newest, or all.", ("--checkpoints",),
                choices=("newest", "all")),
            Arg("out_path", "The file, which ends in .zip; in the run's folder if none is given.",
                ("--out",)),
        ),
        request=_export_archive,
    ),
    Verb(
        "report", "export_report",
        "Write what a run was as a page that opens anywhere.",
        sentences.exported_report,
        (
            Arg("run_id", "Of this run of the project.", ("--of",)),
            Arg("out_path", "The file, which ends in .html; in the run's folder if none is given.",
                ("--out",)),
        ),
        request=_export_report,
    ),
    Verb(
        "recipe", "export_recipe",
        "Write what was done to the run as a file, which does the same to a run that begins.",
        sentences.exported_recipe,
        (
            Arg("out_path", "The file, which ends in .json; in the run's folder if none is given.",
                required=False, shown="[FILE]"),
        ),
        request=_export_recipe,
    ),
)  # fmt: skip
