"""What a person is shown of a sample: an image, a text, or a row of numbers.

Rule 1: nothing here raises to the caller; a reason comes instead.
Rule 2: what is shown has bounds, whatever the sample's size.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

from otf_core.runs.subject import Subject, apart, fetch, seed_all

MAX_SIDE_PX: Final = 256
MAX_CHARS: Final = 2_000
MAX_VALUES: Final = 64
MIN_SIDE_PX: Final = 4  # what is smaller is a row of numbers
_COLOURS: Final = {1: 0, 3: 2, 4: 6}  # channels -> PNG's colour type
_DEEP: Final = 4
_LABELS: Final = ("label", "labels", "target", "targets", "y", "class")

Shown = dict[str, Any]
Hook = Callable[[Any], Any]
Cell = str | int | float | bool | None


def render_samples(subject: Subject, ids: list[int]) -> list[Shown]:
    """Of each of these samples; training thread, without a trace on the run.

    Each has ``id`` beside what ``render_sample`` says.
    """
    found = []
    with apart(subject):
        for each in ids:
            seed_all(each)
            found.append({"id": each, **_fetched(subject, each)})
    return found


def render_sample(sample: Any, hook: Hook | None = None) -> Shown:
    """What is shown of a sample as the data set gives it; plain values.

    Args:
        hook: ``render_sample`` of the module: what it returns is shown, a dict with ``kind`` as
            it is.

    Returns:
        {kind: "image", url, width, height, label?}, {kind: "text", text, label?} or
        {kind: "row", values, names?, shape?, label?}; ``reason`` where something went wrong.
    """
    try:
        if hook is not None:
            said = hook(sample)
            if isinstance(said, Mapping) and said.get("kind") in ("image", "text", "row"):
                return {str(name): _plain(value) for name, value in said.items()}
            return _shown(said)
        return _shown(sample)
    except Exception as error:  # noqa: BLE001 -- the user's hook and types; a sample is not worth a run
        return _nothing(error)


def columns_of(sample: Any, hook: Hook | None = None) -> dict[str, Cell]:
    """What a table has of a sample: numbers and text by name, tensors up to MAX_VALUES.

    A mapping has its own names, ``text`` is the text and ``x`` the values of all else; a number
    that is the sample's label is ``label``. Images, and tensors that are larger, have no cell.

    Args:
        hook: ``render_sample`` of the module; a row or text that it returns is the sample then.
    """
    if hook is not None:
        sample = hook(sample)
        if isinstance(sample, Mapping) and "kind" in sample:
            sample = _as_sample(sample)
    found: dict[str, Cell] = {}
    _gather(sample, "", found, 0)
    return found


def _as_sample(shown: Mapping[Any, Any]) -> dict[str, Any]:
    """What a hook has made of a sample, as if the data set gave it."""
    label = {"label": shown["label"]} if "label" in shown else {}
    if shown["kind"] == "row":
        values, names = shown.get("values", ()), shown.get("names")
        return {**(dict(zip(names, values, strict=False)) if names else {"x": values}), **label}
    return {**({"text": shown.get("text")} if shown["kind"] == "text" else {}), **label}


def _gather(value: Any, name: str, found: dict[str, Cell], depth: int) -> None:
    """The cells of a part of a sample, below ``name``; of the whole it is empty."""
    if depth > _DEEP:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            label = not name and key in _LABELS and _number(inner) is not None
            below = "label" if label else f"{name}.{key}" if name else str(key)
            _gather(inner, below, found, depth + 1)
    elif isinstance(value, str):
        _put(found, name or "text", value.encode(errors="backslashreplace").decode())
    elif value is None or isinstance(value, bool | float):
        _put(found, name or "x", value)
    elif (number := _number(value)) is not None:
        _put(found, name or "x", number)
    elif isinstance(value, list | tuple):
        _gather_parts(value, name, found, depth)
    elif (array := _array_of(value)) is not None and array.dtype.kind in "biuf":
        _values(array.reshape(-1).tolist(), name, found)


def _gather_parts(
    parts: list[Any] | tuple[Any, ...], name: str, found: dict[str, Cell], depth: int
) -> None:
    if depth == 0 and isinstance(parts, tuple) and len(parts) > 1:
        *parts, last = parts
        if _number(last) is not None:
            found["label"] = _number(last)
        else:
            parts.append(last)
    elif parts and all(_number(part) is not None for part in parts):
        _values([_number(part) for part in parts], name, found)
        return
    for part in parts:
        _gather(part, name, found, depth + 1)


def _values(values: list[Any], name: str, found: dict[str, Cell]) -> None:
    if len(values) <= MAX_VALUES:
        for place, each in enumerate(values):
            _put(found, f"{name or 'x'}_{place}", each)


def _put(found: dict[str, Cell], name: str, cell: Cell) -> None:
    free, n = name, 2
    while free in found:
        free, n = f"{name}-{n}", n + 1
    found[free] = cell


def _fetched(subject: Subject, each: int) -> Shown:
    try:
        [sample] = fetch(subject.dataset, [each])
    except Exception as error:  # noqa: BLE001 -- the user's data set; see render_sample
        return _nothing(error)
    return render_sample(sample, subject.render)


def _nothing(error: Exception) -> Shown:
    return {"kind": "text", "text": "", "reason": f"{type(error).__name__}: {error}"[:MAX_CHARS]}


def _shown(sample: Any, depth: int = 0) -> Shown:
    array = _array_of(sample)
    if array is not None:
        return _image(array) or _row(array)
    if isinstance(sample, str):
        return {"kind": "text", "text": _clipped(sample)}
    if isinstance(sample, Mapping):
        return _of_mapping(sample, depth)
    if isinstance(sample, list | tuple) and sample and depth < _DEEP:
        return _of_parts(sample, depth)
    return {"kind": "text", "text": _clipped(str(_plain(sample)))}


def _of_parts(parts: list[Any] | tuple[Any, ...], depth: int) -> Shown:
    numbers = [_number(part) for part in parts]
    if all(number is not None for number in numbers):
        return {"kind": "row", "values": numbers[:MAX_VALUES], "shape": [len(numbers)]}
    found = _shown(parts[0], depth + 1)
    label = numbers[-1]
    return found if label is None or len(parts) < 2 else {**found, "label": label}


def _of_mapping(sample: Mapping[Any, Any], depth: int) -> Shown:
    found = (_number(value) for name, value in sample.items() if name in _LABELS)
    label = next((number for number in found if number is not None), None)
    more = {} if label is None else {"label": label}
    for value in sample.values():
        array = _array_of(value)
        if array is not None and (image := _image(array)) is not None:
            return {**image, **more}
    for value in sample.values():
        if isinstance(value, str) and depth < _DEEP:
            return {**_shown(value), **more}
    names = [str(name)[:100] for name in list(sample)[:MAX_VALUES]]
    values = [_plain(value) for value in list(sample.values())[:MAX_VALUES]]
    return {"kind": "row", "names": names, "values": values, **more}


def _array_of(value: Any) -> Any:
    """A tensor, array or PIL image as an array; None for anything else."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        return None if value.dtype.hasobject else value
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # PIL, not imported for it
        return np.asarray(value.convert("L" if len(value.getbands()) == 1 else "RGB"))
    return None


