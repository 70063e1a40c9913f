"""A lexer for Pygments, which finds it by the entry point `pygments.lexers`."""

from __future__ import annotations

import re
from typing import ClassVar

from pygments.lexer import RegexLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

from fllmc.editor.words import inner_word, item_word, section_word, whole_word, words

PUNCTUATION = "()[]{},:."
"""Signs that set apart; all others are operators."""

_WORDS = words()


class FllmLexer(RegexLexer):
    """Colours `.fllm` files."""

    name = "fllm"
    aliases = ("fllm",)
    filenames = ("*.fllm",)
    flags = re.MULTILINE

    tokens: ClassVar[dict[str, list[tuple[str, object]]]] = {
        "root": [
            (r"[\s\ufeff]+", Text),
            (_WORDS.comment, Comment.Single),
            (_WORDS.string, String.Double),
            (section_word(_WORDS), Keyword.Declaration),
            (item_word(_WORDS), Keyword),
            (inner_word(_WORDS), Keyword),
            (whole_word(_WORDS.truths), Keyword.Constant),
            (whole_word(_WORDS.functions) + r"(?=[\[(])", Name.Builtin),
            (_WORDS.number, Number),
            (_WORDS.name, Name),
            ("|".join(re.escape(s) for s in _WORDS.signs if s not in PUNCTUATION), Operator),
            (f"[{re.escape(PUNCTUATION)}]", Punctuation),
        ]
    }
