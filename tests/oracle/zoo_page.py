"""`python -m tests.oracle.zoo_page` measures every model of the zoo and writes `docs/zoo.md`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import tempfile
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Final

from fllmc.frontend import load_spec
from fllmc.frontend.library import on_disk, spec_path
from tests.house.tree import ROOT
from tests.oracle.zoo import TOLERANCES, Report
from tests.oracle.zoo_models import ZOO, Entry

PAGE: Final = ROOT / "docs" / "zoo.md"
TITLE: Final = re.compile(r"# (.+?)(?: \(|:)")
HEAD: Final = """# The zoo

Models that ship, each a page in `specs/models` that trains, imports and exports. A random small
model of each, made by transformers {version}, is imported by the spec's `checkpoint` section; its
logits, its loss and the gradient of every tensor are compared, and what is exported again is loaded
there, every tensor equal bit for bit. The figures are the largest relative errors of logits, loss
and gradients; tests demand less than {f64:.0e} in fp64 and {f32:.0e} in fp32, where the reference
rounds too. Lines are those of the spec, and of the file that defines the model there.

Importing takes sizes from the folder's `config.json`, so one spec serves all sizes of its model.
This page is written by `python -m tests.oracle.zoo_page`.

| model | spec | parameters | lines | theirs | fp64 | fp32 |
| --- | --- | ---: | ---: | ---: | --- | --- |
"""


def facts(lines: Sequence[str], columns: int = 5) -> list[str]:
    """The rows among the lines, as far as they are not measured: up to some column."""
    return ["|".join(line.split("|")[: columns + 1]) for line in lines if line.startswith("| [")]


def rows(measured: Callable[[Entry, str], str]) -> list[str]:
    """A row for each model of the zoo."""
    return [_row(model, [measured(model, dtype) for dtype in TOLERANCES]) for model in ZOO]


def version() -> str:
    """The version of the reference."""
    return importlib.metadata.version("transformers")


def _row(model: Entry, figures: Sequence[str]) -> str:
    """Name, spec, parameters at full size, lines here and there, and the figures."""
    path = on_disk(spec_path(model.spec))
    text = path.read_text(encoding="utf-8")
    named = TITLE.match(text)
    assert named is not None
    spec, _ = load_spec(model.spec)
    sizes = spec.program.sizes
    count = sum(prod(sizes.shape(each.type)) for each in spec.program.parameters)
    cells = (
        f"[{named[1]}](../specs/models/{path.name})",
        f"`{model.spec}`",
        f"{count / 1e9:.2f} B",
        str(len(text.splitlines())),
        str(_their_lines(model)),
        *figures,
    )
    return f"| {' | '.join(cells)} |"


def _their_lines(model: Entry) -> int:
    """The lines of the reference implementation, found without importing it."""
    found = importlib.util.find_spec("transformers")
    assert found is not None and found.submodule_search_locations
    top = Path(found.submodule_search_locations[0])
    path = top / "models" / model.modeling / f"modeling_{model.modeling}.py"
    return len(path.read_text(encoding="utf-8").splitlines())


def _measured(model: Entry, dtype: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        report = model.compared(Path(folder), dtype)
    report.require()
    return _figures(report)


def _figures(report: Report) -> str:
    return ", ".join(f"{each:.0e}" for each in (report.logits, report.loss, report.gradient))


if __name__ == "__main__":
    head = HEAD.format(version=version(), **TOLERANCES)
    PAGE.write_text(head + "\n".join(rows(_measured)) + "\n", encoding="utf-8")
