"""Wrong specs and what is said of them: `errors/E0212_*.fllm` with the messages beside.

`pytest --update` writes the messages anew; read the difference. Lines `# --set KEY=VALUE` at the
top of a spec are options.
"""

from pathlib import Path

import pytest

from fllmc.frontend import checkpoint_errors, errors, load, section_errors, type_errors
from fllmc.ir.diagnostics import Diagnostic, explanation
from fllmc.ir.render import render

FOLDER = Path(__file__).parent / "errors"
SPECS = sorted(FOLDER.glob("*.fllm"))
BY_OPTION = {"E0256"}
"""Said of a command's option alone, so no spec can show them."""


def options(text: str) -> dict[str, str]:
    """The options in the first lines."""
    lines = [line.removeprefix("# --set ") for line in text.splitlines() if "# --set " in line]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def kinds() -> list[type[Diagnostic]]:
    """All kinds of mistakes that the checker finds."""
    everything = (
        vars(module).values() for module in (errors, type_errors, section_errors, checkpoint_errors)
    )
    found = {each for values in everything for each in values if isinstance(each, type)}
    return sorted(
        (each for each in found if issubclass(each, Diagnostic) and each.code),
        key=lambda each: each.code,
    )


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_messages(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(FOLDER)
    spec, found, sources = load(path.name, options(path.read_text(encoding="utf-8")))
    code = path.stem[:5]
    assert code in {each.code for each in found}
    assert (spec is None) == any(each.severity == "error" for each in found)
    said = render(found, sources)
    golden = path.with_suffix(".err")
    if request.config.getoption("--update"):
        golden.write_text(said, encoding="utf-8")
    assert said == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.code)
def test_every_kind_is_shown_and_explained(kind: type[Diagnostic]) -> None:
    assert len(explanation(kind)) > 30
    assert kind.code in BY_OPTION or any(path.stem.startswith(kind.code) for path in SPECS)


def test_no_code_is_used_twice() -> None:
    codes = [kind.code for kind in kinds()]
    assert len(codes) == len(set(codes))
