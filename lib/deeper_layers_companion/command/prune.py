"""`deeper-layers prune`: write a checkpoint without some of its layers, healed with --heal.

The steps: choose the cut, print what is known of it, train adapters with --heal, write the files. A checkpoint is
copied without opening the model. Wrong options are refused before anything is read.
"""

import functools
import shlex
from pathlib import Path
from typing import Annotated, NamedTuple

import click
from pydantic import Field

from deeper_layers import checks, export, models
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.lineage import read_cut_like
from deeper_layers.export.llama_cpp import EXACT_TYPES, ROUNDED_TYPES
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import PRESETS
from deeper_layers_companion.command.options import (
    LISTS,
    NO_CUT,
    Answer,
    cut_options,
    exclude,
    is_typed,
    read_cut,
    subcommand,
)
from deeper_layers_companion.jobs import pruned_checkpoint
from deeper_layers_companion.jobs.healings import find_adapters
from deeper_layers_companion.jobs.job import healing_job
from deeper_layers_companion.jobs.options import (
    Corpus,
    Dtype,
    HealingParameters,
    Parameters,
    one_of,
    split_list,
)
from deeper_layers_companion.jobs.pruned_checkpoint import (
    Output,
    PruningDescription,
    is_gguf_model,
    layer_options,
)
from deeper_layers_companion.jobs.select_cuts import (
    select_cut_and_changes,
    select_cuts,
    select_safe_cut,
)
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.rules.table import REGISTERED, Rule

NOT_SURELY = (
    "results do not say that it surely ruins any of these: where items are few, they can not"
)


class PruneParameters(Parameters):
    """The options of prune, besides the cut. Here `dtype` is that of the written weights, not of the opened model."""

    silence: bool = Field(
        False,
        description="where a layer loses its attention or MLP, which no configuration says, write zeros where that "
        "ends: any tool reads this, and it saves no memory and no time",
    )
    for_: str = Field(
        "",
        description=f"let the rule choose among the cuts that these read rightly: some of {', '.join(export.ENGINES)}",
    )
    like: Path | None = Field(
        None,
        description="a folder that was pruned before: make the same cut, of another model of as many layers",
    )
    dry_run: bool = Field(
        False,
        description="say what would be written, what would misread it, and what results hold of its quality; write "
        "nothing",
    )
    dtype: Dtype = Field(
        "auto",
        description=f"of the weights of a folder: {', '.join(DTYPES)}; auto: as they are, those of a GGUF file in the "
        "smallest that holds each exactly",
    )
    type: Annotated[str | None, one_of([*EXACT_TYPES, *ROUNDED_TYPES])] = Field(
        None,
        description=f"of the matrices of a GGUF file, which else stay as they are: {', '.join(EXACT_TYPES)}; or, by "
        f"llama.cpp's quantizer where cyllama is installed, {', '.join(ROUNDED_TYPES)}",
    )
    to_size: str | None = Field(
        None,
        description="instead of --drop, as few layers as it takes: for weights of at most so many bytes (400MB) or "
        "numbers (300M)",
    )
    without_mtp: bool = Field(
        False, description="leave out layers for multi-token prediction, which else stay"
    )
    adapter: Path | None = Field(
        None, description="folder of adapters trained after this cut: they are added to the weights"
    )
    heal: Annotated[str | None, one_of(PRESETS)] = Field(
        None, description=f"train such adapters first, and keep them: {', '.join(PRESETS)}"
    )
    steps: int | None = Field(
        None, description="of --heal: updates of the adapters; None: the preset's own"
    )
    text: Corpus = HealingParameters.model_fields["text"]

    def make_opening_parameters(self, rounded: bool) -> Parameters:
        """The parameters for opening, and with --heal healing, the model; `rounded` weights are not quantized again."""
        if self.heal and rounded and PRESETS[self.heal].last_layers:
            raise InputError(
                f"--heal is {self.heal}, and OUT a GGUF file, to which adapters are added: give a folder"
            )
        cls = HealingParameters if self.heal else Parameters
        values = self.model_dump(exclude_unset=True, include={*cls.model_fields} - {"dtype"})
        values["measure"] = self.measure and not self.dry_run
        if self.heal:
            values["preset"] = self.heal
            if rounded:
                values["quantization"] = None
        return cls(**values)


