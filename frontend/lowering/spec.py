"""A checked spec to the `Spec` of one run: sections chosen and read, dims sized, model lowered."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from msgspec import structs

from fllmc.frontend import ast
from fllmc.frontend.checking import Checked
from fllmc.frontend.errors import NoSize, UnknownBlock
from fllmc.frontend.library import SHIPPED, Bound, Group, Module
from fllmc.frontend.lowering.foreign import lower_names
from fllmc.frontend.lowering.groups import grouped
from fllmc.frontend.lowering.losses import loss_fit, losses_of
from fllmc.frontend.lowering.model import Model, lower_model
from fllmc.frontend.lowering.sizing import Sized, check_fit, sized
from fllmc.frontend.section_errors import Ambiguous, MissingKey, NothingToTrain, UnknownSection
from fllmc.frontend.sections import stages
from fllmc.frontend.sections.data import DataSection, read_data
from fllmc.frontend.sections.overrides import FILE, Overrides
from fllmc.frontend.sections.schedule import read_adapter, read_mesh, read_schedule
from fllmc.frontend.sections.selectors import Paths, paths_of, selector_text
from fllmc.frontend.sections.train import TrainSection, counts_tokens, read_train
from fllmc.frontend.semantics.typed import Key
from fllmc.frontend.semantics.typed_rules import Rule
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.foreign import Foreign
from fllmc.ir.program import DimSize, Program, layers_dim
from fllmc.ir.settings import Adapter, Data, Schedule, Shard, Spec
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Mesh

OPTIMIZERS = f"{SHIPPED}library/optimizers.fllm"
RATES = f"{SHIPPED}library/rates.fllm"
SCHEDULES = f"{SHIPPED}library/schedules.fllm"
LOSSES = f"{SHIPPED}library/losses.fllm"
REASON = "the checkpoint's names need one"


class Lowering:
    """Lowers one spec. A mistake that leaves nothing to go on with is raised."""

    def __init__(
        self, checked: Checked, overrides: Overrides, part: stages.Part | None = None
    ) -> None:
        self.part = part
        self.checked = checked
        self.module: Module = checked.module
        self.overrides = overrides
        self.found: list[Diagnostic] = list(overrides.found)
        self.sizes: Sized
        self.choices: TrainSection

    def run(self) -> Spec:
        """The spec; its mistakes are in `found`."""
        train_node = self.train_node()
        losses = losses_of(self.module, self.checked.library.modules[LOSSES])
        known = {name: dict(self.checked.blocks[key].numbers) for name, key in losses.items()}
        rules = self.rules("optimizer"), self.rules("rate")
        train, found = read_train(train_node, *rules, losses=known)
        self.found += found
        model_key, adapter_node = self.subject(train_node)
        data = self.data(train, train_node)
        self.stop()
        block = self.checked.blocks[model_key]
        self.found += check_fit(block, train_node)
        table = sized(self.checked, self.module, model_key, data, self.overrides)
        self.found += table.found
        self.stop()
        if counts_tokens(train_node):
            whole = self.whole_data(data.data, table)
            each = whole.batch * whole.seq
            train, _ = read_train(train_node, *rules, each, known)
        self.sizes, self.choices = table, train
        wish = train.train.loss
        chosen = losses.get(wish.kind) if wish.kind != "cross_entropy" else None
        if chosen:
            self.found += loss_fit(
                self.checked.blocks, model_key, chosen, train_node, table.sizes, data.data.columns
            )
            self.stop()
        model = lower_model(
            model_key,
            self.checked.blocks,
            table.sizes,
            table.table,
            train.train.precision,
            (chosen, dict(wish.numbers)) if chosen else None,
        )
        program = self.program(model, table, train)
        paths = paths_of(program)
        program, found = grouped(self.decayed(program, paths, train), paths, train)
        self.found += found
        schedule, mesh = self.schedule(train, program, paths)
        adapter = self.adapter(adapter_node, paths)
        foreign = self.foreign(model_key, table)
        self.stop()
        init = self.beside(train.train.init)
        settings = structs.replace(train.train, model=model_key.name, init=init)
        sources = self.sources()
        name = self.module.file.rsplit("/", 1)[-1].removesuffix(".fllm")
        whole = self.whole_data(data.data, table)
        return Spec(name, program, whole, settings, schedule, mesh, adapter, sources, foreign)

    def train_node(self) -> ast.Train:
        """The `train` section, with what this part of the run changes."""
        node = self.overrides.applied("train", self.chosen_train())
        own = self.part.under(stages.OF_TRAIN) if self.part else ()
        return structs.replace(node, fields=stages.with_fields(node.fields, own))

    def parts(self) -> tuple[tuple[stages.Part, ...], list[Diagnostic]]:
        """The parts of a run in stages; none where it has no stages."""
        parts, found = stages.parts_of(self.chosen_train())
        return parts, list(found)

    def stop(self) -> None:
        """Give up if an error was found."""
        if any(found.severity == "error" for found in self.found):
            raise DiagnosticError()

    def sources(self) -> tuple[tuple[str, str], ...]:
        """All text that the spec was made from, by file."""
        extra = ((FILE, self.overrides.text),) if self.overrides.text else ()
        return (*self.checked.library.sources.items(), *extra)

    def beside(self, init: str) -> str:
        """A path of the spec as one from where the command runs; one of `--set` is that already."""
        shipped = self.module.file.startswith(SHIPPED)
        if not init or shipped or self.overrides.sets("train", "init"):
            return init
        return posixpath.join(posixpath.dirname(self.module.file), init)

    # Choosing sections.

    def chosen_train(self) -> ast.Train:
        """The `train` section that was asked for, or the only one."""
        own = [s for s in self.module.own("train") if isinstance(s, ast.Train)]
        if not own:
            raise DiagnosticError(NothingToTrain(NOWHERE, self.module.file))
        name = self.overrides.choice("train")
        if name is None and len(own) > 1:
            raise DiagnosticError(_ambiguous("train", [each.name for each in own]))
        if name is None:
            return own[0]
        for section in own:
            if section.name.text == name.text:
                return section
        known = tuple(section.name.text for section in own)
        raise DiagnosticError(UnknownSection(name.span, name.text, known, "train section"))

    def find(self, group: Group, name: ast.Name) -> Bound:
        """The section of that name."""
        bound = self.module.find(group, name.text)
        if bound is None:
            known = self.module.known(group)
            what = f"{group} section" if group in ("data", "train") else group
            raise DiagnosticError(UnknownSection(name.span, name.text, known, what))
        return bound

    def rules(self, group: Group) -> dict[str, Rule]:
        """The optimizers or rates that the file may use; its own before those that ship."""
        library = self.checked.library.modules[OPTIMIZERS if group == "optimizer" else RATES]
        found: dict[str, Rule] = {}
        for module in (self.module, library):
            for name in module.known(group):
                bound = module.find(group, name)
                if bound:
                    found.setdefault(name, self.checked.rules[Key(bound.file, name)])
        return found

    def subject(self, train: ast.Train) -> tuple[Key, Bound | None]:
        """The model that is trained, and the adapter on it, if any."""
        bound = self.module.find("block", train.subject.text)
        adapter = None
        name = train.subject
        if bound and isinstance(bound.section, ast.Adapter):
            adapter, name = bound, bound.section.model
            bound = self.checked.library.modules[bound.file].find("block", name.text)
        if not bound or not isinstance(bound.section, ast.Block) or bound.section.kind != "model":
            known = tuple(text for text in self.module.known("block") if self.is_subject(text))
            remark = f"`{name.text}` is a block; only a `model` can be trained" if bound else ""
            raise DiagnosticError(UnknownBlock(name.span, name.text, known, "model", remark))
        return Key(bound.file, bound.section.name.text), adapter

    def is_subject(self, name: str) -> bool:
        """Whether the name is a model's or an adapter's."""
        bound = self.module.find("block", name)
        section = bound.section if bound else None
        return isinstance(section, ast.Adapter) or getattr(section, "kind", "") == "model"

    # Reading sections.

    def data(self, train: TrainSection, node: ast.Train) -> DataSection:
        """The data section that the run uses."""
        name = self.overrides.choice("data") or train.data
        if name is None:
            known = self.module.known("data")
            if len(known) != 1:
                example = known[0] if known else "NAME"
                what = f"train `{node.name.text}`"
                raise DiagnosticError(MissingKey(node.name.span, what, "data", example))
            name = ast.Name(node.name.span, known[0])
        bound = self.find("data", name)
        assert isinstance(bound.section, ast.Data)
        section = self.overrides.applied("data", bound.section)
        own = self.part.under(stages.OF_DATA) if self.part else ()
        section = structs.replace(section, fields=stages.with_fields(section.fields, own))
        # A source from the command line is where the command runs, not where the spec is.
        beside = "" if self.overrides.sets("data", "source") else bound.file
        data, found = read_data(section, beside, self.data_sections())
        self.found += found
        return data

    def data_sections(self) -> dict[str, tuple[ast.Data, str]]:
        """The data sections of the file and those that it imports, with their files."""
        found: dict[str, tuple[ast.Data, str]] = {}
        for name in self.module.known("data"):
            bound = self.module.find("data", name)
            if bound and isinstance(bound.section, ast.Data):
                found[name] = bound.section, bound.file
        return found

    def whole_data(self, data: Data, table: Sized) -> Data:
        """The data settings with what the dims say."""
        dims = table.sizes.dims
        batch, seq = dims.get("batch", data.batch), dims.get("seq", data.seq)
        return structs.replace(data, batch=batch, seq=seq, vocab=table.vocab)

    def schedule(
        self, train: TrainSection, program: Program, paths: Paths
    ) -> tuple[Schedule, Mesh]:
        """The schedule for the run and the mesh that goes with it."""
        node = self.chosen_schedule(train.train.name)
        mesh = self.mesh(node)
        dims = tuple(dim.name for dim in program.dims)
        if node is None:
            node = self.default_schedule(dims)
            node = self.overrides.applied("schedule", node)
            schedule, found = read_schedule(node, dims, None, paths)
            shards = tuple(structs.replace(shard, optional=True) for shard in schedule.shards)
            schedule = structs.replace(schedule, shards=shards)
        else:
            node = self.overrides.applied("schedule", node)
            known = (*dims, *self.module.dims)
            schedule, found = read_schedule(node, known, mesh if node.mesh else None, paths)
        self.found += found
        schedule = structs.replace(schedule, shards=with_patterns(schedule.shards, program))
        return schedule, mesh or Mesh()

    def chosen_schedule(self, train: str) -> ast.Schedule | None:
        """The schedule that was asked for, or the only one that is for this run."""
        own = [s for s in self.module.own("schedule") if isinstance(s, ast.Schedule)]
        name = self.overrides.choice("schedule")
        if name is not None:
            section = self.find("schedule", name).section
            assert isinstance(section, ast.Schedule)
            return section
        for section in own:
            if section.train and self.module.find("train", section.train.text) is None:
                known, where = self.module.known("train"), section.train
                self.found.append(UnknownSection(where.span, where.text, known, "train section"))
        fitting = [s for s in own if s.train and s.train.text == train]
        fitting = fitting or [s for s in own if s.train is None]
        if len(fitting) > 1:
            raise DiagnosticError(_ambiguous("schedule", [each.name for each in fitting]))
        return fitting[0] if fitting else None

    def default_schedule(self, dims: Iterable[str]) -> ast.Schedule:
        """The library's default, less the dims that this model doesn't have."""
        known = frozenset(dims)
        bound = self.checked.library.modules[SCHEDULES].find("schedule", "default")
        assert bound and isinstance(bound.section, ast.Schedule)
        items: list[ast.ScheduleItem] = []
        for item in bound.section.items:
            if isinstance(item, ast.Shard):
                left = tuple(dim for dim in item.dims if dim.text in known)
                if left:
                    items.append(structs.replace(item, dims=left))
            else:
                items.append(item)
        return structs.replace(bound.section, items=tuple(items))

    def mesh(self, schedule: ast.Schedule | None) -> Mesh | None:
        """The mesh that was asked for, else the schedule's, else the only one of the file."""
        name = self.overrides.choice("mesh")
        if name is None and schedule is not None:
            name = schedule.mesh
        if name is not None:
            section = self.find("mesh", name).section
        else:
            own = self.module.own("mesh")
            if len(own) != 1 or schedule is not None:
                return None
            section = own[0]
        assert isinstance(section, ast.Mesh)
        mesh, found = read_mesh(section)
        self.found += found
        return mesh

    def adapter(self, bound: Bound | None, paths: Paths) -> Adapter | None:
        """The adapter's settings."""
        adapter = None
        if bound is not None:
            assert isinstance(bound.section, ast.Adapter)
            adapter, found = read_adapter(bound.section, paths)
            self.found += found
        if self.part is None:
            return adapter
        freeze, tune = (self.selectors(self.part, key, paths) for key in stages.OF_ADAPTER)
        return stages.adapted(adapter, self.part.name, freeze, tune)

    def selectors(self, part: stages.Part, key: str, paths: Paths) -> tuple[ast.Expr, ...]:
        """What a stage freezes or tunes."""
        selectors, found = stages.selected(part, key)
        self.found += found
        for selector in selectors:
            self.found += paths.parameters(selector)
        return selectors

    def foreign(self, model: Key, table: Sized) -> Foreign | None:
        """The names in a foreign format: the section asked for, else the only one of the model."""
        name = chosen_names(self.checked, model, self.overrides)
        if name is None:
            return None

        def size(dim: str) -> int:
            known = table.sizes.dims.get(dim) or table.table.size(dim)
            if known is None:
                place = self.checked.names[name].name.span
                raise DiagnosticError(
                    *table.table.found, NoSize(place, dim, REASON, f"{dim} = SIZE")
                )
            return known

        foreign, found = lower_names(self.checked.names[name], size)
        self.found += found
        return foreign

    # The program.

    def program(self, model: Model, table: Sized, train: TrainSection) -> Program:
        """The program of the model level, with the rules' functions."""
        dims = tuple(DimSize(name, size) for name, size in table.sizes.dims.items())
        return Program("model", dims, model.functions, ("model",), model.parameters)

    def decayed(self, program: Program, paths: Paths, train: TrainSection) -> Program:
        """The program with `decays` off for what `no_decay` selects."""
        off: set[str] = set()
        for selector in train.no_decay:
            self.found += paths.parameters(selector)
            off.update(paths.selected(selector_text(selector)))
        parameters = tuple(
            structs.replace(each, decays=False) if each.name in off else each
            for each in program.parameters
        )
        return structs.replace(program, parameters=parameters)


