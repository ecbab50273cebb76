"""Reading a checkpoint: verified first, trusted never."""

from __future__ import annotations

import builtins
import io
import json
import os
import pathlib
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from otf_core.errors import CommandError, ErrorCode
from otf_core.state.checkpoint_file import UnfitError, complete
from otf_core.state.store import CheckpointStore, Manifest, read_checkpoint

torch.set_num_threads(1)

STATE: dict[str, Any] = {
    "state_dict": {"w": torch.arange(1000.0), "b": torch.ones(3)},
    "otf": {"version": "0", "exact": {"format": 1}},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CheckpointStore]:
    store = CheckpointStore(
        tmp_path / "run" / "checkpoints",
        keep=9,
        on_saved=lambda *_: None,
        on_removed=lambda *_: None,
    )
    store.start()
    yield store
    store.close()


def saved(store: CheckpointStore, step: int = 1, state: Any = None) -> Path:
    pending = store.save(
        lambda _: STATE if state is None else state,
        run_id="r",
        step=step,
        epoch=0,
        kind="ring",
        pinned=False,
        exact=lambda: True,
    )
    assert pending.wait(10)
    assert pending.error is None
    return Path(pending.path)


def why(path: Path, code: ErrorCode = ErrorCode.BAD_PAYLOAD) -> str:
    """The sentence of the refusal, without the name of the file."""
    with pytest.raises(CommandError) as refused:
        read_checkpoint(path)
    assert (refused.value.code, refused.value.field) == (code, "path")
    detail = refused.value.detail
    assert len(detail) < 700
    said, sep, allowed = detail.partition(" was asked; ")
    assert sep
    assert path.name[-100:].encode("unicode_escape").decode() in said
    if code is ErrorCode.BAD_PAYLOAD:
        assert allowed.endswith(". Allowed: a whole checkpoint of otf.")
    return allowed.removeprefix("it ").removesuffix(". Allowed: a whole checkpoint of otf.")


def alone(path: Path) -> Path:
    """A copy as a dashboard makes it, without its JSON."""
    copy = path.parent.parent / "copied.ckpt"
    shutil.copy(path, copy)
    return copy


def test_what_was_saved_comes_back_with_what_is_known_of_it(store: CheckpointStore) -> None:
    path = saved(store)
    state, manifest = read_checkpoint(path)

    assert torch.equal(state["state_dict"]["w"], torch.arange(1000.0))
    assert state["otf"] == STATE["otf"]
    assert manifest == store.list()[0][0]
    assert manifest.exact is True
    assert store.read("1-ring")["otf"] == STATE["otf"]
    assert complete(path) == manifest


def test_a_copy_without_its_json_is_read_and_nothing_is_known_of_it(
    store: CheckpointStore,
) -> None:
    copy = alone(saved(store))
    state, manifest = read_checkpoint(copy)
    assert torch.equal(state["state_dict"]["w"], torch.arange(1000.0))
    assert manifest is None
    with pytest.raises(UnfitError, match="has no JSON beside it that fits"):
        complete(copy)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"lr": 0.1}', b"\xff", b"[" * 100_000])
def test_a_json_that_is_none_of_ours_says_nothing(store: CheckpointStore, text: bytes) -> None:
    copy = alone(saved(store))
    copy.with_suffix(".json").write_bytes(text)
    assert read_checkpoint(copy)[1] is None


def test_a_copy_with_its_json_under_another_name_is_still_verified(store: CheckpointStore) -> None:
    path = saved(store)
    copy = alone(path)
    shutil.copy(path.with_suffix(".json"), copy.with_suffix(".json"))
    manifest = read_checkpoint(copy)[1]
    assert manifest is not None
    assert manifest.id == "1-ring"
    flip(copy, 5000)
    assert why(copy) == "is damaged: its SHA-256 is not that of what was saved"
    with pytest.raises(UnfitError, match="has no JSON beside it that fits"):
        complete(copy)


