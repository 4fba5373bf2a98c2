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
from deeper_layers.command.cutting import check_fits, check_typed, choose, cut_options
from deeper_layers.command.options import MODEL, Place, asking
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.common_parameters import check_one_of
from deeper_layers.experiments.parameter_texts import split
from deeper_layers.experiments.parameters import HealingParameters, Parameters, cut_of_lists
from deeper_layers.export.pruned_checkpoint import check_sublayers, is_gguf_model, say_smaller, typed_lists
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.package_index import cache_folder
from deeper_layers.presets import PRESETS
from deeper_layers.rules.choosing import DROPPING, REGISTERED

if TYPE_CHECKING:  # torch
    from deeper_layers.export import PruningDescription

HEALING = HealingParameters.model_fields
TYPES = ("f32", "f16", "q8_0")
CONVERT = "make a GGUF file of that with convert_hf_to_gguf.py, which comes with llama.cpp"


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
    default="auto",
    show_default=True,
    help=f"of the weights of a folder: {', '.join(DTYPES)}; "
    "auto: as they are, those of a GGUF file in the smallest that holds each exactly",
)
@click.option("--type", "kind", help="of the matrices of a GGUF file, which else stay as they are: " + ", ".join(TYPES))
@click.option("--without-mtp", is_flag=True, help="leave out layers for multi-token prediction, which else stay")
@click.option(
    "--adapter", type=Place(), help="folder of adapters trained after this cut: they are added to the weights"
)
@click.option("--heal", metavar="PRESET", help=f"train such adapters first, and keep them: {', '.join(PRESETS)}")
@click.option("--text", default=HEALING["text"].default, show_default=True, help=HEALING["text"].description)
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
    drop: int | None,
    start: int | None,
    rule: str,
    engines: str | None,
    dry_run: bool,
    overwrite: bool,
    dtype: str,
    kind: str | None,
    without_mtp: bool,
    adapter: Path | None,
    heal: str | None,
    text: str,
    repository: str | None,
    public: bool,
    layers: str | None,
    attention: str | None,
    mlp: str | None,
    silence: bool,
) -> Answer:
    # what can be said before anything is read
    listed = cut_of_lists(layers, attention, mlp)
    check_typed(drop, start, listed)
    if adapter and heal:
        raise click.UsageError("--adapter names adapters, and --heal trains them: give one of them")
    if heal and not given.get("measure", True):
        raise click.UsageError("--heal trains, and with --no-measure nothing is run: give one of them")
    if public and repository is None:
        raise click.UsageError("--public is of the repository of --push-to-hub: give both, or none")
    model, revision, to_gguf, changes = given["model"], given.get("revision"), is_gguf(out), REGISTERED[rule].changes
    if changes:
        _check_change(rule, {"--heal": heal, "--adapter": adapter, "--for": engines, "--dry-run": dry_run}, to_gguf)
    if repository is not None:
        export.check_name(repository)
    parameters = _parameters(given, heal, text, to_gguf, dry_run)
    named = None if engines is None else _engines(engines)
    out = _checked_out(out, model, kind, dtype, overwrite)
    if adapter is not None:
        checks.folder("adapter", adapter, "give one of adapters, as `deeper-layers heal` writes it")
        listed = listed or (_cut_of(adapter, start) if drop is None else None)
    if listed is None and drop is None:
        raise click.UsageError(
            "--drop says how many layers go, --layers which: give one of them, or --adapter and a folder that records "
            "its cut"
        )
    config = models.stated_config(model, revision)
    if (depth := models.stated_layers(config)) is not None:
        check_fits(drop or 0, start, listed, depth)
    shape = {"silence": silence, "adapted": bool(heal or adapter), "to_gguf": to_gguf}
    if REGISTERED[rule].drops_sublayers and drop and start is None:
        check_sublayers(f"the rule {rule} drops attention or MLP apart", **shape)
    if listed is not None and not listed.is_of_layers:
        check_sublayers(f"this cut {listed.describe(depth or checks.LAYERS)}", **shape)
    if not dry_run:
        if repository is not None:
            export.check_repository(repository, public=public)
        files.check_writable(out.absolute().parent)
        if heal:  # where the adapters are kept
            files.check_writable(cache_folder())
    # from here on slow
    depth = depth or export.number_of_layers(models.checkpoint_folder(model, revision))
    check_fits(drop or 0, start, listed, depth)
    found = functools.cache(parameters.source)
    opened = functools.cache(lambda: parameters.open(found()))
    if heal:
        found()  # a mistake is found before anything is measured
    changed = None
    if changes:
        from deeper_layers.experiments.choosing import changed_choice

        cut, changed = changed_choice(rule, drop or 0, parameters, found(), opened)
    elif listed is not None or start is not None:
        cut = listed or Cut(start or 0, drop or 0)
    else:
        safe = None if named is None else functools.partial(export.safe_cuts, config, engines=named)
        cut = choose(rule, drop or 0, depth, lambda: (parameters, found(), opened), safe)
    trust = given.get("trust_remote_code", False)
    described = export.describe_pruning(
        model,
        cut,
        revision=revision,
        results_folder=parameters.results_folder,
        healed=shape["adapted"],
        known=not changes,
        trust_remote_code=trust,
    )
    if named is not None and not export.safe_cuts(config, [cut], engines=named):
        raise InputError(f"--for is {engines}, and {'; '.join(described.engines_in_words())}")
    if dry_run:
        source = found() if is_gguf_model(model) else models.find_model(model, revision=revision, hashed=False)
        bytes, written = export.estimate_bytes(source, cut, out, dtype=dtype, type=kind, mtp=not without_mtp)
        content = described.content() | {"out": str(out), "bytes": bytes, "dtype": written, "dry_run": True}
        healing = _healing_in_words(parameters, heal) if isinstance(parameters, HealingParameters) else ""
        return Answer(_preview(described, source, content, healing, given.get("results")), content)
    for said in described.warnings():
        click.echo(f"warning: {said}", err=True)
    if isinstance(parameters, HealingParameters):
        from deeper_layers.experiments.healings import adapter_folder

        adapter = adapter_folder(cut, parameters.config(), parameters, found(), opened)
    export.prune_checkpoint(
        model,
        cut,
        out,
        revision=revision,
        adapter=adapter,
        dtype=dtype,
        type=kind,
        mtp=not without_mtp,
        silence=silence,
        changed=changed,
        overwrite=overwrite,
        trust_remote_code=trust,
        name=repository or out.name,
        described=described,
    )
    said = f"{described.model} without {cut.size} of its {depth} layers"
    address = export.push(out, repository, public=public, message=said) if repository else None
    bytes = sum(path.stat().st_size for path in ([out] if to_gguf else out.iterdir()))
    lines = [f"{described.model}: {cut.describe(depth)}", *([f"adapters: {adapter}"] if adapter else [])]
    lines += [f"{out}: {bytes / 1e6:,.0f} MB"]
    if is_gguf_model(model) and not to_gguf:
        written = models.read_json(out / "config.json")
        lines += filter(None, [say_smaller(found(), cut, written.get("dtype") or written.get("torch_dtype"))])
    content = described.content() | {
        "adapters": str(adapter) if adapter else None,
        "out": str(out),
        "bytes": bytes,
        "address": address,
    }
    return Answer("\n".join([*lines, *([address] if address else [])]), content)


