"""What the script gives as text stays the script's."""

from __future__ import annotations

from otf_core.state.given import given, settle


def test_a_text_without_a_letter_is_one() -> None:
    first = given({"data": {"folder": "/a", "suffix": ""}})
    assert first == {"data": {"folder": "/a", "suffix": ""}}
    settled = settle(first, given({"data": {"folder": "", "suffix": ".png"}}))
    assert settled.text == {("data", "folder"): ("/a", ""), ("data", "suffix"): ("", ".png")}
    assert settled.told_text == [
        "data.folder, which is '' here (it was '/a')",
        "data.suffix, which is '.png' here (it was '')",
    ]
