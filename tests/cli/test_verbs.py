"""The verbs' table against the wire, and the sentences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from otf_core.client import sentences
from otf_core.client.sentences import state_sentence
from otf_core.client.verbs import EXPORTS, VERBS, Arg, UsageError, Verb, read_value, request_of
from otf_core.client.words import columns, number, size, span
from otf_core.protocol import COMMANDS, Anything

BY_WORD = {verb.word: verb for verb in VERBS}


def some_value(arg: Arg) -> Any:
    if arg.key == "selection":
        return '{"kind": "label_noise"}'
    if (arg.key, arg.words) == ("params", ("--set",)):
        return "z=3"
    if arg.kind == "flag":
        return True
    if arg.kind in ("int", "float"):
        return 3
    if arg.kind == "several":
        return ("3", "4")
    return arg.choices[0] if arg.choices else "3"


def asked(verb: Verb) -> list[tuple[str, dict[str, Any]]]:
    """What a verb sends with each of its arguments, one after the other."""
    needed = {arg.key: some_value(arg) for arg in verb.args if not arg.words and arg.required}
    needed |= {"value": "3"} if verb.word in ("set", "preview") else {}
    if verb.word == "extend":
        return [request_of(verb, {arg.key: 3}) for arg in verb.args]
    return [request_of(verb, needed)] + [
        request_of(verb, {**needed, arg.key: some_value(arg)})
        for arg in verb.args
        if (verb.word, arg.key) != ("fork", "weights")  # a file
    ]


def test_every_verb_is_a_command_and_what_it_sends_are_fields_of_the_payload() -> None:
    for verb in (*VERBS, *EXPORTS):
        assert verb.cmd in COMMANDS
        for cmd, payload in asked(verb):
            struct = COMMANDS[cmd].payload
            fields = {field.name for field in msgspec.structs.fields(struct)}
            assert struct is Anything or payload.keys() <= fields, verb.word
    assert len(BY_WORD) == len(VERBS)


def test_what_is_not_given_is_not_sent() -> None:
    for verb in VERBS:
        needed = {arg.key: some_value(arg) for arg in verb.args if not arg.words and arg.required}
        needed |= {"value": "3"} if verb.word == "set" else {}
        if verb.word not in ("rollback", "extend", "reset", "health", "merge", "show", "preview"):
            assert request_of(verb, needed) == (verb.cmd, {k: read_value(v) if k == "value" else v
                                                           for k, v in needed.items()})  # fmt: skip


def test_samples_are_shown_in_a_line_each() -> None:
    assert request_of(BY_WORD["show"], {"ids": "3,5-6"}) == ("show_samples", {"ids": [3, 5, 6]})
    samples = [
        {"id": 3, "kind": "image", "width": 8, "height": 8, "url": "data:", "label": 5},
        {"id": 5, "kind": "row", "values": [*range(9)]},
        {"id": 6, "kind": "text", "text": "a\nb", "reason": "OSError: no"},
    ]
    assert sentences.shown("r", {"samples": samples}, {}).splitlines() == [
        "3  label 5  an image of 8 x 8",
        "5  0, 1, 2, 3, 4, 5, 6, 7, …",
        "6  a b  (OSError: no)",
    ]


def test_a_merge_names_runs_and_checkpoints() -> None:
    merge = BY_WORD["merge"]
    assert request_of(merge, {"parents": ("a", "b")}) == ("merge", {"parents": ["a", "b"]})
    given = {"parents": ("a/3-auto", "b"), "preview": True, "weights": "3,1"}
    payload = {"parents": ["a", "b"], "checkpoints": ["3-auto", None], "weights": [3.0, 1.0]}
    assert request_of(merge, given) == ("merge_preview", payload)
    with pytest.raises(UsageError, match="two runs or more"):
        request_of(merge, {"parents": ("a",)})
    with pytest.raises(UsageError, match="a number for each run"):
        request_of(merge, {"parents": ("a", "b"), "weights": "3,x"})


def test_a_preview_reads_as_a_person_reads_it() -> None:
    parents = [{"run_id": "hard", "checkpoint": "9-auto", "score": 0.41, "metrics": {}}]
    candidates = [
        {"strategy": "linear", "score": 0.3, "metrics": {}, "told": []},
        {"strategy": "ties", "score": None, "refused": "no base."},
    ]
    data = {
        "parents": parents, "candidates": candidates, "monitor": "val_loss", "step": 9,
        "best": {"strategy": "linear"},
    }  # fmt: skip
    assert sentences.merged("hard", data, {}).splitlines() == [
        "Merges of hard at step 9; nothing was merged",
        "             val_loss",
        "hard/9-auto      0.41",
        "linear            0.3  best",
        "  ties cannot be: no base.",
    ]


def test_a_fork_takes_the_weights_of_samples_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_text("1\n0.5\n")
    assert request_of(BY_WORD["fork"], {"weights": str(path)}) == ("fork", {"weights": [1.0, 0.5]})


def test_a_fork_says_what_is_other() -> None:
    given = {"ids": "3, 5,8-10", "lr_mul": 0.1, "steps": 50, "run_name": "hard"}
    selection = {"kind": "indices", "ids": [3, 5, 8, 9, 10]}
    payload = {
        "run_name": "hard", "steps": 50, "selection": selection, "hparams": {"lr_mul": 0.1},
    }  # fmt: skip
    assert request_of(BY_WORD["fork"], given) == ("fork", payload)
    worst = {"selection": {"kind": "quantile", "from": 0.9, "to": 1.0}}
    assert request_of(BY_WORD["fork"], {"worst": 0.1}) == ("fork", worst)
    with pytest.raises(UsageError, match="one of them"):
        request_of(BY_WORD["fork"], {"worst": 0.1, "ids": "3"})
    noise = {"selection": '{"kind": "label_noise"}'}
    assert request_of(BY_WORD["fork"], noise) == ("fork", {"selection": {"kind": "label_noise"}})
    with pytest.raises(UsageError, match="takes JSON"):
        request_of(BY_WORD["fork"], {"selection": "worst"})
    with pytest.raises(UsageError, match="a number for each sample"):
        request_of(BY_WORD["fork"], {"weights": "/nowhere"})
    with pytest.raises(UsageError, match="found '5-x'"):
        request_of(BY_WORD["fork"], {"ids": "1,5-x"})


def test_an_export_is_asked_for_with_the_path_that_was_meant_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    samples, weights, archive, report, recipe = EXPORTS
    worst = {"kind": "quantile", "from": 0.9, "to": 1.0}
    given = {"worst": 0.1, "out_path": "../x.csv", "on": "val"}
    expected = {"selection": worst, "out_path": str(tmp_path.parent / "x.csv"), "on": "val"}
    assert request_of(samples, given) == ("export_subset", expected)
    assert request_of(samples, {}) == ("export_subset", {})
    with pytest.raises(UsageError, match="otf export samples takes --ids, --worst or"):
        request_of(samples, {"worst": 0.1, "ids": "3"})
    assert request_of(weights, {"out_path": "~/w.safetensors", "run_id": "f"}) == (
        "export_weights", {"out_path": "/home/me/w.safetensors", "run_id": "f"},
    )  # fmt: skip
    given = {"runs": "base, fork1", "out_path": "s.zip", "checkpoints": "all"}
    expected = {**given, "runs": ["base", "fork1"], "out_path": str(tmp_path / "s.zip")}
    assert request_of(archive, given) == ("export_session", expected)
    given = {"out_path": "r.html", "run_id": "f"}
    expected = {**given, "out_path": str(tmp_path / "r.html")}
    assert request_of(report, given) == ("export_report", expected)
    best = {"out_path": str(tmp_path / "best.json")}
    assert request_of(recipe, {"out_path": "best.json"}) == ("export_recipe", best)
    said = "Wrote the 3 steps of r to /best.json"
    assert sentences.exported_recipe("r", {"steps": 3, "out_path": "/best.json"}, {}) == said
    packed = {"runs": ["a", "b"], "checkpoints": 1, "bytes": 9e6, "out_path": "/s.zip"}
    said = "Packed a, b with 1 checkpoint (9.0 MB) into /s.zip"
    assert sentences.exported_archive("r", packed, {}) == said
    missing = {**packed, "missing": ["c"]}
    assert sentences.exported_archive("r", missing, {}) == f"{said}; without c"
    page = {"run_id": "f", "bytes": 70_000, "out_path": "/r.html"}
    said = "Wrote the report of f (70 kB) to /r.html"
    assert sentences.exported_report("r", page, {}) == said
    rows = {"rows": 12_000, "applied_step": 5, "out_path": "/x.csv"}
    assert sentences.exported("r", rows, {}) == "Exported 12,000 samples of r at step 5 to /x.csv"
    found = {"run_id": "f", "step": 5, "bytes": 91_000, "out_path": "/w", "left_out": []}
    said = "Exported the weights of f at step 5 (91 kB) to /w"
    assert sentences.exported_weights("r", found, {}) == said
    left_out = {**found, "left_out": ["a._extra_state"]}
    assert sentences.exported_weights("r", left_out, {}).startswith(f"{said}; left out, being no")


@pytest.mark.parametrize(
    ("to", "request_"),
    [
        ("200", ("rollback", {"step": 200})),
        ("200-ring", ("rollback", {"checkpoint": "200-ring"})),
        ("/runs/d/checkpoints/200-ring.ckpt",
         ("load_ckpt", {"path": "/runs/d/checkpoints/200-ring.ckpt"})),
    ],
)  # fmt: skip
def test_a_rollback_goes_to_a_step_an_id_or_a_file(to: str, request_: Any) -> None:
    assert request_of(BY_WORD["rollback"], {"to": to}) == request_


def test_a_file_is_named_as_this_terminal_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    verb = BY_WORD["rollback"]
    assert request_of(verb, {"to": "200-ring.ckpt"})[1] == {"path": f"{tmp_path}/200-ring.ckpt"}
    assert request_of(verb, {"to": "~/best.pt"})[1] == {"path": "/home/ada/best.pt"}


@pytest.mark.parametrize("given", [{}, {"max_epochs": 3, "max_steps": 4}])
def test_a_run_is_extended_by_epochs_or_by_steps(given: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="--epochs N or --steps N"):
        request_of(BY_WORD["extend"], given)


ENDED: list[tuple[Any, dict[str, Any], str]] = [
    (
        sentences.forked,
        {"new_run": "fork1", "parent": "d", "at_step": 1200, "subset_count": 2},
        "Forked fork1 from d at step 1,200 on 2 samples",
    ),
    (
        sentences.switched,
        {"run_id": "d", "step": 1200},
        "Switched to d, which is paused at step 1,200",
    ),
    (
        sentences.rolled_back,
        {"run_id": "d", "checkpoint": "200-ring", "step": 200, "from_step": 12_420},
        "Rolled back d from step 12,420 to 200 (checkpoint 200-ring)",
    ),
    (
        sentences.rolled_back,
        {"path": "/x/best.ckpt", "step": 120, "epoch": 2},
        "Rolled back d to step 120 (checkpoint best.ckpt)",
    ),
    (
        sentences.undone,
        {"undone": {"request_id": "i", "cmd": "set_param"}, "now": {"lr": 0.001}},
        "Undone in d: set_param lr, now 0.001",
    ),
    (
        sentences.undone,
        {"undone": {"cmd": "note"}, "now": {}, "applied_step": 7},
        "Undone in d: note, applied at step 7",
    ),
    (
        sentences.undone,
        {"undone": {"cmd": "extend"}, "now": {"max_epochs": 20, "max_steps": None}},
        "Undone in d: extend, max_epochs now 20, max_steps now none",
    ),
    (
        sentences.extended,
        {"max_epochs": 30, "max_steps": None, "old": {"max_epochs": 20, "max_steps": None},
         "applied_step": 433},
        "Extended d: 20 → 30 epochs, applied at step 433",
    ),
    (
        sentences.extended,
        {"max_steps": 500, "old": {}, "applied_step": 433},
        "Extended d: 500 steps, applied at step 433",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("say", "data", "sentence"), ENDED)
def test_an_answer_reads_as_a_person_reads_it(say: Any, data: Any, sentence: str) -> None:
    assert say("d", data, {}) == sentence


def test_a_choice_is_shown_with_what_may_be_chosen() -> None:
    row: dict[str, Any] = {
        "path": "after_fit", "kind": "enum", "value": "auto", "min": None, "max": None,
        "choices": ["auto", "return", "test", "hold"], "owner": "user",
    }  # fmt: skip
    said = sentences.params("d", {"params": [row]}, {})
    assert said == "after_fit  auto  (user; auto, return, test, hold)"
    row["pending"] = {"value": "hold", "at_step": 5}
    assert "auto, becomes hold" in sentences.params("d", {"params": [row]}, {})


def test_a_ledger_reads_as_a_person_reads_it() -> None:
    assert sentences.changes("d", {"changes": [], "total": 0}, {}) == "Nothing was changed in d"
    row = {"id": 11, "step": 1200, "by": "user", "who": "ada@gpu", "cmd": "set_param",
           "cause": None, "path": "lr", "old": 0.002, "new": 0.004, "until": 1300,
           "undone_by": 12}  # fmt: skip
    back = {**row, "id": 12, "by": "undo", "cause": "change 11", "until": None, "undone_by": None}
    longer = {**row, "by": "guard", "who": None, "cause": "spike", "path": None, "cmd": "extend",
              "old": {"max_epochs": 3}, "new": {"max_epochs": None}}  # fmt: skip
    said = sentences.changes("d", {"changes": [row, back, longer], "total": 13}, {}).splitlines()
    assert said[0] == "10 older ones are not shown"
    assert [re.split(r" {2,}", line.strip()) for line in said[2:]] == [
        ["11", "1,200", "ada@gpu", "lr until 1,300", "0.002", "0.004", "12"],
        ["12", "1,200", "undo, ada@gpu (change 11)", "lr", "0.002", "0.004", "-"],
        [
            "11",
            "1,200",
            "guard (spike)",
            "extend until 1,300",
            "max_epochs 3",
            "max_epochs -",
            "12",
        ],
    ]


def test_an_undo_names_a_row_by_its_number_and_a_request_by_its_id() -> None:
    undo = next(verb for verb in VERBS if verb.word == "undo")
    assert request_of(undo, {}) == ("undo", {})
    assert request_of(undo, {"which": "7", "restore": True}) == (
        "undo", {"change": 7, "restore": True},
    )  # fmt: skip
    assert request_of(undo, {"which": "q-7"}) == ("undo", {"request_id": "q-7"})


def test_a_scan_reads_as_a_person_reads_it() -> None:
    worst = [{"id": 1204, "loss": 3.25, "label": 8, "prediction": 1},
             {"id": 7, "loss": None, "label": None, "prediction": None}]  # fmt: skip
    figures = {
        "mean": 0.25, "accuracy": 0.975, "not_finite": 1, "worst": worst,
        "quantiles": [{"share": 0.5, "loss": 0.1}, {"share": 1.0, "loss": 3.25}],
    }  # fmt: skip
    data = {"on": "val", "count": 1797, "step": 40, "rule": "by the hook", "figures": figures}
    assert sentences.scanned("d", data, {}).splitlines() == [
        "Scanned 1,797 samples of the val set of d at step 40, by the hook",
        "  mean loss 0.25, accuracy 0.975",
        "  1 losses are not finite",
        "  quantiles 50 % 0.1, 100 % 3.25",
        "sample  loss  label  predicted",
        "  1204  3.25      8          1",
        "     7     -      -          -",
    ]
    over = sentences.scanned("d", {**data, "first_step": 20, "last_step": 1040}, {})
    assert over.startswith("Scanned 1,797 samples of the val set of d over steps 20 to 1,040, by")


def test_runs_are_compared_on_all_or_on_the_worst() -> None:
    verb = BY_WORD["compare"]
    worst = {"kind": "quantile", "from": 0.9, "to": 1.0}
    given = {"runs": ("r", "hard"), "on": "val", "worst": 0.1}
    payload = {"runs": ["r", "hard"], "on": "val", "selection": worst}
    assert request_of(verb, given) == ("compare", payload)
    assert request_of(verb, {"runs": (), "ids": None}) == ("compare", {})
    with pytest.raises(UsageError, match="otf compare takes --ids, --worst or"):
        request_of(verb, {"runs": (), "ids": "3", "worst": 0.1})
    quantiles = [
        {"share": 0.5, "loss": 0.2},
        {"share": 0.9, "loss": 0.5},
        {"share": 1.0, "loss": 2.0},
    ]
    runs = [
        {"name": "r", "step": 1200, "mean": 0.25, "quantiles": quantiles, "accuracy": 0.9},
        {"name": "hard", "step": 7, "mean": None, "quantiles": [], "accuracy": None},
    ]
    pairs = [{"one": "r", "other": "hard", "better": 1797, "worse": 3, "same": 0, "not_finite": 0}]
    data = {"on": "val", "count": 1800, "rule": "by the hook", "runs": runs, "pairs": pairs}
    assert sentences.compared("d", data, {}).splitlines() == [
        "Losses on 1,800 samples of the val set, by the hook",
        "run    step  mean  50 %  90 %  worst  accuracy",
        "r     1,200  0.25   0.2   0.5      2       0.9",
        "hard      7     -     -     -      -         -",
        "hard does better than r on 1,797, worse on 3",
    ]


def test_results_are_a_table_with_a_column_for_each_metric() -> None:
    test = {"kind": "test", "label": "final", "run_id": "d", "avg_loss": 0.25, "seconds": 1.5}
    rows = [
        {**test, "step": 1200, "metrics": {"test_acc": 0.9}, "limit_batches": None},
        {"kind": "validate", "label": None, "run_id": "hard", "avg_loss": None, "seconds": 0.04,
         "step": 7, "metrics": {"val_loss": None}, "limit_batches": 3},
    ]  # fmt: skip
    assert sentences.results("d", {"results": rows}, {}).splitlines() == [
        "run    step  kind                   label  avg_loss  test_acc  val_loss   took",
        "d     1,200  test                   final      0.25       0.9         -  1.5 s",
        "hard      7  validate of 3 batches  -             -         -         -  0.0 s",
    ]
    nothing = sentences.results("d", {"results": []}, {})
    assert nothing == "d was neither tested nor validated yet"


def test_a_value_that_was_set_is_shown_with_what_the_script_would_use() -> None:
    row = {"path": "lr", "value": 5e-4, "script": 2e-3, "min": 0, "max": 10, "owner": "scheduler"}
    said = sentences.params("d", {"params": [row]}, {})
    assert said == "lr  0.0005  (scheduler; 0 to 10; 0.002 by the script itself)"


def test_a_table_has_its_columns_in_line() -> None:
    table = columns([("id", "step"), ("9-ring", "9"), ("x", "1,200")], right=["step"])
    assert table.splitlines() == ["id       step", "9-ring      9", "x       1,200"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("3", 3), ("-1", -1), ("1e-4", 1e-4), ("sgd", "sgd")],
)
def test_a_value_is_read_as_what_it_looks_like(text: str, value: Any) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_sizes_spans_and_numbers_are_for_people() -> None:
    assert [size(n) for n in (None, 0, 999, 91_234, 9_123_400, 14_100_000_000)] == [
        "size unknown", "0 B", "999 B", "91 kB", "9.1 MB", "14 GB",
    ]  # fmt: skip
    assert [span(s) for s in (0, 59.4, 60, 125, 1200, 8040, 200_000)] == [
        "0 s", "59 s", "1 min", "2 min 5 s", "20 min", "2 h 14 min", "2 d 7 h",
    ]  # fmt: skip
    assert [number(n) for n in (12400, 0.312, 1e-4, True, None, [0.1, 2], 3.0, "x")] == [
        "12,400", "0.312", "0.0001", "on", "none", "[0.1, 2]", "3", "x",
    ]  # fmt: skip


SESSION: dict[str, Any] = {
    "run_id": "r", "run_name": "digits", "step": 12400, "epoch": 3, "max_steps": 50_000,
    "max_epochs": None, "reason": None, "finished": None, "last_ts": 1000.0, "status": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"state": "running"}, "Training digits — step 12,400 of 50,000, epoch 3"),
        ({"state": "paused"}, "Paused digits at step 12,400 of 50,000, epoch 3"),
        (
            {"state": "pausing"},
            "Pausing digits — finishing the batch after step 12,400, then it holds there",
        ),
        (
            {"state": "failed", "finished": {"error": "out of memory"}},
            "Failed digits at step 12,400 — out of memory",
        ),
        ({"state": "finished"}, "Finished digits — 12,400 steps"),
        (
            {"state": "lost", "max_steps": None, "epoch": None},
            "Connection lost — digits was at step 12,400; it goes on without this dashboard",
        ),
        (
            {"state": "journal"},
            "Journal of digits — last written 3 h ago at step 12,400; no trainer attached",
        ),
        (
            {"state": "paused", "reason": "after_fit", "max_steps": 12_400, "epoch": None},
            "Paused digits at step 12,400 of 12,400 (training is done, the process is held)",
        ),
        ({"state": "starting"}, "Starting digits — attached, training has not begun"),
        ({"state": "testing", "max_steps": -1}, "Testing digits at step 12,400, epoch 3"),
    ],
)
def test_a_state_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert state_sentence(SESSION | change, 1000.0 + 3 * 3600) == sentence


def test_a_released_value_is_said_with_what_holds_now() -> None:
    data = {"path": "lr", "old": 0.5, "new": 0.1, "applied_step": 7}
    said = sentences.resumed("digits", data, {})
    assert said == "Gave lr of digits back to the script: 0.5 → 0.1, applied at step 7"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"kind": "bool", "value": False, "min": None, "max": None}, "off  (x; on, off)"),
        ({"kind": "str", "value": "", "min": None, "max": None}, "none  (x; text)"),
        ({"kind": "int", "value": 32, "min": 1, "max": None}, "32  (x; 1 or more)"),
        ({"kind": "float", "value": 0.5, "min": None, "max": None}, "0.5  (x; any)"),
        ({"kind": "float", "value": 0.5, "min": 0, "max": 1}, "0.5  (x; 0 to 1)"),
        ({"kind": "enum", "value": "a", "choices": ["a", "b"]}, "a  (x; a, b)"),
    ],
)
def test_what_a_value_may_be_is_said_by_its_kind(row: dict[str, Any], said: str) -> None:
    assert (
        sentences.params("d", {"params": [{"path": "p", "owner": "x", **row}]}, {}) == f"p  {said}"
    )