def _parameters(given: dict, preset: str | None, text: str, to_gguf: bool, dry_run: bool) -> Parameters:
    """What measures distances, and heals where a preset is named; a dry run measures nothing."""
    check_one_of("text", text, data.CORPORA)
    given = given | ({"measure": False} if dry_run else {})
    if preset is None:
        return Parameters(**given)
    # rounded already, a GGUF file heals on the weights that its adapters are added to
    how = {"preset": preset, "text": text} | ({"quantization": None} if to_gguf else {})
    return HealingParameters(**given | how)


def _engines(text: str) -> tuple[str, ...]:
    named = tuple(split(text))
    if strange := [name for name in named or [text] if name not in export.ENGINES]:
        raise InputError(
            f"--for has {checks.shown(strange[0])}, expected some of {', '.join(export.ENGINES)}: the others take no "
            "layer's kind from its number"
        )
    return named


def _check_change(rule: str, beside: dict[str, object], to_gguf: bool) -> None:
    """Raise InputError for what can't be had beside a rule that changes weights."""
    if other := next((name for name, value in beside.items() if value), None):
        raise InputError(
            f"--rule is {rule}, which opens the model and changes weights that stay: leave {other} out, or choose one "
            f"of {', '.join(DROPPING)}"
        )
    if to_gguf:
        raise InputError(
            f"--rule is {rule}, which changes weights, and a GGUF file's stay as they are: give a folder as OUT, and "
            f"{CONVERT}"
        )


