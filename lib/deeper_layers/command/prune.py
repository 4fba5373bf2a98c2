"""`deeper-layers prune`: a checkpoint without some of its layers, healed if asked for.

The cut is chosen, what is known of it is said, adapters are trained where that is asked for, and the files are written.
Copying opens no model. Whatever can be refused soon is refused before anything slow is imported.
"""

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeper_layers import checks, data, export, models
from deeper_layers.command.cutting import LISTS, choose, cut_options, typed_cut
from deeper_layers.command.options import Answer, exclude, is_typed, subcommand
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.lists import split
from deeper_layers.experiments.parameters import HealingParameters, Parameters
from deeper_layers.export.llama_cpp import EXACT, ROUNDED
from deeper_layers.export.pruned_checkpoint import Output, is_gguf_model, say_smaller, typed_lists
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import PRESETS
from deeper_layers.rules.choosing import REGISTERED

if TYPE_CHECKING:  # torch
    from deeper_layers.export import PruningDescription

TEXT = HealingParameters.model_fields["text"]
option, flag = functools.partial(click.option, metavar="TEXT"), functools.partial(click.option, is_flag=True)


@subcommand(
    Parameters,
    "Write a checkpoint without some of its layers.",
    """
    Write a checkpoint without some of its layers to OUT. Weights are copied, unless the rule changes some.

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
    deeper-layers prune ORGANISATION/NAME pruned --drop 8 --push-to-hub ME/NAME-pruned
    deeper-layers prune model.gguf pruned.gguf --drop 8
    deeper-layers prune model.gguf pruned.gguf --to-size 400MB
    deeper-layers prune model.gguf pruned.gguf --drop 8 --type q4_k_m
    """,
    but=("dtype",),
)
@cut_options(REGISTERED, LISTS, more="; with --adapter by default its own")
@flag(
    "--silence",
    help="where a layer loses its attention or MLP, which no configuration says, write zeros where that ends: any tool "
    "reads this, and it saves no memory and no time",
)
@click.option(
    "--for",
    "engines",
    metavar="ENGINES",
    default="",
    help=f"let the rule choose among the cuts that these read rightly: some of {', '.join(export.ENGINES)}",
)
@flag(
    "--dry-run",
    help="say what would be written, what would misread it, and what results hold of its quality; write nothing",
)
@flag("--overwrite", help="replace OUT where an earlier run wrote it and nobody changed it since")
@option(
    "--dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    show_default=True,
    help=f"of the weights of a folder: {', '.join(DTYPES)}; auto: as they are, those of a GGUF file in the smallest "
    "that holds each exactly",
)
@option(
    "--type",
    type=click.Choice([*EXACT, *ROUNDED]),
    help=f"of the matrices of a GGUF file, which else stay as they are: {', '.join(EXACT)}; or, by llama.cpp's "
    f"quantizer where cyllama is installed, {', '.join(ROUNDED)}",
)
@click.option(
    "--to-size",
    metavar="SIZE",
    help="instead of --drop, as few layers as it takes: for weights of at most so many bytes (400MB) or numbers (300M)",
)
@flag("--without-mtp", help="leave out layers for multi-token prediction, which else stay")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    help="folder of adapters trained after this cut: they are added to the weights",
)
@click.option(
    "--heal",
    metavar="PRESET",
    type=click.Choice(list(PRESETS)),
    help=f"train such adapters first, and keep them: {', '.join(PRESETS)}",
)
@click.option("--steps", type=int, help="of --heal: updates of the adapters; by default the preset's own")
@option("--text", type=click.Choice(data.CORPORA), default=TEXT.default, show_default=True, help=TEXT.description)
@click.option(
    "--push-to-hub", metavar="REPOSITORY", help="upload OUT when it is complete, into a private repository of the hub"
)
@flag("--public", help="let that repository be public")
@click.argument("out", type=click.Path(path_type=Path))
def prune(
    parameters: Parameters,
    out: Path,
    engines: str,
    dry_run: bool,
    overwrite: bool,
    dtype: str,
    type: str | None,
    to_size: str | None,
    without_mtp: bool,
    adapter: Path | None,
    heal: str | None,
    steps: int | None,
    text: str,
    push_to_hub: str | None,
    public: bool,
    silence: bool,
    drop: int | None,
    start: int | None,
    rule: str,
    **lists: str | None,
) -> Answer:
    # what can be said before anything is read
    exclude("to_size", "drop", "start", "adapter", *LISTS)
    exclude("heal", "adapter", "measure")
    cut, chosen = typed_cut(drop, start, needed=not (adapter or to_size), **lists), REGISTERED[rule]
    out, healed = checks.place("OUT", out), bool(heal or adapter)
    output = Output(out, dtype, type, not without_mtp, silence, overwrite, healed)
    if chosen.changes:  # it opens the model, and changes weights that stay
        exclude("rule", "heal", "adapter", "engines", "dry_run", "to_size")
    for name, of in {"steps": "heal", "public": "push_to_hub"}.items():
        if is_typed(name) and not is_typed(of):
            raise click.UsageError(f"--{name} is of --{of.replace('_', '-')}: give both, or none")
    given = parameters.model_dump(exclude_unset=True) | ({"measure": False} if dry_run else {})
    parameters = Parameters(**given)
    if heal:  # rounded already, a GGUF file heals on the weights that its adapters are added to
        how = {"preset": heal, "text": text, "steps": steps} | ({"quantization": None} if output.is_gguf else {})
        parameters = HealingParameters(**given | how)
    model, opening = parameters.model, parameters.model_dump(include={"revision", "trust_remote_code"})
    output.check(model, changes=bool(chosen.changes))
    if adapter and drop is None and cut is None and (cut := export.read_adapter(adapter).cut) is None:
        raise click.UsageError("--drop says how many layers go, --layers which: give one of them")  # by peft alone
    config = models.stated_config(model, parameters.revision)
    depth = models.stated_layers(config) or export.number_of_layers(
        models.checkpoint_folder(model, parameters.revision)
    )
    (cut or Cut(0, drop or 0)).check(depth)
    safe = functools.partial(export.safe_cuts, config, engines=split(engines))
    safe([UNPRUNED])  # an engine that nobody knows is refused
    if not cut.is_of_layers if cut else chosen.drops_sublayers and drop:
        what = f"this cut {cut.describe(depth)}" if cut else f"the rule {rule} drops attention or MLP apart"
        output.check_sublayers(what)
    if push_to_hub and not dry_run:
        export.check_repository(push_to_hub, public=public)
    # from here on slow
    found = functools.cache(lambda: Experiment(parameters))

    def sized() -> Source:
        """Enough to know its size."""
        if is_gguf_model(model):
            return found().source
        return models.find_model(model, revision=parameters.revision, hashed=False)

    def chosen_cut(size: int) -> Cut:
        return choose(rule, size, depth, found, safe if engines else None)

    changed = None
    if chosen.changes:
        from deeper_layers.experiments.choosing import changed_choice

        cut, changed = changed_choice(rule, drop or 0, found())
    elif to_size is not None:
        cut = output.fit(sized(), to_size, chosen_cut)
    elif cut is None:
        cut = chosen_cut(drop or 0)
    known = {"results_folder": parameters.results_folder, "known": not chosen.changes}
    described = export.describe_pruning(model, config, depth, cut, **known, **opening)
    if engines and not safe([cut]):
        raise InputError(f"--for is {engines}, and {'; '.join(described.engines_in_words())}")
    content, lines = described.content() | {"out": str(out)}, [f"{described.model}: {cut.describe(depth)}"]
    if dry_run:
        source = sized()
        bytes, written = output.sizes(source)(cut)
        if isinstance(parameters, HealingParameters):
            healing = parameters.config()
            lines.append(
                f"would be healed first ({heal}): {healing.steps:,} steps, {healing.tokens:,} tokens of {text}; what "
                "stands here of its quality is from before that"
            )
        lines.append(f"would be written: {out}, {bytes / 1e6:,.0f} MB of weights in {written}")
        lines += [] if output.is_gguf else filter(None, [say_smaller(source, cut, written)])
        lines += _known(described, source, given.get("results"))
        return Answer(content | {"bytes": bytes, "dtype": written, "dry_run": True}, ["\n".join(lines)])
    for said in described.warnings():
        click.echo(f"warning: {said}", err=True)
    if isinstance(parameters, HealingParameters):
        from deeper_layers.experiments.healings import adapter_folder

        adapter = adapter_folder(cut, parameters.config(), found())
    how = {"adapter": adapter, "changed": changed, "name": push_to_hub}
    export.prune_checkpoint(model, described, output, **how, **opening)
    said = f"{described.model} without {cut.size} of its {depth} layers"
    address = export.push(out, push_to_hub, public=public, message=said) if push_to_hub else None
    bytes = sum(path.stat().st_size for path in ([out] if output.is_gguf else out.iterdir()))
    lines += [*([f"adapters: {adapter}"] if adapter else []), f"{out}: {bytes / 1e6:,.0f} MB"]
    if is_gguf_model(model) and not output.is_gguf:
        lines += filter(None, [say_smaller(found().source, cut, models.find_model(str(out), hashed=False).dtype)])
    content |= {"adapters": str(adapter) if adapter else None, "bytes": bytes, "address": address}
    return Answer(content, ["\n".join([*lines, *filter(None, [address])])])


def _known(described: "PruningDescription", source: Source, folder: str | None) -> list[str]:
    """What is known of a cut before it is made, line by line; `folder` is that of results as typed."""
    lines = described.engines_in_words() or ["no engine that counts layers would misread it"]
    if not described.scores:
        words = ["sweep", str(source.gguf or source.folder), *typed_lists(described.cut)]
        asked = f"`deeper-layers {shlex.join([*words, *(['--results', folder] if folder else [])])} --tasks TASKS`"
        of = "this cut" if described.held else "this model"
        return [*lines, f"of its quality: results hold nothing of {of}; {asked} measures it"]
    surely = "results do not say that it surely ruins any of these: where items are few, they can not"
    return [*lines, "", described.card(), "", described.ruin_in_words() or surely]