def _image(array: Any) -> Shown | None:
    """Of shape (H, W), (C, H, W) or (H, W, C); None where it is no image."""
    if array.dtype.kind not in "bfiu":
        return None
    if array.ndim == 3:
        if array.shape[0] in _COLOURS:
            array = np.moveaxis(array, 0, -1)
        elif array.shape[2] not in _COLOURS:
            array = array[0]  # of many channels the first
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or min(array.shape[:2]) < MIN_SIDE_PX:
        return None
    every = max(1, math.ceil(max(array.shape[:2]) / MAX_SIDE_PX))
    pixels = _as_bytes(array[::every, ::every])
    url = "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")
    height, width = array.shape[:2]
    return {"kind": "image", "url": url, "width": int(width), "height": int(height)}


def _as_bytes(array: Any) -> Any:
    """Bytes as they are, 0 to 1 as parts of white, all else from its least to its most."""
    if array.dtype == np.uint8:
        return array
    values = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if array.dtype.kind in "iu" and low >= 0 and 1 < high <= 255:
        return values.astype(np.uint8)
    if low < 0 or high > 1:
        values = (values - low) / (high - low if high > low else 1.0)
    return np.round(values * 255).astype(np.uint8)


def png(pixels: Any) -> bytes:
    """An image of 8 bits, of shape (H, W, 1 | 3 | 4), as a file (PNG specification, W3C 2003)."""
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 8, _COLOURS[channels], 0, 0, 0)
    rows = pixels.reshape(height, -1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # no filter
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def _row(array: Any) -> Shown:
    values = [_plain(value) for value in array.reshape(-1)[:MAX_VALUES].tolist()]
    return {"kind": "row", "values": values, "shape": list(array.shape)}


def _number(value: Any) -> float | int | None:
    """A number, also one in a tensor; None where it is none."""
    if isinstance(value, torch.Tensor):
        return _number(value.item()) if value.numel() == 1 else None
    if isinstance(value, np.ndarray | np.generic):
        return _number(value.item()) if value.size == 1 else None
    if isinstance(value, bool | int):
        return int(value)
    return value if isinstance(value, float) and math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """For JSON, within bounds; objects by their class, since their text may be anything."""
    if isinstance(value, str):
        return value if value.startswith("data:image/") else _clipped(value)
    if value is None or isinstance(value, bool | int):
        return value
    number = _number(value)
    if number is not None:
        return number
    if isinstance(value, float):
        return None  # not finite
    array = _array_of(value)
    if array is not None:
        return f"{array.dtype} {list(array.shape)}"
    if isinstance(value, list | tuple):
        return [_plain(each) for each in list(value)[:MAX_VALUES] if not isinstance(each, list)]
    return f"<{type(value).__name__}>"


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"
