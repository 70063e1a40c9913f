"""Diagnostics for programs: JSON a line, SARIF, and fixes applied by `fllmc fix`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import document, run

SPEC = """fllm 1

dims {
  batch
  embed = 16
}

block b(x: [batch, embed]) -> [batch, embed] {
  # × is a character of one column
  h = silu(x)
  return hh + sum[ebmed](x)
}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("a b.fllm").write_text(SPEC, encoding="utf-8")
    return "a b.fllm"


def test_json_is_one_diagnostic_a_line_and_nothing_else(spec: str) -> None:
    done = run("check", spec, "--format", "json")
    assert done.exit_code == 1 and done.stdout == ""
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [each["code"] for each in told] == ["E0205", "E0206"]
    first = told[0]
    keys = "code severity message span label labels notes helps fixes"
    assert list(first) == keys.split()
    place = first["span"]
    assert SPEC[place["start"] : place["end"]] == "hh"
    assert (place["line"], place["column"], place["end_column"]) == (11, 10, 12)
    assert first["fixes"][0]["edits"] == [{"span": place, "text": "h"}]


def test_the_json_document_has_the_same_diagnostics(spec: str) -> None:
    done = run("check", spec, "--json")
    (told,) = json.loads(done.stdout)["specs"]
    lines = [
        json.loads(line) for line in run("check", spec, "--format", "json").stderr.split("\n")[:-1]
    ]
    assert told["diagnostics"] == lines and told["ok"] is False


STRING, NUMBER = str, int
REGION = {
    "startLine": NUMBER,
    "startColumn": NUMBER,
    "endLine": NUMBER,
    "endColumn": NUMBER,
    "charOffset": NUMBER,
    "charLength": NUMBER,
}
MESSAGE = {"text": STRING}
PLACE = {"uri": STRING}
LOCATION = {
    "physicalLocation": {"artifactLocation": PLACE, "region": REGION},
    "message?": MESSAGE,
}
CHANGE = {
    "artifactLocation": PLACE,
    "replacements": [{"deletedRegion": REGION, "insertedContent": MESSAGE}],
}
RESULT = {
    "ruleId": STRING,
    "ruleIndex": NUMBER,
    "level": STRING,
    "message": MESSAGE,
    "locations": [LOCATION],
    "relatedLocations?": [LOCATION],
    "fixes?": [{"description": MESSAGE, "artifactChanges": [CHANGE]}],
}
RULE = {
    "id": STRING,
    "name": STRING,
    "shortDescription": MESSAGE,
    "fullDescription": MESSAGE,
    "help": {"text": STRING, "markdown": STRING},
    "defaultConfiguration": {"level": STRING},
}
RUN = {
    "tool": {"driver": {"name": STRING, "version": STRING, "rules": [RULE]}},
    "columnKind": STRING,
    "results": [RESULT],
}
LOG = {"$schema": STRING, "version": STRING, "runs": [RUN]}
"""The part of the schema of SARIF 2.1.0 that is used: names, and which may be left out."""


def departures(value: Any, shape: Any, where: str = "log") -> list[str]:
    """Where a value is not of a shape."""
    if isinstance(shape, type):
        return [] if type(value) is shape else [f"{where}: {value!r} is no {shape.__name__}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        parts = [departures(each, shape[0], f"{where}[{i}]") for i, each in enumerate(value)]
        return [line for part in parts for line in part]
    known = {name.rstrip("?"): inner for name, inner in shape.items()}
    needed = {name for name in shape if not name.endswith("?")}
    found = [f"{where}.{name} is missing" for name in sorted(needed - set(value))]
    found += [f"{where}.{name} is unknown" for name in sorted(set(value) - set(known))]
    for name in sorted(set(value) & set(known)):
        found += departures(value[name], known[name], f"{where}.{name}")
    return found


def test_sarif_is_one_document_of_the_schemas_shape(spec: str) -> None:
    done = run("check", spec, "tiny_llama", "--format", "sarif")
    assert done.exit_code == 1
    log = json.loads(done.stderr)
    assert departures(log, LOG) == []
    assert log["version"] == "2.1.0"
    (told,) = log["runs"]
    rules = [rule["id"] for rule in told["tool"]["driver"]["rules"]]
    assert rules == ["E0205", "E0206"] and told["columnKind"] == "unicodeCodePoints"
    for result in told["results"]:
        assert result["level"] in ("error", "warning", "note", "none")
        assert rules[result["ruleIndex"]] == result["ruleId"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "a%20b.fllm"
        region = place["physicalLocation"]["region"]
        line = SPEC.splitlines()[region["startLine"] - 1]
        start = region["charOffset"]
        assert (
            line[region["startColumn"] - 1 : region["endColumn"] - 1]
            == (SPEC[start : start + region["charLength"]])
        )


def test_sarif_of_a_good_spec_and_of_compile() -> None:
    assert (
        json.loads(run("check", "tiny_llama", "--format", "sarif").stderr)["runs"][0]["results"]
        == []
    )
    done = run("compile", "tiny_llama", "--mesh", "3x1", "-n", "--format", "sarif")
    assert done.exit_code == 3
    log = json.loads(done.stderr)
    assert departures(log, LOG) == []
    assert {each["ruleId"] for each in log["runs"][0]["results"]} == {"E0310"}


def test_a_shape_is_really_checked() -> None:
    assert departures({"text": 1}, MESSAGE) == ["log.text: 1 is no str"]
    assert departures({"txt": ""}, MESSAGE) == ["log.text is missing", "log.txt is unknown"]


def test_fix_writes_what_holds_and_says_it(spec: str) -> None:
    done = run("fix", spec, "--diff")
    assert "+  return h + sum[embed](x)" in done.stdout and done.exit_code == 0
    assert Path(spec).read_text(encoding="utf-8") == SPEC
    done = run("fix", spec)
    assert done.exit_code == 0
    assert "a b.fllm:11:10: E0205: write `h` instead of `hh`" in done.stderr
    assert "2 fixed, no errors left" in done.stderr
    assert Path(spec).read_text(encoding="utf-8") == SPEC.replace("hh", "h").replace("ebm", "emb")
    assert run("check", spec).exit_code == 0


def test_fix_reports_what_is_left(spec: str) -> None:
    Path(spec).write_text(SPEC.replace("hh + sum[ebmed](x)", "unheard_of"), encoding="utf-8")
    done = run("fix", spec)
    assert done.exit_code == 1
    assert "error[E0205]" in done.stderr and "0 fixed, 1 error left" in done.stderr


def test_machine_forms_hold_no_progress() -> None:
    done = run("compile", "tiny_llama", "-n", "--format", "json")
    assert done.exit_code == 0 and done.stderr == ""
    assert document("compile", "tiny_llama", "-n", "--json", "--format", "json")["fits"]