def chosen_names(checked: Checked, model: Key, overrides: Overrides) -> Key | None:
    """The checkpoint section of a model: that asked for, else the only one; None if there is none.

    One comes with its model, imported or not; those of the main file go before others.
    DiagnosticError where there are several, or none of the name that is asked for.
    """
    own = checked.module.file
    every = [key for key, each in checked.names.items() if each.subject == model]
    fitting = {key.name: key for key in sorted(every, key=lambda key: key.file == own)}
    wish = overrides.choice("checkpoint")
    if wish is not None and wish.text not in fitting:
        known = tuple(fitting)
        raise DiagnosticError(UnknownSection(wish.span, wish.text, known, "checkpoint section"))
    if wish is not None:
        return fitting[wish.text]
    nearest = [key for key in every if key.file == own] or every
    if len(nearest) > 1:
        shown = [checked.names[key].name for key in nearest]
        raise DiagnosticError(_ambiguous("checkpoint", shown))
    return nearest[0] if nearest else None


def with_patterns(shards: tuple[Shard, ...], program: Program) -> tuple[Shard, ...]:
    """The directives on the layers of a stack, as directives on what the stack is run over."""
    stacks = dict.fromkeys(p.stack for p in program.parameters if p.stack)
    runs: dict[str, list[str]] = {}
    for stack in stacks:
        runs.setdefault(layers_dim(stack), []).append(stack)
    return tuple(
        structs.replace(shard, dims=tuple(d for dim in shard.dims for d in runs.get(dim, [dim])))
        for shard in shards
    )


def _ambiguous(what: str, sections: Sequence[ast.Name]) -> Diagnostic:
    names = [section.text for section in sections]
    shown = ", ".join(f"`{name}`" for name in names[:-1]) + f" and `{names[-1]}`"
    return Ambiguous(sections[-1].span, what, shown, names[-1])