@subcommand(PruneParameters, "Write a checkpoint without some of its layers.")
@cut_options(REGISTERED, LISTS, more="; with --adapter by default its own")
@click.argument("out", type=click.Path(path_type=Path))
def prune(
    options: PruneParameters,
    out: Path,
    drop: int | None,
    start: int | None,
    rule: str,
    **lists: str | None,
) -> Answer:
    """Write a checkpoint without some of its layers to OUT. Weights are copied, unless the rule changes some.

    Which layers is a matter of --rule, of --start, or of lists like --layers "3, 7-9". OUT is a folder that
    transformers, vLLM and others open, and must not exist; of a GGUF file it can be one too, for llama.cpp: then it
    ends in .gguf. Before anything is written it is said which engines would misread the result, and whether results say
    that the cut ruins the model: that surely less than half of what the whole one scores above guessing is left.
    Options of the text matter where a rule measures something on it; what a search by loss costs is printed before.

    \b
    deeper-layers prune embedded pruned --drop 2 --dry-run
    deeper-layers prune embedded pruned --drop 4 --rule simple
    deeper-layers prune embedded pruned --drop 4 --rule replaceme
    deeper-layers prune embedded pruned --layers "3, 7-9" --attention 12 --silence
    deeper-layers prune ORGANISATION/NAME pruned --drop 8 --heal "Llama-2 7B"
    deeper-layers prune ORGANISATION/NAME-base pruned-base --like pruned
    deeper-layers prune model.gguf pruned.gguf --drop 8
    deeper-layers prune model.gguf pruned.gguf --to-size 400MB
    deeper-layers prune model.gguf pruned.gguf --drop 8 --type q4_k_m
    """
    chosen = REGISTERED[rule]
    size = drop or 0
    _refuse_options(chosen)
    cut = read_cut(drop, start, options.adapter or options.to_size or options.like, **lists)
    model = options.model
    out = checks.check_path("OUT", out)
    healed = bool(options.heal or options.adapter)
    output = Output(
        out, options.dtype, options.type, not options.without_mtp, options.silence, healed
    )
    output.check(model, changes=bool(chosen.changes))
    if options.adapter and drop is None and cut is None:
        cut = export.read_adapter(options.adapter).cut
        if cut is None:
            raise click.UsageError(NO_CUT)  # adapters that peft wrote do not name their cut
    config = models.read_raw_config(model, options.revision)
    depth = models.count_stated_layers(config)
    depth = depth or export.read_layout(models.checkpoint_folder(model, options.revision)).layers
    if options.like:
        cut = read_cut_like(options.like, depth)
    (cut or Cut(0, size)).check(depth)
    if cut and not cut.is_of_layers:
        output.check_sublayers(f"this cut {cut.describe(depth)}")
    elif not cut and chosen.drops_sublayers and size:
        output.check_sublayers(f"the rule {rule} drops attention or MLP apart")
    request = _Request(
        options, output, config, depth, Session(options.make_opening_parameters(output.is_gguf))
    )
    changed = None
    if chosen.changes:
        cut, changed = select_cut_and_changes(rule, size, request.session)
    elif options.to_size is not None:
        cut = output.fit_cut(
            request.find_source(), options.to_size, functools.partial(request.choose_cut, rule)
        )
    elif cut is None:
        cut = request.choose_cut(rule, size)
    opening = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    known = {"results_folder": options.folder, "known": not chosen.changes}
    described = pruned_checkpoint.describe_pruning(model, config, depth, cut, **known, **opening)
    request.check_engines(described)
    if options.dry_run:
        return request.say_what_would_be(described)
    for message in described.warnings():
        click.echo(f"warning: {message}", err=True)
    if is_gguf_model(model) and not output.is_gguf:
        click.echo(output.describe_growth(request.find_source(), cut), err=True)
    changes = {"adapter": request.find_adapters(cut), "changed": changed}
    if changed:
        changes["settings"] = _list_typed("corpus", "samples", "sequence_length", "seed")
    pruned_checkpoint.prune_checkpoint(model, described, output, **changes, **opening)
    return request.say_what_was_written(described, changes["adapter"])


def _refuse_options(chosen: Rule) -> None:
    """Refuse options that exclude each other, before anything is read."""
    exclude("to_size", "drop", "start", "adapter", *LISTS)
    exclude("like", "to_size", "drop", "start", "rule", "adapter", "for_", *LISTS)
    exclude("heal", "adapter", "measure")
    if chosen.changes:  # a rule that opens the model, and changes the weights that stay
        exclude("rule", "heal", "adapter", "for_", "dry_run", "to_size")
    if is_typed("steps") and not is_typed("heal"):
        raise click.UsageError("--steps is of --heal: give both, or none")


