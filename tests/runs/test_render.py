"""A sample is shown as an image, a text or a row, and nothing that it is makes that raise."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from otf_core.runs.render import MAX_CHARS, MAX_SIDE_PX, MAX_VALUES, render_sample, render_samples
from tests.exact.digest import exact
from tests.runs.scans import Rows, subject


def pixels(shown: dict[str, Any]) -> Any:
    """A PNG read by hand, with every checksum."""
    assert shown["kind"] == "image"
    file = base64.b64decode(shown["url"].removeprefix("data:image/png;base64,"), validate=True)
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    parts, at = {}, 8
    while at < len(file):
        size, kind = struct.unpack(">I4s", file[at : at + 8])
        data = file[at + 8 : at + 8 + size]
        assert struct.unpack(">I", file[at + 8 + size : at + 12 + size]) == (
            zlib.crc32(kind + data),
        )
        parts[kind] = data
        at += 12 + size
    assert list(parts) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3, 6: 4}[colour]
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, channels)


BYTES = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (BYTES, BYTES),
        (torch.from_numpy(BYTES).permute(2, 0, 1), BYTES),
        (BYTES[:, :, 0], BYTES[:, :, :1]),
        (BYTES[None, :, :, 0], BYTES[:, :, :1]),
        (BYTES.astype(np.float32) / 255, BYTES),
        (torch.from_numpy(BYTES).double() / 255, BYTES),
        ((torch.from_numpy(BYTES) / 255).bfloat16()[:, :, :1] * 0, BYTES[:, :, :1] * 0),
        (BYTES.astype(np.int64), BYTES),
        (BYTES > 40, (BYTES > 40) * np.uint8(255)),
        (np.linspace(-3, 3, 25).reshape(5, 5), np.round(np.linspace(0, 255, 25)).reshape(5, 5, 1)),
        (np.full((4, 4), -2.0), np.zeros((4, 4, 1))),
        (np.stack([BYTES[:, :, 0]] * 7), BYTES[:, :, :1]),
        (np.where(BYTES[:, :, 0] == 0, math.nan, 1.0), (BYTES[:, :, :1] != 0) * 255),
    ],
)
def test_an_image_is_a_small_png_of_its_pixels(image: Any, expected: Any) -> None:
    assert np.array_equal(pixels(render_sample(image)), expected)
    assert render_sample((image, torch.tensor(3)))["label"] == 3


def test_a_large_one_is_made_smaller_and_says_its_size() -> None:
    shown = render_sample(torch.rand(3, 1000, 700))
    assert (shown["width"], shown["height"]) == (700, 1000)
    assert pixels(shown).shape == (250, 175, 3)
    assert max(pixels(shown).shape) <= MAX_SIDE_PX


def test_an_image_of_pil_is_one_as_well() -> None:
    image = pytest.importorskip("PIL.Image").fromarray(BYTES)
    assert np.array_equal(pixels(render_sample((image, 1))), BYTES)
    assert pixels(render_sample(image.convert("L"))).shape == (6, 5, 1)


class Odd:
    def __repr__(self) -> str:
        raise KeyError


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        ("hello", {"kind": "text", "text": "hello"}),
        (("hello", 1), {"kind": "text", "text": "hello", "label": 1}),
        ({"text": "hello", "label": 0}, {"kind": "text", "text": "hello", "label": 0}),
        (torch.tensor([1.0, math.nan]), {"kind": "row", "values": [1.0, None], "shape": [2]}),
        (
            (torch.tensor([1, 2]), torch.tensor([0.5])),
            {"kind": "row", "values": [1, 2], "shape": [2], "label": 0.5},
        ),
        ([1, 2.5], {"kind": "row", "values": [1, 2.5], "shape": [2]}),
        (
            {"age": 3, "size": np.float32(0.5), "x": torch.ones(2), "what": Odd()},
            {"kind": "row", "names": ["age", "size", "x", "what"]}
            | {"values": [3, 0.5, "float32 [2]", "<Odd>"]},
        ),
        (Odd(), {"kind": "text", "text": "<Odd>"}),
        ((Odd(), Odd()), {"kind": "text", "text": "<Odd>"}),
        (None, {"kind": "text", "text": "None"}),
        ((), {"kind": "text", "text": "[]"}),
        (3, {"kind": "text", "text": "3"}),
    ],
)
def test_what_is_no_image_is_a_text_or_a_row(sample: Any, shown: Any) -> None:
    assert render_sample(sample) == shown
    json.dumps(render_sample(sample), allow_nan=False)


def test_it_has_bounds() -> None:
    assert len(render_sample("x" * 10**6)["text"]) == MAX_CHARS + 1
    assert len(render_sample(torch.zeros(10**6))["values"]) == MAX_VALUES
    assert len(render_sample([0.5] * 10**6)["values"]) == MAX_VALUES
    assert len(render_sample({n: n for n in range(10**5)})["names"]) == MAX_VALUES
    deep: Any = torch.zeros(3)
    for _ in range(10_000):
        deep = [deep, "x"]
    assert len(json.dumps(render_sample(deep))) < 10_000


def test_the_hook_of_the_module_goes_first() -> None:
    own = {"kind": "row", "values": [torch.tensor(1.5), math.inf], "colour": "red"}
    assert render_sample(3, lambda _: own) == {
        "kind": "row",
        "values": [1.5, None],
        "colour": "red",
    }
    assert render_sample((1, 2), lambda s: f"{s[1]}") == {"kind": "text", "text": "2"}
    assert pixels(render_sample(3, lambda _: BYTES)).shape == (6, 5, 3)


def test_a_hook_or_a_data_set_that_raises_is_told_and_raises_nothing() -> None:
    def hook(sample: Any) -> Any:
        raise KeyError("mine")

    shown = render_sample(3, hook)
    assert shown == {"kind": "text", "text": "", "reason": "KeyError: 'mine'"}

    class Raises(Rows):
        def __getitem__(self, index: int) -> Any:
            if index == 2:
                raise OSError("no file")
            return super().__getitem__(index)

    found = render_samples(subject(dataset=Raises()), [1, 2, 3])
    assert [(row["id"], row.get("reason")) for row in found] == [
        (1, None), (2, "OSError: no file"), (3, None)
    ]  # fmt: skip


def test_it_leaves_no_trace_on_generators_and_data_set() -> None:
    class Draws(Rows):
        reads = 0

        def __getitem__(self, index: int) -> Any:
            self.reads += 1
            x, y = super().__getitem__(index)
            return x + torch.rand(()), y

    def hook(sample: Any) -> Any:
        torch.rand(3)
        return sample

    made = subject(dataset=Draws(), render=hook)
    before = exact(torch.get_rng_state())
    one = render_samples(made, [4, 7])
    assert render_samples(made, [7])[0] == one[1]
    assert exact(torch.get_rng_state()) == before
    assert "reads" not in vars(made.dataset)
