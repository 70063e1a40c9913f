"""The folders stand at the top and are imported through the door's links."""

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import DOOR, FOLDERS, PACKAGES, ROOT, files_of_tests, product_files, short

NAMELESS = {"utils", "util", "helpers", "helper", "common", "core", "misc"}


def holds_product(folder: Path) -> bool:
    return any(folder.glob("__init__.py")) or any(folder.rglob("*.fllm"))


def test_links_are_exactly_the_folders() -> None:
    links = {p.name: p.readlink().as_posix() for p in DOOR.iterdir() if p.is_symlink()}
    assert links == {name: f"../../{name}" for name in FOLDERS}


def test_every_product_folder_is_behind_the_door() -> None:
    outside = {"src", "tests", "docs", "bench", "build", "dist", "runs"}
    found = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert {name for name in found - outside if holds_product(ROOT / name)} == set(FOLDERS)


def test_the_installed_package_is_this_tree() -> None:
    for name in PACKAGES:
        module = importlib.import_module(f"fllmc.{name}")
        assert module.__file__ is not None
        assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def test_specs_hold_only_specs() -> None:
    others = [p for p in (ROOT / "specs").rglob("*") if p.is_file() and p.suffix != ".fllm"]
    assert [short(p) for p in others] == []


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__ is left out of the wheel and unseen by the import contracts."""
    folders = {p.parent for p in product_files() if short(p).split("/")[0] in (*PACKAGES, "src")}
    assert [short(p) for p in sorted(folders) if not (p / "__init__.py").is_file()] == []


def test_files_are_named_after_what_they_hold() -> None:
    named = {p for p in product_files() + files_of_tests() if NAMELESS & set(_words(p))}
    assert [short(p) for p in sorted(named)] == []


def _words(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.long
def test_wheel_holds_every_file_of_the_product(tmp_path: Path) -> None:
    """Built from a copy, so that no leftover of an earlier build gets in."""
    copy = tmp_path / "copy"
    beside = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=beside)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(pip, cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("fllmc/")}
    tops = [copy / top for top in (*FOLDERS, "src/fllmc")]
    files = {p.resolve() for top in tops for p in top.rglob("*") if p.is_file()}
    wanted = {p.relative_to(copy).as_posix().removeprefix("src/fllmc/") for p in files}
    assert held == {f"fllmc/{name}" for name in wanted}