def _checked_out(out: Path, model: str, kind: str | None, dtype: str, overwrite: bool) -> Path:
    """Where to write. Raises InputError where that can't be, and for a type that is none."""
    to_gguf = is_gguf(out)
    if to_gguf and not is_gguf_model(model):
        raise InputError(f"MODEL is {model}, which is no GGUF file: give a folder to write, and {CONVERT}")
    if (kind is not None) > to_gguf or to_gguf > (dtype == "auto"):
        raise InputError(f"OUT is {str(out)!r}: --type is for one that ends in .gguf, --dtype for a folder")
    for name, value, known in (("--type", kind, (None, *TYPES)), ("--dtype", dtype, ("auto", *DTYPES))):
        if value not in known:
            raise InputError(f"{name} is {checks.shown(value)}, expected one of {', '.join(filter(None, known))}")
    checks.new_folder("the folder of OUT", checks.place("OUT", out).parent, writable=True)
    out = out.expanduser()
    files.clear(out)
    check = files.check_absent if not overwrite else export.check_our_gguf if to_gguf else export.check_our_folder
    check(out)
    return out


def _cut_of(adapter: Path, start: int | None) -> Cut | None:
    """The cut that adapters were trained for, where they record it."""
    if start is not None:
        raise InputError(f"--start is {start} without --drop: give both, or none with --adapter")
    return export.read_adapter(adapter).cut


def _healing_in_words(parameters: HealingParameters, preset: str | None) -> str:
    config = parameters.config()
    return (
        f"would be healed first ({preset}): {config.steps:,} steps, {config.tokens:,} tokens of {parameters.text}; "
        "what stands here of its quality is from before that"
    )


def _preview(described: "PruningDescription", source: Source, content: dict, healing: str, folder: str | None) -> str:
    """What --dry-run answers; `folder` is that of results as typed."""
    lines = [f"{described.model}: {described.cut.describe(described.layers)}", *filter(None, [healing])]
    size = f"{content['bytes'] / 1e6:,.0f} MB of weights in {content['dtype']}"
    lines.append(f"would be written: {content['out']}, {size}")
    if not is_gguf(content["out"]):
        lines += filter(None, [say_smaller(source, described.cut, content["dtype"])])
    lines += described.engines_in_words() or ["no engine that counts layers would misread it"]
    if not described.scores:
        words = ["sweep", str(source.gguf or source.folder), *typed_lists(described.cut)]
        asked = f"`deeper-layers {shlex.join([*words, *(['--results', folder] if folder else [])])} --tasks TASKS`"
        of = "this cut" if described.units else "this model"
        return "\n".join([*lines, f"of its quality: results hold nothing of {of}; {asked} measures it"])
    surely = "results do not say that it surely ruins any of these: where items are few, they can not"
    return "\n".join([*lines, "", described.card(), "", described.ruin_in_words() or surely])
