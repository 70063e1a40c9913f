"""Where imports lead, what they bring, and the specs that ship."""

from pathlib import Path

import pytest

from fllmc.frontend import check, load, load_spec
from fllmc.frontend.format import format_source
from fllmc.frontend.library import SPECS, on_disk, read_all, shipped, spec_path
from fllmc.frontend.targets import load_target
from fllmc.ir.diagnostics import DiagnosticError

EVERY = sorted(SPECS.rglob("*.fllm"))
RUNS = (*shipped("models"), *shipped("recipes"))


def text(dims: str = "", imports: str = "") -> str:
    return f"fllm 1\n{imports}\ndims {{ {dims} }}\n"


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_shipped_files_are_right_and_formatted(path: Path) -> None:
    assert check(str(path)).found == ()
    written = path.read_text(encoding="utf-8")
    assert format_source(written) == written


@pytest.mark.parametrize("name", RUNS)
def test_shipped_runs_load_by_name(name: str) -> None:
    spec, warnings = load_spec(name)
    assert warnings == ()
    assert spec.name == name
    assert spec.data.folder == ""


@pytest.mark.parametrize("name", shipped("targets"))
def test_shipped_targets_load(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.memory_bytes > 2**30


@pytest.mark.parametrize("name", ["h1000", "nowhere.fllm", "library"])
def test_targets_that_are_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiagnosticError):
        load_target(name)


def test_a_target_file_holds_one_target(tmp_path: Path) -> None:
    path = tmp_path / "two.fllm"
    path.write_text("fllm 1\ntarget a {}\ntarget b {}\n")
    with pytest.raises(DiagnosticError, match="E0256"):
        load_target(str(path))
    path.write_text("fllm 1\ntarget a { memory_gib: 0 memory_gb: 3 }\n")
    with pytest.raises(DiagnosticError) as caught:
        load_target(str(path))
    assert {found.code for found in caught.value.diagnostics} == {"E0241", "E0242", "E0253"}


def test_a_path_leads_beside_the_importing_file_first(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "transformer.fllm").write_text(text("own = 3"))
    main = tmp_path / "main.fllm"
    main.write_text(text(imports='import "library/transformer.fllm" ()'.replace("()", "(x)")))
    library = read_all(str(main))
    assert set(library.modules[library.main].dims) == {"own"}


def test_a_path_leads_to_shipped_specs_else(tmp_path: Path) -> None:
    main = tmp_path / "main.fllm"
    main.write_text(text(imports='import "library/transformer.fllm" (layer)'))
    library = read_all(str(main))
    assert library.found == ()
    assert list(library.modules) == ["fllmc/specs/library/transformer.fllm", str(main)]


def test_own_sizes_go_before_imported_ones() -> None:
    imports = 'import "models/llama3_8b.fllm" (llama3_8b)'
    train = "train t: llama3_8b { data: d loss: cross_entropy() optimizer: sgd() rate: r steps: 1 }"
    rest = f'data d {{ source: "x" batch: 1 seq: 2 }}\nrate r() {{ return 1 }}\n{train}'
    spec, found, _ = load("a.fllm", text=text("embed = 64 vocab = 300", imports) + rest)
    assert spec is not None, found
    sizes = spec.program.sizes.dims
    assert (sizes["embed"], sizes["heads"], sizes["head_dim"]) == (64, 32, 2)
    assert [function.name for function in spec.program.functions].count("layer") == 1


def test_files_are_named_as_given() -> None:
    assert spec_path("gpt2") == "fllmc/specs/models/gpt2.fllm"
    assert spec_path("lora") == "fllmc/specs/recipes/lora.fllm"
    assert spec_path("./gpt2.fllm") == "./gpt2.fllm"
    assert on_disk("fllmc/specs/models/gpt2.fllm").is_file()


@pytest.mark.parametrize("path", ["no/such.fllm", "llama3_8bb", "a\0b.fllm", "."])
def test_what_cannot_be_read_is_said(path: str) -> None:
    spec, found, sources = load(path)
    assert spec is None and not sources
    assert [each.code for each in found] == ["E0113"]


def test_a_near_name_is_offered() -> None:
    _, found, _ = load("llama3_8bb")
    assert found[0].helps() == ("did you mean `llama3_8b`?",)
