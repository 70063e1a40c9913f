"""Codes of diagnostics are given once: two kinds of one code would share a page."""

from fllmc.cli.catalogue import every_code


def test_no_code_is_used_twice() -> None:
    assert all(code == kind.code for code, kind in every_code().items())
