"""`deeper-layers prune`: a checkpoint without some of its layers, healed if asked for.

The cut is chosen, what is known of it is looked up and said, adapters are healed where that is asked for, and the files
are written. Copying opens no model: what does is imported where distances are measured or adapters trained. Whatever
can be refused soon is refused before anything slow is imported.
"""

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeper_layers import checks, data, export, files, models
from deeper_layers.command.answers import Answer, answering
from deeper_layers.command.cutting import check_fits, check_typed, chosen_cut, cut_options, list_options
from deeper_layers.command.options import MODEL, Place, asking
from deeper_layers.command.preview import Known, engines_in_words, of_gguf, preview, smaller, typed_lists, units_of
from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.experiments.common_parameters import check_one_of
from deeper_layers.experiments.parameter_texts import split
from deeper_layers.experiments.parameters import HealingParameters, Parameters, check_given, cut_of_lists
from deeper_layers.export.tensor_edits import AS_IT_IS
from deeper_layers.export.tensor_edits import DTYPES as NAMES
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.package_index import cache_folder
from deeper_layers.presets import PRESETS
from deeper_layers.rules.choosing import DROPPING, REGISTERED

if TYPE_CHECKING:  # torch
    from deeper_layers.export.adapter_files import Adapter

ADAPTER = "give one of adapters, as `deeper-layers heal` writes it"
HEALING = HealingParameters.model_fields
TYPES = ("f32", "f16", "q8_0")


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
@cut_options(more="; with --adapter by default its own", rules=REGISTERED)
@list_options("layers", "attention", "mlp")
@click.option("--silence", is_flag=True, help="where a layer loses its attention or MLP, which no configuration says, "
              "write zeros where that ends: any tool reads this, and it saves no memory and no time")  # fmt: skip
@click.option("--for", "engines", metavar="ENGINES", help="let the rule choose among the cuts that these read rightly: "
              f"some of {', '.join(export.ENGINES)}")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="say what would be written, what would misread it, and what results "
              "hold of its quality; write nothing")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="replace OUT where an earlier run wrote it and nobody changed it since")
@click.option("--dtype", default=AS_IT_IS, show_default=True, help=f"of the weights of a folder: {', '.join(NAMES)}; "
              "auto: as they are, those of a GGUF file in the smallest that holds each exactly")  # fmt: skip
@click.option("--type", "kind", help="of the matrices of a GGUF file, which else stay as they are: " + ", ".join(TYPES))
@click.option("--without-mtp", is_flag=True, help="leave out layers for multi-token prediction, which else stay")
@click.option("--adapter", type=Place(), help="folder of adapters trained after this cut: they are "
              "added to the weights")  # fmt: skip
@click.option("--heal", metavar="PRESET", help=f"train such adapters first, and keep them: {', '.join(PRESETS)}")
@click.option("--text", default=HEALING["text"].default, show_default=True, help=HEALING["text"].description)
@click.option("--push-to-hub", "repository", metavar="REPOSITORY", help="upload OUT when it is complete, into a "
              "private repository of the hub")  # fmt: skip
