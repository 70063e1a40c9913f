"""What is wrong with a foreign `config.json` beside a spec. Codes E0747 to E0749, W0707, W0708."""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic


class ConfigMissing(Diagnostic, frozen=True):
    """A spec takes a dim's size from a key that the configuration lacks.

    A dim that the spec computes from others, such as `head_dim = embed / heads`, needs no key.
    """

    code: ClassVar[str] = "E0747"
    title: ClassVar[str] = "the configuration has no `{key}`, from which dim `{dim}` has its size"
    label: ClassVar[str] = "wanted here"
    help: ClassVar[tuple[str, ...]] = ("give it with `--set dims.{dim}=SIZE`",)

    key: str
    dim: str


class ConfigDiffers(Diagnostic, frozen=True):
    """The configuration says what this spec is not: another activation, another constant.

    The imported model would compute other numbers.
    """

    code: ClassVar[str] = "E0748"
    title: ClassVar[str] = "`{key}` is {found} in the configuration, and the spec is for {wanted}"
    label: ClassVar[str] = "{wanted} wanted"

    key: str
    found: str
    wanted: str


class ConfigNotSize(Diagnostic, frozen=True):
    """A key that gives a dim its size must hold a whole number above zero."""

    code: ClassVar[str] = "E0749"
    title: ClassVar[str] = "`{key}` is {found} in the configuration, which is no size of `{dim}`"
    label: ClassVar[str] = "wanted here"

    key: str
    found: str
    dim: str


class ConfigUnread(Diagnostic, frozen=True):
    """The configuration has keys that the spec says nothing of.

    If one of them changes what the model computes, the spec should require its value.
    """

    code: ClassVar[str] = "W0707"
    severity = "warning"
    title: ClassVar[str] = "{count} key(s) of the configuration are not read: {keys}"

    count: int
    keys: str


class ConfigUnsaid(Diagnostic, frozen=True):
    """The spec requires values that the configuration does not state.

    They are taken to be as the spec says, which is right where they are the format's defaults.
    """

    code: ClassVar[str] = "W0708"
    severity = "warning"
    title: ClassVar[str] = "the configuration does not state {keys}: taken as the spec says"

    keys: str
