"""`deeper-layers prune`: a checkpoint without some of its layers, healed if asked for.

The cut is chosen, what is known of it is said, adapters are trained where that is asked for, and the files are written.
Copying opens no model. Whatever can be refused soon is refused before anything slow is imported.
"""

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeper_layers import checks, data, export, files, models
from deeper_layers.command.answers import Answer, answering
from deeper_layers.command.cutting import choose, cut_options, typed_cut
from deeper_layers.command.options import MODEL, Place, asking, exclude
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.experiment import Experiment
from deeper_layers.experiments.lists import split
from deeper_layers.experiments.parameters import HealingParameters, Parameters
from deeper_layers.export.llama_cpp import EXACT, ROUNDED
from deeper_layers.export.pruned_checkpoint import check_out, check_sublayers, is_gguf_model, say_smaller, typed_lists
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.package_index import cache_folder
from deeper_layers.presets import PRESETS
from deeper_layers.rules.choosing import REGISTERED

if TYPE_CHECKING:  # torch
    from deeper_layers.export import PruningDescription

HEALING = HealingParameters.model_fields
TYPES = (*EXACT, *ROUNDED)


@click.command(
    help=f"""
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

    {MODEL}
    """
)
@cut_options(REGISTERED, ("layers", "attention", "mlp"), more="; with --adapter by default its own")
@click.option(
    "--silence",
    is_flag=True,
    help="where a layer loses its attention or MLP, which no configuration says, "
    "write zeros where that ends: any tool reads this, and it saves no memory and no time",
)
@click.option(
    "--for",
    "engines",
    metavar="ENGINES",
    default="",
    help=f"let the rule choose among the cuts that these read rightly: some of {', '.join(export.ENGINES)}",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="say what would be written, what would misread it, and what results hold of its quality; write nothing",
)
@click.option("--overwrite", is_flag=True, help="replace OUT where an earlier run wrote it and nobody changed it since")
@click.option(
    "--dtype",
    metavar="TEXT",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    show_default=True,
    help=f"of the weights of a folder: {', '.join(DTYPES)}; "
    "auto: as they are, those of a GGUF file in the smallest that holds each exactly",
)
@click.option(
    "--type",
    "kind",
    metavar="TEXT",
    type=click.Choice(TYPES),
    help=f"of the matrices of a GGUF file, which else stay as they are: {', '.join(EXACT)}; or, by llama.cpp's "
    f"quantizer where cyllama is installed, {', '.join(ROUNDED)}",
)
@click.option(
    "--to-size",
    metavar="SIZE",
    help="instead of --drop, as few layers as it takes: for weights of at most so many bytes (400MB) or numbers (300M)",
)
@click.option("--without-mtp", is_flag=True, help="leave out layers for multi-token prediction, which else stay")
@click.option(
    "--adapter", type=Place(), help="folder of adapters trained after this cut: they are added to the weights"
)
@click.option(
    "--heal",
    metavar="PRESET",
    type=click.Choice(list(PRESETS)),
    help=f"train such adapters first, and keep them: {', '.join(PRESETS)}",
)
@click.option("--steps", type=click.INT, help="of --heal: updates of the adapters; by default the preset's own")
@click.option(
    "--text",
    metavar="TEXT",
    type=click.Choice(data.CORPORA),
    default=HEALING["text"].default,
    show_default=True,
    help=HEALING["text"].description,
)
@click.option(
    "--push-to-hub",
    "repository",
    metavar="REPOSITORY",
    help="upload OUT when it is complete, into a private repository of the hub",
)
@click.option("--public", is_flag=True, help="let that repository be public")
@asking(Parameters, but=("dtype",))
@click.argument("out", type=Place())
@answering
def prune(
    given: dict,
    out: Path,
    engines: str,
    dry_run: bool,
    overwrite: bool,
    dtype: str,
    kind: str | None,
    to_size: str | None,
    without_mtp: bool,
    adapter: Path | None,
    heal: str | None,
    steps: int | None,
    text: str,
    repository: str | None,
    public: bool,
    silence: bool,
    drop: int | None,
    start: int | None,
    rule: str,
    **lists: str | None,
) -> Answer:
    # what can be said before anything is read
    for name, value in {"drop": drop, "start": start, "adapter": adapter, **lists}.items():
        exclude(**{"to_size": to_size, name: value})
    cut = typed_cut(drop, start, needed=adapter is None and to_size is None, **lists)
    chosen, to_gguf = REGISTERED[rule], is_gguf(out)
    exclude(adapter=adapter, heal=heal)
    exclude(heal=heal, no_measure=not given.get("measure", True))
    if chosen.changes:  # it opens the model, and changes weights that stay
        others = {"heal": heal, "adapter": adapter, "for": engines or None, "dry_run": dry_run}
        others["to_size"] = to_size
        exclude(**{f"rule {rule}": True}, **others)
    if steps is not None and heal is None:
        raise click.UsageError("--steps is of --heal: give both, or none")
    if public and repository is None:
        raise click.UsageError("--public is of the repository of --push-to-hub: give both, or none")
    for engine in split(engines):
        if engine not in export.ENGINES:
            raise InputError(f"--for is {engine!r:.80}, expected one of {', '.join(map(repr, export.ENGINES))}")
    if repository is not None:
        export.check_name(repository)
    # rounded already, a GGUF file heals on the weights that its adapters are added to
    how = {"preset": heal, "text": text, "steps": steps} | ({"quantization": None} if to_gguf else {})
    given |= {"measure": False} if dry_run else {}
    parameters = Parameters(**given) if heal is None else HealingParameters(**given | how)
    model, opening = parameters.model, {name: getattr(parameters, name) for name in ("revision", "trust_remote_code")}
    out = check_out(model, out, dtype=dtype, type=kind, changes=bool(chosen.changes), overwrite=overwrite)
    if adapter is not None:
        checks.folder("adapter", adapter, "give one of adapters, as `deeper-layers heal` writes it")
        cut = export.read_adapter(adapter).cut if drop is None and cut is None else cut
        if drop is None and cut is None:  # peft alone wrote them
            raise click.UsageError("--drop says how many layers go, --layers which: give one of them")
    config = models.stated_config(model, parameters.revision)
    depth = models.stated_layers(config) or export.number_of_layers(
        models.checkpoint_folder(model, parameters.revision)
    )
    (cut or Cut(0, drop or 0)).check(depth)
    if not cut.is_of_layers if cut else chosen.drops_sublayers and drop:
        what = f"this cut {cut.describe(depth)}" if cut else f"the rule {rule} drops attention or MLP apart"
        check_sublayers(what, silence=silence, adapted=bool(heal or adapter), to_gguf=to_gguf)
    if not dry_run:
        if repository is not None:
            export.check_repository(repository, public=public)
        files.check_writable(out.absolute().parent)
        if heal:  # where the adapters are kept
            files.check_writable(cache_folder())
    # from here on slow
    found = functools.cache(lambda: Experiment(parameters))

    def sized() -> Source:
        """Enough to know its size."""
        return (
            found().source
            if is_gguf_model(model)
            else models.find_model(model, revision=parameters.revision, hashed=False)
        )

    if heal:
        found()  # a mistake is found before anything is measured
    writes = {"dtype": dtype, "type": kind, "mtp": not without_mtp, "healed": bool(heal or adapter)}
    changed, safe = None, functools.partial(export.safe_cuts, config, engines=split(engines))
    if chosen.changes:
        from deeper_layers.experiments.choosing import changed_choice

        cut, changed = changed_choice(rule, drop or 0, found())
    elif cut is None:

        def chosen_cut(size: int) -> Cut:
            return choose(rule, size, depth, found, safe if engines else None)

        cut = chosen_cut(drop or 0) if to_size is None else export.fit_cut(sized(), to_size, chosen_cut, out, **writes)
    described = export.describe_pruning(
        model,
        cut,
        results_folder=parameters.results_folder,
        healed=bool(heal or adapter),
        known=not chosen.changes,
        **opening,
    )
    if engines and not safe([cut]):
        raise InputError(f"--for is {engines}, and {'; '.join(described.engines_in_words())}")
    content, lines = described.content() | {"out": str(out)}, [f"{described.model}: {cut.describe(depth)}"]
    if dry_run:
        source = sized()
        bytes, written = export.written_sizes(source, out, **writes)(cut)
        if isinstance(parameters, HealingParameters):
            healing = parameters.config()
            lines.append(
                f"would be healed first ({heal}): {healing.steps:,} steps, {healing.tokens:,} tokens of {text}; what "
                "stands here of its quality is from before that"
            )
        lines.append(f"would be written: {out}, {bytes / 1e6:,.0f} MB of weights in {written}")
        lines += [] if to_gguf else filter(None, [say_smaller(source, cut, written)])
        lines += _known(described, source, given.get("results"))
        return Answer("\n".join(lines), content | {"bytes": bytes, "dtype": written, "dry_run": True})
    for said in described.warnings():
        click.echo(f"warning: {said}", err=True)
    if isinstance(parameters, HealingParameters):
        from deeper_layers.experiments.healings import adapter_folder

        adapter = adapter_folder(cut, parameters.config(), found())
    export.prune_checkpoint(
        model,
        cut,
        out,
        adapter=adapter,
        dtype=dtype,
        type=kind,
        mtp=not without_mtp,
        silence=silence,
        changed=changed,
        overwrite=overwrite,
        name=repository or out.name,
        described=described,
        **opening,
    )
    said = f"{described.model} without {cut.size} of its {depth} layers"
    address = export.push(out, repository, public=public, message=said) if repository else None
    bytes = sum(path.stat().st_size for path in ([out] if to_gguf else out.iterdir()))
    lines += [*([f"adapters: {adapter}"] if adapter else []), f"{out}: {bytes / 1e6:,.0f} MB"]
    if is_gguf_model(model) and not to_gguf:
        lines += filter(None, [say_smaller(found().source, cut, models.find_model(str(out), hashed=False).dtype)])
    content |= {"adapters": str(adapter) if adapter else None, "bytes": bytes, "address": address}
    return Answer("\n".join([*lines, *filter(None, [address])]), content)


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
