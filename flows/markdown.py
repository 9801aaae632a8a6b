"""Words of others in Markdown, as they are."""

from __future__ import annotations

import re

SPEAKING = re.compile(r"[\\`*_\[\]<>!#~&@]")
"""What means something in Markdown, anywhere in a line."""
ADDRESS = re.compile(r"(\w)(:(?=//)|(?<=www)\.)", re.IGNORECASE)
"""What makes a link of an address that stands there bare."""


def plain(text: str) -> str:
    """Text of others on one line, as it is: no bar ends a cell of a table, and nothing becomes a picture, a link or HTML."""
    words = SPEAKING.sub(r"\\\g<0>", " ".join(text.replace("|", "¦").split()))
    return ADDRESS.sub(r"\g<1>\\\g<2>", words)