# Damage.


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_one_bit_that_has_changed_is_seen_wherever_it_is(store: CheckpointStore) -> None:
    path = saved(store)
    whole = path.read_bytes()
    picks = random.Random(0)
    for _ in range(100):
        flip(path, picks.randrange(len(whole) * 8))
        assert why(path) == "is damaged: its SHA-256 is not that of what was saved"
        with pytest.raises(CommandError, match="SHA-256") as refused:
            store.read("1-ring")
        assert refused.value.field == "checkpoint"
        path.write_bytes(whole)
    read_checkpoint(path)


def test_one_bit_that_has_changed_in_a_copy_without_json_never_changes_a_number(
    store: CheckpointStore,
) -> None:
    """What holds the archive together has no sums; there a bit may change nothing, or all."""
    copy = alone(saved(store))
    whole = copy.read_bytes()
    picks = random.Random(0)
    seen = {"read": 0, "refused": 0}
    for _ in range(300):
        flip(copy, picks.randrange(len(whole) * 8))
        try:
            state, _ = read_checkpoint(copy)
        except CommandError:
            seen["refused"] += 1
        else:
            seen["read"] += 1
            assert torch.equal(state["state_dict"]["w"], STATE["state_dict"]["w"])
            assert torch.equal(state["state_dict"]["b"], STATE["state_dict"]["b"])
            assert state["otf"] == STATE["otf"]
        copy.write_bytes(whole)
    assert seen["refused"] > 200


def test_a_bit_in_the_numbers_of_a_copy_is_named(store: CheckpointStore) -> None:
    copy = alone(saved(store))
    at = copy.read_bytes().index(torch.arange(1000.0).numpy().tobytes())
    flip(copy, (at + 999) * 8)
    assert why(copy).startswith("is damaged: the CRC-32 of ")
    assert why(copy).endswith("/data/0 is not that of what was saved")


@pytest.mark.parametrize("keep_json", [True, False])
def test_a_file_that_was_cut_off_anywhere_is_refused(
    store: CheckpointStore, keep_json: bool
) -> None:
    path = saved(store)
    path = path if keep_json else alone(path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        said = why(path)
        if keep_json:
            assert said == (f"is damaged: it has {size:,} bytes, its JSON says {len(whole):,}")
        else:
            assert said.startswith("cannot be read as a checkpoint (")


def test_bytes_behind_the_end_are_damage(store: CheckpointStore) -> None:
    path = saved(store)
    path.write_bytes(path.read_bytes() + b"x")
    assert why(path).startswith("is damaged: it has ")


def test_any_bytes_are_refused_or_read_and_never_raise_anything_else(
    store: CheckpointStore,
) -> None:
    """The pickle inside is changed at random, in an archive whose sums fit."""
    copy = alone(saved(store))
    inside = zipfile.ZipFile(io.BytesIO(copy.read_bytes()))
    [name] = [n for n in inside.namelist() if n.endswith("data.pkl")]
    picks = random.Random(0)
    refused = 0
    for _ in range(400):
        pickled = bytearray(inside.read(name))
        for _ in range(picks.randrange(1, 4)):
            pickled[picks.randrange(len(pickled))] = picks.randrange(256)
        with zipfile.ZipFile(copy, "w") as archive:
            for entry in inside.namelist():
                archive.writestr(entry, pickled if entry == name else inside.read(entry))
        with warnings.catch_warnings():
            warnings.simplefilter(picks.choice(["ignore", "error"]))
            try:
                read_checkpoint(copy)
            except CommandError:
                refused += 1
    assert refused > 300


# What is no checkpoint.


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("import builtins; builtins.otf_test_was_here = True",))


