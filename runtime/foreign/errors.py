"""What is wrong with a folder in a foreign format, in words. Codes E0740 to E0746, E0750."""

from __future__ import annotations

from fllmc.ir.diagnostics import Diagnostic, did_you_mean


class NoTensors(Diagnostic, frozen=True):
    """A folder to import holds `model.safetensors`, or shards and `model.safetensors.index.json`.

    Files that need unpickling, such as `pytorch_model.bin`, can run code when they are read, and
    are never opened.
    """

    code = "E0740"
    title = "`{folder}` has no safetensors file{reason}"
    help = ("save the model with `save_pretrained(FOLDER)`, which writes safetensors",)

    folder: str
    reason: str


class BadIndex(Diagnostic, frozen=True):
    """A JSON file of the folder is unreadable, or names what is not there."""

    code = "E0741"
    title = "`{file}`: {reason}"

    file: str
    reason: str


class BadTensorFile(Diagnostic, frozen=True):
    """A safetensors file is cut short, or its header is damaged."""

    code = "E0742"
    title = "`{file}` is damaged: {reason}"
    note = ("it should hold {tensors}",)

    file: str
    reason: str
    tensors: str


class ForeignMissing(Diagnostic, frozen=True):
    """The spec's `checkpoint` section names a tensor that the folder has not."""

    code = "E0743"
    title = "`{folder}` has no tensor `{tensor}`, which holds `{parameter}`"

    folder: str
    tensor: str
    parameter: str
    candidates: tuple[str, ...] = ()

    def helps(self) -> tuple[str, ...]:
        """The nearest name among those that the section does not know."""
        return did_you_mean(self.tensor, self.candidates)


class ForeignExtra(Diagnostic, frozen=True):
    """The folder has a tensor that the spec's `checkpoint` section does not know.

    It would be lost. One that may be is named by `ignore "NAME"` in the section.
    """

    code = "E0744"
    title = "`{file}` has a tensor `{tensor}` that checkpoint `{section}` does not know"

    file: str
    tensor: str
    section: str


class ForeignTwice(Diagnostic, frozen=True):
    """A tensor stands in two files, or twice in one; which of them counts is nowhere said."""

    code = "E0745"
    title = "the tensor `{tensor}` stands in {places}"

    tensor: str
    places: str


class ForeignDiffers(Diagnostic, frozen=True):
    """A tensor's shape must be that of the spec, and its dtype a floating-point one."""

    code = "E0746"
    title = "`{file}`: `{tensor}` is `{found}`, and should be {wanted}"
    note = ("it holds {parameters}",)

    file: str
    tensor: str
    found: str
    wanted: str
    parameters: str


class TiedDiffer(Diagnostic, frozen=True):
    """Two names of one parameter are both in the folder, with different values."""

    code = "E0750"
    title = "`{first}` and `{second}` are one parameter of the spec, and differ in the folder"
    note = ("they stand in `{file}` and `{other}`",)

    first: str
    second: str
    file: str
    other: str


class NoForeignNames(Diagnostic, frozen=True):
    """A folder in a foreign format is read and written by the model's `checkpoint` section."""

    code = "E0751"
    title = "{what} has no `checkpoint` section, so nothing says what its foreign names are"
    help = ("add `checkpoint NAME for MODEL {{ ... }}`",)

    what: str


class FolderInUse(Diagnostic, frozen=True):
    """What is imported or exported goes to a folder of its own."""

    code = "E0752"
    title = "`{folder}` is not empty"
    help = ("name a new folder",)

    folder: str


class RoundTrip(Diagnostic, frozen=True):
    """A tensor that was written back differs from what was read: a fault of the mapping."""

    code = "E0753"
    title = "`{tensor}` does not come back as it was: {reason}"

    tensor: str
    reason: str
