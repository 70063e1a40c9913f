"""Diagnostics as one SARIF 2.1.0 document, which code hosts and editors show beside the source.

Columns count Unicode code points from 1, offsets from 0, and ends are exclusive, as in `Span`.
Source: OASIS, Static Analysis Results Interchange Format 2.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from fllmc import __version__
from fllmc.ir.diagnostics import Diagnostic, Edit, Fix, explanation
from fllmc.ir.render import ordered
from fllmc.ir.span import Span

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
KEPT = "fllmc.sarif"


def keep(ctx: click.Context, diagnostics: Sequence[Diagnostic], sources: Mapping[str, str]) -> None:
    """Remember diagnostics until the command ends."""
    from fllmc.frontend.fixes import fixes_of

    kept = ctx.meta.setdefault(KEPT, [])
    for found in ordered(diagnostics):
        kept.append((found, fixes_of(found, sources.get(found.span.file, ""))))


def show_log(ctx: click.Context) -> None:
    """The document of all that was kept, on stderr."""
    kept = ctx.meta.get(KEPT, [])
    click.echo(json.dumps(log(kept), indent=2), err=True)


def log(found: Iterable[tuple[Diagnostic, Sequence[Fix]]]) -> dict[str, Any]:
    """The document: one run, its rules the codes that were found."""
    results = list(found)
    kinds = {each.code: type(each) for each, _ in results}
    codes = sorted(kinds)
    driver = {
        "name": "fllmc",
        "version": __version__,
        "rules": [_rule(kinds[code]) for code in codes],
    }
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_result(each, fixes, codes) for each, fixes in results],
            }
        ],
    }


def _rule(kind: type[Diagnostic]) -> dict[str, Any]:
    from fllmc.cli.catalogue import page_of

    words = explanation(kind)
    return {
        "id": kind.code,
        "name": kind.__name__,
        "shortDescription": {"text": words.partition("\n\n")[0].replace("\n", " ")},
        "fullDescription": {"text": words},
        "help": {"text": words, "markdown": page_of(kind)},
        "defaultConfiguration": {"level": kind.severity},
    }


def _result(found: Diagnostic, fixes: Sequence[Fix], codes: Sequence[str]) -> dict[str, Any]:
    label, ways = found.primary(), (*found.notes(), *found.helps())
    words = "\n".join((found.message() + (f": {label}" if label else ""), *ways))
    result: dict[str, Any] = {
        "ruleId": found.code,
        "ruleIndex": codes.index(found.code),
        "level": found.severity,
        "message": {"text": words},
        "locations": _locations([(found.span, "")]),
    }
    related = _locations([(each.span, each.text) for each in found.secondary()])
    if related:
        result["relatedLocations"] = related
    if fixes:
        result["fixes"] = [_fix(found, fix) for fix in fixes]
    return result


def _locations(places: Iterable[tuple[Span, str]]) -> list[dict[str, Any]]:
    """The places that are in files; a place may have a message of its own."""
    return [
        {
            "physicalLocation": {"artifactLocation": {"uri": _uri(span)}, "region": _region(span)},
            **({"message": {"text": text}} if text else {}),
        }
        for span, text in places
        if span.file and not span.file.startswith("--")
    ]


def _uri(span: Span) -> str:
    path = Path(span.file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def _region(span: Span) -> dict[str, int]:
    return {
        "startLine": max(span.line, 1),
        "startColumn": max(span.column, 1),
        "endLine": max(span.end_line, 1),
        "endColumn": max(span.end_column, 1),
        "charOffset": span.start,
        "charLength": span.end - span.start,
    }


def _fix(found: Diagnostic, fix: Fix) -> dict[str, Any]:
    changes = [_replacement(edit) for edit in fix.edits]
    where = {"uri": _uri(found.span)}
    return {
        "description": {"text": fix.title},
        "artifactChanges": [{"artifactLocation": where, "replacements": changes}],
    }


def _replacement(edit: Edit) -> dict[str, Any]:
    return {"deletedRegion": _region(edit.span), "insertedContent": {"text": edit.text}}