class Toucher:
    """Runs when it is rebuilt, without a call that looks evil."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


@pytest.mark.parametrize("form", ["torch", "torch, old", "pickle", "torch, deep"])
@pytest.mark.parametrize("with_json", [True, False])
def test_a_file_that_would_run_code_runs_nothing(
    tmp_path: Path, form: str, with_json: bool
) -> None:
    path, touched = tmp_path / "1-ring.ckpt", tmp_path / "touched"
    state: Any = {"otf": {}, "x": [Evil(), Toucher(str(touched))]}
    if form == "pickle":
        path.write_bytes(pickle.dumps(state))
    elif form == "torch, deep":
        for _ in range(50):
            state = {"otf": {"a": state}}
        torch.save(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    if with_json:
        accuse(path)

    said = why(path)
    assert not hasattr(builtins, "otf_test_was_here")
    assert not touched.exists()
    if form.startswith("torch") and form != "torch, old":
        assert said == "asks for exec, which may run code; nothing was run"
    else:
        assert said == "cannot be read as a checkpoint (BadZipFile: File is not a zip file)"


def accuse(path: Path) -> None:
    """A JSON that fits the file, as somebody could write it."""
    import hashlib

    data = path.read_bytes()
    fields = {"id": path.stem, "run_id": "r", "step": 1, "epoch": 0, "ts": 1.0, "kind": "ring"}
    fields |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(fields))


def test_what_the_users_process_allows_is_not_asked_of_a_file(tmp_path: Path) -> None:
    """An environment variable that makes torch trust files does not make us trust them."""
    path = tmp_path / "a.ckpt"
    torch.save({"otf": {}, "x": Evil()}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        assert "nothing was run" in why(path)
    assert not hasattr(builtins, "otf_test_was_here")


def write_zip(path: Path, entries: dict[str, bytes], packed: bool = False) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else 0) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_zip(path, {"report.txt": b"hello"})
    assert why(path) == "is an archive, but no checkpoint"
    write_zip(path, {"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b""})
    assert why(path) == "is an archive, but no checkpoint"
    write_zip(path, {})
    assert why(path) == "is an archive, but no checkpoint"


@pytest.mark.parametrize(
    "pickled", [b"\x80\x02J\x01", b"", b"\x80", b"\x80\x02.", b"\x80\x02h\x07."]
)
def test_a_pickle_that_ends_too_early(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "a.ckpt"
    write_zip(path, {"a/data.pkl": pickled, "a/version": b"3"})
    assert why(path).startswith("cannot be loaded (")


def test_an_archive_that_would_swell_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_zip(path, {"a/data.pkl": bytes(10**7)}, packed=True)
    assert path.stat().st_size < 10**5
    assert why(path) == "is an archive, but no checkpoint"


@pytest.mark.parametrize("state", [{"w": torch.ones(2)}, {"otf": 1}, [1], torch.ones(2)])
def test_a_file_of_torch_that_is_none_of_ours(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(state, path)
    assert why(path) == "is a file of torch, but no checkpoint of otf"


@pytest.mark.parametrize("data", [b"", b"x", b"PK", b"PK\x03\x04" + bytes(100), bytes(5000)])
def test_a_file_that_is_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(data)
    assert why(path).startswith("cannot be read as a checkpoint (BadZipFile")


# What is no file.


@pytest.mark.timeout(10)
def test_a_pipe_is_not_waited_for(tmp_path: Path, store: CheckpointStore) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    assert why(tmp_path / "a.ckpt") == "is no regular file"
    copy = alone(saved(store))
    os.mkfifo(copy.with_suffix(".json"))
    assert read_checkpoint(copy)[1] is None


def test_a_folder_or_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").mkdir()
    assert why(tmp_path / "a.ckpt") == "is no regular file"
    assert why(Path("/dev/zero")) == "is no regular file"
    assert why(Path("/")) == "is no regular file"


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("nowhere", "nowhere/a.ckpt", "file/a.ckpt", "dangling"):
        assert why(tmp_path / name, ErrorCode.NOT_FOUND) == "there is no such file."


def test_names_that_no_system_takes_are_refused(tmp_path: Path) -> None:
    assert why(tmp_path / "a\0b") == "cannot be opened (embedded null byte)"
    assert why(tmp_path / ("x" * 300)) == "cannot be opened (file name too long)"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert why(tmp_path / "loop") == "cannot be opened (too many levels of symbolic links)"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.ckpt").write_text("")
    monkeypatch.setattr(os, "open", denied)
    assert why(tmp_path / "a.ckpt") == "cannot be opened (permission denied)"


def test_a_link_that_a_person_names_is_followed_to_the_file_and_its_json(
    store: CheckpointStore, tmp_path: Path
) -> None:
    path = saved(store)
    (tmp_path / "last.ckpt").symlink_to(path)
    manifest = read_checkpoint(tmp_path / "last.ckpt")[1]
    assert manifest is not None
    assert manifest.id == "1-ring"
    flip(path, 5000)
    assert "SHA-256" in why(tmp_path / "last.ckpt")


def test_a_link_in_the_place_of_a_checkpoint_is_none(
    store: CheckpointStore, tmp_path: Path
) -> None:
    path = saved(store)
    path.rename(tmp_path / "elsewhere.ckpt")
    path.symlink_to(tmp_path / "elsewhere.ckpt")
    with pytest.raises(CommandError, match="it is a link") as refused:
        store.read("1-ring")
    assert refused.value.code is ErrorCode.BAD_PAYLOAD
    with pytest.raises(UnfitError, match="is a link"):
        complete(path)


# By id and by step.


def test_an_id_that_is_not_known_is_not_found_and_the_newest_are_named(
    store: CheckpointStore,
) -> None:
    for step in (1, 2):
        saved(store, step)
    for name in ("3-ring", "../1-ring", "", "x" * 9999):
        with pytest.raises(CommandError, match=r"^No checkpoint ") as refused:
            store.read(name)
        assert refused.value.code is ErrorCode.NOT_FOUND
        assert (refused.value.field, refused.value.allowed) == ("checkpoint", ["2-ring", "1-ring"])
        assert len(refused.value.detail) < 300
    Path(store.list()[0][1]).unlink()
    with pytest.raises(CommandError, match="there is no such file") as refused:
        store.read("2-ring")
    assert (refused.value.code, refused.value.field) == (ErrorCode.NOT_FOUND, "checkpoint")


def test_a_json_that_somebody_took_away_does_not_make_us_trust_the_file(
    store: CheckpointStore,
) -> None:
    path = saved(store)
    path.with_suffix(".json").unlink()
    store.read("1-ring")
    flip(path, 5000)
    with pytest.raises(CommandError, match="SHA-256"):
        store.read("1-ring")


def test_checkpoints_are_found_by_step_and_before_a_step(store: CheckpointStore) -> None:
    for step in (5, 10, 20, 10):
        saved(store, step)

    def ids(*found: tuple[Manifest, str] | None) -> list[str | None]:
        assert all(f is None or Path(f[1]).name == f"{f[0].id}.ckpt" for f in found)
        return [f[0].id if f is not None else None for f in found]

    assert ids(store.get("10-ring"), store.get("10-ring-2"), store.get("10")) == [
        "10-ring",
        "10-ring-2",
        None,
    ]
    steps = (4, 5, 9, 10, 15, 20, 99)
    assert ids(*map(store.at_step, steps)) == [
        None, "5-ring", None, "10-ring-2", None, "20-ring", None,
    ]  # fmt: skip
    assert ids(*map(store.before, steps)) == [
        None, "5-ring", "5-ring", "10-ring-2", "10-ring-2", "20-ring", "20-ring",
    ]  # fmt: skip


def test_without_a_folder_nothing_is_found() -> None:
    store = CheckpointStore(None, keep=1, on_saved=print, on_removed=print)
    assert (store.get("x"), store.at_step(1), store.before(1)) == (None, None, None)
    assert store.adopt() == []
    with pytest.raises(CommandError, match=r"^No checkpoint 'x'"):
        store.read("x")
