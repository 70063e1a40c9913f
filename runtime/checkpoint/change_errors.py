"""What reading a checkpoint for another plan changes, in words. Codes W0702 to W0706."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic


class ParametersConverted(Diagnostic, frozen=True):
    """The plan stores parameters in another floating-point dtype than the checkpoint.

    A frozen parameter is stored in the compute dtype, a trained one in that of `params`. To a
    narrower dtype values are rounded to the nearest, so freezing and thawing is not exact.
    """

    code = "W0702"
    severity = "warning"
    title = "{count} parameter(s) of `{checkpoint}` are converted: {kinds}"

    checkpoint: str
    count: int
    kinds: str


class StatesBegun(Diagnostic, frozen=True):
    """The plan trains parameters that were frozen when the checkpoint was written.

    Their optimizer's states begin at their initial values. The step's number goes on, so where
    the optimizer corrects for a beginning at zero, it does not do so for these.
    """

    code = "W0703"
    severity = "warning"
    title = "{count} optimizer state(s) that `{checkpoint}` lacks begin anew, such as `{example}`"

    checkpoint: str
    count: int
    example: str


class StatesDropped(Diagnostic, frozen=True):
    """The checkpoint has optimizer states of parameters that are frozen in this plan.

    They are not read, and the next checkpoint is without them.
    """

    code = "W0704"
    severity = "warning"
    title = "{count} optimizer state(s) of `{checkpoint}` are dropped, such as `{example}`"

    checkpoint: str
    count: int
    example: str


class ParametersQuantized(Diagnostic, frozen=True):
    """The plan stores parameters in few bits that the checkpoint holds in full.

    They are rounded to codes with a scale for each block, which changes the loss a little.
    """

    code = "W0705"
    severity = "warning"
    title = "{count} parameter(s) of `{checkpoint}` are quantised, such as `{example}`"

    checkpoint: str
    count: int
    example: str


class ParametersDequantized(Diagnostic, frozen=True):
    """The plan stores parameters in full that the checkpoint holds in few bits.

    They are what their codes stand for; what rounding took from them before is lost.
    """

    code = "W0706"
    severity = "warning"
    title = "{count} quantised parameter(s) of `{checkpoint}` are restored, such as `{example}`"

    checkpoint: str
    count: int
    example: str