def _list_typed(*names: str) -> list[str]:
    """Those of some options that were typed, as words of a command."""
    values = click.get_current_context().params
    words = []
    for name in filter(is_typed, names):
        words += [f"--{name.replace('_', '-')}", str(values[name])]
    return words


class _Request(NamedTuple):
    """What was asked for, and of which model: its config.json and its depth."""

    options: PruneParameters
    output: Output
    config: dict
    depth: int
    session: Session

    def find_source(self) -> Source:
        """The model; a folder is not read for its hash."""
        hashed = is_gguf_model(self.options.model)
        return models.find_model(self.options.model, revision=self.options.revision, hashed=hashed)

    def select_safe(self, cuts: list[Cut]) -> list[Cut]:
        """Those of some cuts that the engines of --for read rightly."""
        return export.select_safe_cuts(self.config, cuts, engines=split_list(self.options.for_))

    def choose_cut(self, rule: str, size: int) -> Cut:
        """The cut of a rule, with --for the best one that its engines read rightly."""
        if self.options.for_:
            return select_safe_cut(rule, size, self.depth, self.session, self.select_safe)
        return select_cuts(rule, [size], self.session, layers=self.depth, any_dtype=True)[0]

    def check_engines(self, described: PruningDescription) -> None:
        """Raise InputError where an engine of --for would misread the result."""
        if self.options.for_ and not self.select_safe([described.cut]):
            wrong = [
                item for item in described.engines if item.engine in split_list(self.options.for_)
            ]
            reasons = "; ".join(
                f"{item.engine} would read it wrongly: {item.why}" for item in wrong
            )
            raise InputError(
                f"--for is {self.options.for_}, and {reasons}: give another cut, or leave it out"
            )

    def find_adapters(self, cut: Cut) -> Path | None:
        """The adapters that are added: those that were given, or with --heal trained ones."""
        parameters = self.session.options
        if not isinstance(parameters, HealingParameters):
            return self.options.adapter
        config = parameters.make_config()
        healing = healing_job(
            self.session.source, cut, config, parameters.text, parameters.quantization
        )
        return find_adapters(healing, self.session)

    def say_what_would_be(self, described: PruningDescription) -> Answer:
        """What --dry-run prints."""
        options = self.options
        cut = described.cut
        bytes, dtype = self.output.size_function(self.find_source())(cut)
        parameters = self.session.options
        lines = [f"{described.model}: {cut.describe(self.depth)}"]
        if isinstance(parameters, HealingParameters):
            tokens = parameters.make_config().tokens
            lines.append(
                f"would be healed first: {options.heal}, {tokens:,} tokens of {options.text}"
            )
        lines.append(
            f"would be written: {self.output.path}, {bytes / 1e6:,.0f} MB of weights in {dtype}"
        )
        lines += described.engine_warnings() or ["no engine that counts layers would misread it"]
        typed = layer_options(cut)
        if options.results:
            typed = ["--results", options.results, *typed]
        measure = shlex.join(["deeper-layers", "sweep", options.model, *typed, "--tasks"])
        quality = [
            f"results hold nothing of what is left of its quality: `{measure} TASKS` measures it"
        ]
        if described.scores:
            quality = [described.card(), described.ruin_warning() or NOT_SURELY]
        content = described.content() | {
            "out": str(self.output.path),
            "bytes": bytes,
            "dtype": dtype,
            "dry_run": True,
        }
        return Answer(content, ["\n".join(lines), *quality])

    def say_what_was_written(self, described: PruningDescription, adapter: Path | None) -> Answer:
        """What is printed in the end."""
        out = self.output.path
        files = [out] if self.output.is_gguf else out.iterdir()
        bytes = sum(path.stat().st_size for path in files)
        lines = [f"{described.model}: {described.cut.describe(self.depth)}"]
        if adapter:
            lines.append(f"adapters: {adapter}")
        lines.append(f"{out}: {bytes / 1e6:,.0f} MB")
        content = described.content() | {
            "out": str(out),
            "adapters": str(adapter) if adapter else None,
            "bytes": bytes,
        }
        return Answer(content, ["\n".join(lines)])
