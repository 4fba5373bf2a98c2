"""`deeper-layers prune`: write a checkpoint without some of its layers, healed with --heal.

The steps: choose the cut, print what is known of it, train adapters with --heal, write the files. A checkpoint is
copied without opening the model. Wrong options are refused before anything is read.
"""

import functools
import shlex
from pathlib import Path
from typing import Annotated

import click
from pydantic import Field

from deeper_layers import checks, export, models
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.export.lineage import read_cut_like
from deeper_layers.export.llama_cpp import EXACT_TYPES, ROUNDED_TYPES
from deeper_layers.models.sources import DTYPES
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
from deeper_layers_companion.jobs.options import Corpus, Dtype, HealingParameters, Parameters, one_of, split_list
from deeper_layers_companion.jobs.pruned_checkpoint import Output, is_gguf_model, layer_options
from deeper_layers_companion.jobs.select_cuts import select_cut_and_changes, select_cuts, select_safe_cut
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.rules.choosing import REGISTERED

NOT_SURELY = "results do not say that it surely ruins any of these: where items are few, they can not"


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
        None, description="a folder that was pruned before: make the same cut, of another model of as many layers"
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
    without_mtp: bool = Field(False, description="leave out layers for multi-token prediction, which else stay")
    adapter: Path | None = Field(
        None, description="folder of adapters trained after this cut: they are added to the weights"
    )
    heal: Annotated[str | None, one_of(PRESETS)] = Field(
        None, description=f"train such adapters first, and keep them: {', '.join(PRESETS)}"
    )
    steps: int | None = Field(None, description="of --heal: updates of the adapters; None: the preset's own")
    text: Corpus = HealingParameters.model_fields["text"]

    def make_opening_parameters(self, rounded: bool) -> Parameters:
        """The parameters for opening, and with --heal healing, the model; `rounded` weights are not quantized again."""
        if self.heal and rounded and PRESETS[self.heal].last_layers:
            raise InputError(f"--heal is {self.heal}, and OUT a GGUF file, to which adapters are added: give a folder")
        cls, healing = (HealingParameters, {"preset": self.heal}) if self.heal else (Parameters, {})
        healing |= {"quantization": None} if self.heal and rounded else {}
        values = self.model_dump(exclude_unset=True, include={*cls.model_fields} - {"dtype"})
        return cls(**values | healing | {"measure": self.measure and not self.dry_run})


