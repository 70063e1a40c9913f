"""The TextMate grammar, `docs/editor/fllm.tmLanguage.json`, for editors that colour by one.

`python -m fllmc.editor.textmate FILE` writes it anew; a test compares the two.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fllmc.editor.words import inner_word, item_word, section_word, whole_word, words


def grammar() -> dict[str, Any]:
    """The grammar as data; scopes are TextMate's conventional ones."""
    known = words()
    signs = "|".join(re.escape(sign) for sign in known.signs)
    rules = [
        ("comment.line.number-sign", known.comment),
        ("string.quoted.double", known.string),
        ("keyword.declaration", section_word(known)),
        ("keyword.control", item_word(known)),
        ("keyword.other", inner_word(known)),
        ("constant.language", whole_word(known.truths)),
        ("support.function", whole_word(known.functions) + r"(?=[\[(])"),
        ("constant.numeric", rf"\b{known.number}"),
        ("variable.other", known.name),
        ("keyword.operator", signs),
    ]
    return {
        "name": "fllm",
        "scopeName": "source.fllm",
        "fileTypes": ["fllm"],
        "patterns": [{"name": f"{scope}.fllm", "match": match} for scope, match in rules],
    }


def encoded() -> str:
    """The text of the file."""
    return json.dumps(grammar(), indent=2) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(encoded(), encoding="utf-8")
