"""What a client calls a slice is printed in the UI as it is, and does nothing there."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from everfresh.flows.markdown import plain

HOSTILE = [
    "![x](https://evil.example/x.png)", "[click](https://evil.example)", "<img src=x onerror=alert(1)>", "<https://evil.example>",
    "https://evil.example", "see www.evil.example", "a@evil.example", "&lt;b&gt;", "`code`", "**bold** and _thin_", "# head",
    r"\![x](y)", "a\n\n# b", "~~gone~~",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_is_shown_as_it_is(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"| a |\n|---|\n| {plain(text)} |")
    [inline] = [token for token in tokens if token.type == "inline" and token.content != "a"]
    assert inline.children is not None
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children) == " ".join(text.split())


@pytest.mark.parametrize("text", ["https://evil.example", "see WWW.evil.example", "a@evil.example"])
def test_a_bare_address_becomes_no_link(text: str) -> None:
    assert text not in plain(text)


def test_a_bar_ends_noplain() -> None:
    assert plain("a | b") == "a ¦ b"