@subcommand(PruneParameters, "Write a checkpoint without some of its layers.")
@cut_options(REGISTERED, LISTS, more="; with --adapter by default its own")
@click.argument("out", type=click.Path(path_type=Path))
def prune(
    options: PruneParameters, out: Path, drop: int | None, start: int | None, rule: str, **lists: str | None
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
    # refuse wrong options before anything is read
    exclude("to_size", "drop", "start", "adapter", *LISTS)
    exclude("like", "to_size", "drop", "start", "rule", "adapter", "for_", *LISTS)
    exclude("heal", "adapter", "measure")
    instead = options.adapter or options.to_size or options.like
    cut = read_cut(drop, start, instead, **lists)
    chosen, size = REGISTERED[rule], drop or 0
    if chosen.changes:  # a rule that opens the model, and changes the weights that stay
        exclude("rule", "heal", "adapter", "for_", "dry_run", "to_size")
    if is_typed("steps") and not is_typed("heal"):
        raise click.UsageError("--steps is of --heal: give both, or none")
    model, adapter, out = options.model, options.adapter, checks.check_path("OUT", out)
    healed, mtp = bool(options.heal or adapter), not options.without_mtp
    output = Output(out, options.dtype, options.type, mtp, options.silence, healed)
    output.check(model, changes=bool(chosen.changes))
    if adapter and drop is None and cut is None and (cut := export.read_adapter(adapter).cut) is None:
        raise click.UsageError(NO_CUT)  # adapters that peft wrote do not name their cut
    config = models.read_raw_config(model, options.revision)
    depth = models.count_stated_layers(config)
    depth = depth or export.read_layout(models.checkpoint_folder(model, options.revision)).layers
    if options.like:
        cut = read_cut_like(options.like, depth)
    (cut or Cut(0, size)).check(depth)
    if not cut.is_of_layers if cut else chosen.drops_sublayers and size:
        subject = f"this cut {cut.describe(depth)}" if cut else f"the rule {rule} drops attention or MLP apart"
        output.check_sublayers(subject)
    parameters, changed = options.make_opening_parameters(output.is_gguf), None
    session = Session(parameters)
    safe = functools.partial(export.select_safe_cuts, config, engines=split_list(options.for_))
    sized = functools.partial(models.find_model, model, revision=options.revision, hashed=is_gguf_model(model))

    def choose_cut(size: int) -> Cut:
        if options.for_:
            return select_safe_cut(rule, size, depth, session, safe)
        return select_cuts(rule, [size], session, layers=depth, any_dtype=True)[0]

    if chosen.changes:
        cut, changed = select_cut_and_changes(rule, size, session)
    elif options.to_size is not None:
        cut = output.fit_cut(sized(), options.to_size, choose_cut)
    elif cut is None:
        cut = choose_cut(size)
    opening = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    known = {"results_folder": options.folder, "known": not chosen.changes}
    described = pruned_checkpoint.describe_pruning(model, config, depth, cut, **known, **opening)
    if options.for_ and not safe([cut]):
        wrong = [item for item in described.engines if item.engine in split_list(options.for_)]
        reasons = "; ".join(f"{item.engine} would read it wrongly: {item.why}" for item in wrong)
        raise InputError(f"--for is {options.for_}, and {reasons}: give another cut, or leave it out")
    content, lines = described.content() | {"out": str(out)}, [f"{described.model}: {cut.describe(depth)}"]
    if options.dry_run:
        bytes, dtype = output.size_function(sized())(cut)
        if isinstance(parameters, HealingParameters):
            lines.append(
                f"would be healed first: {options.heal}, {parameters.make_config().tokens:,} tokens of {options.text}"
            )
        lines.append(f"would be written: {out}, {bytes / 1e6:,.0f} MB of weights in {dtype}")
        lines += described.engine_warnings() or ["no engine that counts layers would misread it"]
        typed = ["--results", options.results, *layer_options(cut)] if options.results else layer_options(cut)
        measure = shlex.join(["deeper-layers", "sweep", model, *typed, "--tasks"])
        quality = [f"results hold nothing of what is left of its quality: `{measure} TASKS` measures it"]
        if described.scores:
            quality = [described.card(), described.ruin_warning() or NOT_SURELY]
        return Answer(content | {"bytes": bytes, "dtype": dtype, "dry_run": True}, ["\n".join(lines), *quality])
    for message in described.warnings():
        click.echo(f"warning: {message}", err=True)
    if is_gguf_model(model) and not output.is_gguf:
        click.echo(output.describe_growth(sized(), cut), err=True)
    if isinstance(parameters, HealingParameters):
        config = parameters.make_config()
        healing = healing_job(session.source, cut, config, parameters.text, parameters.quantization)
        adapter = find_adapters(healing, session)
    looked_at = [name for name in ("corpus", "samples", "sequence_length", "seed") if changed and is_typed(name)]
    settings = [word for name in looked_at for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    changes = {"adapter": adapter, "changed": changed, "settings": settings}
    pruned_checkpoint.prune_checkpoint(model, described, output, **changes, **opening)
    bytes = sum(path.stat().st_size for path in ([out] if output.is_gguf else out.iterdir()))
    lines += [f"adapters: {adapter}" if adapter else "", f"{out}: {bytes / 1e6:,.0f} MB"]
    content |= {"adapters": str(adapter) if adapter else None, "bytes": bytes}
    return Answer(content, ["\n".join(filter(None, lines))])