@click.option("--public", is_flag=True, help="let that repository be public")
@asking(Parameters, but=("dtype",))
@click.argument("out", type=Place())
@answering
def prune(
    given: dict, out: Path, drop: int | None, start: int | None, rule: str, engines: str | None, dry_run: bool,
    overwrite: bool, dtype: str, kind: str | None, without_mtp: bool, adapter: Path | None, heal: str | None, text: str,
    repository: str | None, public: bool, layers: str | None, attention: str | None, mlp: str | None, silence: bool,
) -> Answer:  # fmt: skip
    given_cut = cut_of_lists(layers, attention, mlp)
    check_typed(drop, start, given_cut)
    if adapter and heal:
        raise click.UsageError("--adapter names adapters, and --heal trains them: give one of them")
    if heal and not given.get("measure", True):
        raise click.UsageError("--heal trains, and with --no-measure nothing is run: give one of them")
    if changes := REGISTERED[rule].changes:
        _check_change(rule, {"--heal": heal, "--adapter": adapter, "--for": engines, "--dry-run": dry_run}, out)
    if public and repository is None:
        raise click.UsageError("--public is of the repository of --push-to-hub: give both, or none")
    if repository is not None:
        export.check_name(repository)
    model, revision, to_gguf = given["model"], given.get("revision"), is_gguf(out)
    parameters = _parameters(given, heal, text, to_gguf, dry_run)
    named = None if engines is None else _engines(engines)
    out = _checked_out(out, model, kind, dtype, overwrite)
    added = None if adapter is None else export.read_adapter(checks.folder("adapter", adapter, ADAPTER))
    recorded = given_cut or (_cut_of(added, start) if drop is None else None)
    config = models.stated_config(model, revision)
    depth = models.stated_layers(config)
    if depth is not None:
        if drop is not None:
            check_fits(drop, start, depth)
        if given_cut is not None:
            _check_shape(given_cut, depth, silence, heal, adapter, to_gguf)
        elif drop and start is None and REGISTERED[rule].drops_sublayers:
            what = f"the rule {rule} drops attention or MLP apart"
            _check_sublayers(what, silence, heal, adapter, to_gguf)
    if not dry_run:
        _check_places(out, heal is not None, repository, public)
    # from here on slow
    if depth is None:
        depth = export.number_of_layers(models.checkpoint_folder(model, revision))
    found = functools.cache(parameters.source)
    opened = functools.cache(lambda: parameters.open(found()))
    if heal:
        found()  # a mistake is found before anything is measured
    safe = None if named is None else functools.partial(export.safe_cuts, config, engines=named)
    if changes:
        from deeper_layers.experiments.choosing import changed_choice

        cut, changed = changed_choice(rule, drop or 0, parameters, found(), opened)
    else:
        cut = recorded or chosen_cut(drop or 0, start, rule, depth, lambda: (parameters, found(), opened), safe)
        changed = None
    _check_shape(cut, depth, silence, heal, adapter, to_gguf)
    # what results hold of the cut is of weights as they were
    units = [] if changes else units_of(model, parameters.results_folder, found)
    known = Known.of(model, units, config, depth, cut, heal is not None or adapter is not None)
    if safe is not None and not safe([cut]):
        raise InputError(f"--for is {engines}, and {'; '.join(engines_in_words(known.engines))}")
    if dry_run:
        source = found() if of_gguf(model) else models.find_model(model, revision=revision, hashed=False)
        said = _healing_in_words(parameters, heal) if heal else ""
        return preview(known, out, source, dtype, kind, not without_mtp, said, given.get("results"))
    known.warn()
    if heal:
        from deeper_layers.experiments.healings import adapter_folder

        adapter = adapter_folder(cut, parameters.config(), parameters, found(), opened)
    read = [path for path in (Path(model).expanduser(), adapter) if path and path.exists()]
    export.check_apart(out, *read)
    if to_gguf:
        export.slice_gguf(found(), cut, out, adapter=adapter, type=kind, overwrite=overwrite)
    else:
        export.slice_checkpoint(
            model, cut, out, revision=revision, adapter=adapter, dtype=dtype, mtp=not without_mtp, silence=silence,
            card=known.card(None if adapter is None else export.read_adapter(adapter)),
            command=_command(known, out, adapter, dtype, without_mtp, silence, rule if changes else ""),
            name=repository or out.name, changed=changed, overwrite=overwrite,
            trust_remote_code=given.get("trust_remote_code", False),
        )  # fmt: skip
    said = f"{known.name} without {cut.size} of its {depth} layers"
    address = export.push(out, repository, public=public, message=said) if repository else None
    bytes = sum(path.stat().st_size for path in ([out] if to_gguf else out.iterdir()))
    lines = [
        f"{known.name}: {cut.describe(depth)}", *([f"adapters: {adapter}"] if adapter else []),
        f"{out}: {bytes / 1e6:,.0f} MB", *(smaller(found(), cut, out) if of_gguf(model) else []),
        *([address] if address else []),
    ]  # fmt: skip
    content = known.content() | {
        "adapters": str(adapter) if adapter else None, "out": str(out), "bytes": bytes, "address": address,
    }  # fmt: skip
    return Answer("\n".join(lines), content)


def _healing_in_words(parameters: HealingParameters, preset: str) -> str:
    config = parameters.config()
    return (
        f"would be healed first ({preset}): {config.steps:,} steps, {config.tokens:,} tokens of {parameters.text}; "
        "what stands here of its quality is from before that"
    )


def _check_change(rule: str, beside: dict[str, object], out: Path) -> None:
    """Raise InputError for what can't be had beside a rule that changes weights."""
    if other := next((name for name, value in beside.items() if value), None):
        raise InputError(
            f"--rule is {rule}, which opens the model and changes weights that stay: leave {other} out, or choose one "
            f"of {', '.join(DROPPING)}"
        )
    if is_gguf(out):
        raise InputError(
            f"--rule is {rule}, which changes weights, and a GGUF file's stay as they are: give a folder as OUT, and "
            "make a GGUF file of that with convert_hf_to_gguf.py, which comes with llama.cpp"
        )


def _check_shape(cut: Cut, layers: int, silence: bool, heal: str | None, adapter: Path | None, to_gguf: bool) -> None:
    """Raise InputError for a cut that does not fit, or of a shape that can't be written or healed."""
    check_given(cut, layers)
    if not cut.is_of_layers:
        _check_sublayers(f"this cut {cut.describe(layers)}", silence, heal, adapter, to_gguf)


def _check_sublayers(what: str, silence: bool, heal: str | None, adapter: Path | None, to_gguf: bool) -> None:
    """Raise InputError where what drops sublayers can't be written or healed."""
    if heal or adapter:
        way = "--heal" if heal else "--adapter"
        raise InputError(f"{way} is of whole layers, and {what}: leave {way} out")
    if to_gguf:
        raise InputError(
            f"{what}, which no GGUF file states: give a folder as OUT with --silence, and make a GGUF file of that "
            "with convert_hf_to_gguf.py, which comes with llama.cpp"
        )
    if not silence:
        raise InputError(
            f"{what}: no configuration states a layer without one of its sublayers; --silence writes zeros where they "
            "end instead, which any tool reads to the same numbers, and which saves no memory"
        )


def _check_places(out: Path, heals: bool, repository: str | None, public: bool) -> None:
    """Raise InputError where nothing can be written or uploaded, before anything is measured."""
    if repository is not None:
        export.check_repository(repository, public=public)
    files.check_writable(out.absolute().parent)
    if heals:  # where the adapters are kept
        files.check_writable(cache_folder())


def _command(
    known: Known, out: Path, adapter: Path | None, dtype: str, without_mtp: bool, silence: bool, rule: str
) -> str:
    """The command as anyone else would type it: the cut by its place, or by a rule, and no path of this machine."""
    drop = ["--drop", str(known.cut.size)]
    words = ["deeper-layers", "prune", known.name, out.name]
    if rule:
        words += [*drop, "--rule", rule]
    else:
        words += ["--start", str(known.cut.start), *drop] if known.cut.is_block else typed_lists(known.cut)
    words += ["--silence"] if silence else []
    words += ["--adapter", adapter.name] if adapter else []
    words += ["--dtype", dtype] if dtype != AS_IT_IS else []
    return shlex.join([*words, *(["--without-mtp"] if without_mtp else [])])


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
    """The engines of --for. Raises InputError for one that is not in the table."""
    named = tuple(split(text))
    if not named or (strange := set(named) - set(export.ENGINES)):
        known = ", ".join(export.ENGINES)
        shown = checks.shown(sorted(strange)[0] if named else text)
        raise InputError(
            f"--for has {shown}, expected some of {known}: the others take no layer's kind from its number"
        )
    return named


def _checked_out(out: Path, model: str, kind: str | None, dtype: str, overwrite: bool) -> Path:
    """Where to write. Raises InputError where that can't be, and for a type that is none."""
    to_gguf = is_gguf(out)
    if to_gguf and not of_gguf(model):
        raise InputError(
            f"MODEL is {model}, which is no GGUF file: give a folder to write, and make a GGUF file of that with "
            "convert_hf_to_gguf.py, which comes with llama.cpp"
        )
    if kind is not None and not to_gguf:
        raise InputError(f"OUT is {str(out)!r}: --type is for an OUT that ends in .gguf")
    if kind is not None and kind not in TYPES:
        raise InputError(
            f"--type is {checks.shown(kind)}, expected one of {', '.join(TYPES)}: llama-quantize makes more"
        )
    if dtype != AS_IT_IS and to_gguf:
        raise InputError(f"OUT is {str(out)!r}: --dtype is for a folder, give --type for a GGUF file")
    if dtype not in (AS_IT_IS, *NAMES):
        raise InputError(f"--dtype is {checks.shown(dtype)}, expected auto, {', '.join(NAMES)}: choose one")
    out = checks.place("OUT", out)
    checks.new_folder("the folder of OUT", out.parent, writable=True)
    files.clear(out)
    if not overwrite:
        files.check_absent(out)
    elif to_gguf:
        export.check_our_gguf(out)
    else:
        export.check_our_folder(out)
    return out


def _cut_of(adapter: "Adapter | None", start: int | None) -> Cut:
    """The cut that adapters were trained for."""
    if adapter is None or adapter.cut is None:
        raise click.UsageError(
            "--drop says how many layers go, --layers which: give one of them, or --adapter and a folder that records "
            "its cut"
        )
    if start is not None:
        raise InputError(f"--start is {start} without --drop: give both, or none with --adapter")
    return adapter.cut
