"""Prune a model on disk as the command does: what is known of a cut before it is made, how large it gets, the files.

`describe_pruning` says which engines would misread the result and what results hold of its quality; `prune_checkpoint`
says the same in warnings, writes a folder or a GGUF file, and puts it into the model card.
"""

import shlex
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers import checks, files, models, results
from deeper_layers.cuts import Cut, ranges
from deeper_layers.errors import InputError
from deeper_layers.export.engines import Miscounted, nearest_safe, wrong_in
from deeper_layers.export.llama_cpp import ROUNDED
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import Source
from deeper_layers.results.frames import distances_of, scores_of
from deeper_layers.results.store import Result

if TYPE_CHECKING:  # slow
    from deeper_layers.export.adapter_files import Adapter
    from deeper_layers.export.tensor_edits import Changed
    from deeper_layers.report.one_cut import Score

CONVERT = "make a GGUF file of that with convert_hf_to_gguf.py, which comes with llama.cpp"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "f32": 4, "f16": 2, "q8_0": 34 / 32}  # a weight, or nearly


@dataclass(frozen=True)
class PruningDescription:
    """What is known of a model without the layers of a cut, before it is made."""

    model: str  # its name in results
    layers: int  # L
    cut: Cut
    engines: list[Miscounted]  # which would take kept layers for others
    safe: Cut | None  # the nearest block that every engine reads rightly; None where the cut is one, or none is known
    held: list[Result]  # all that results hold of the model
    scores: "list[Score]"  # what they say of the cut, task by task
    healed: bool = False  # adapters are added to the weights

    def warnings(self) -> list[str]:
        """What is wrong with the cut, a message each; the last may have several lines."""
        return [*self.engines_in_words(), *filter(None, [self.ruin_in_words()])]

    def engines_in_words(self) -> list[str]:
        """A line for each engine that would misread it, and one with what to do."""
        lines = [f"{one.engine} would read it wrongly: {one.why}" for one in self.engines]
        if self.safe:
            lines.append(
                f"the nearest cut that every engine reads rightly is --start {self.safe.start} --drop {self.safe.size};"
                f" --for {','.join(dict.fromkeys(one.engine for one in self.engines))} chooses the best one for these"
            )
        return lines

    def ruin_in_words(self) -> str | None:
        """The tasks of which surely less than half of what the model scores above guessing is left, a line each below
        the first; None where there are none."""
        ruined, known = (
            [score for score in self.scores if score.ruined],
            [s for s in self.scores if s.largest is not None],
        )
        lines = [
            f"  {score.asked}: whole model {score.whole[0]:.2f}, this cut {score.left[0]:.2f}, guessing "
            f"{score.guessing:.2f}; largest n that does not: {score.largest}"
            for score in ruined
        ]
        first = (
            f"results say that this cut ruins {len(ruined)} of {len(known)} tasks that the whole model can do: surely "
            "less than half of what it scores above guessing is left"
        )
        return "\n".join([first, *lines, *(["  (before it is healed)"] if self.healed else [])]) if ruined else None

    def card(self, adapter: "Adapter | None" = None) -> str:
        """What results say of the cut, healed with these adapters, in Markdown, for the model card."""
        if not self.held:
            return ""
        from deeper_layers.report import one_cut  # slow

        scores, healed = scores_of(self.held), None
        if adapter and adapter.healing:
            found = one_cut.healed_alike(scores, self.cut, adapter.healing["config"], adapter.healing["text"])
            healed = None if found.empty else found
        return one_cut.card_text(scores, distances_of(self.held), self.cut, healed)

    def content(self) -> dict:
        """All of it for JSON."""
        safe = self.safe and {"start": self.safe.start, "size": self.safe.size}
        return {
            "model": self.model,
            "layers": self.layers,
            "cut": cut_as_json(self.cut),
            "kept": self.cut.kept(self.layers),
            "engines": [one._asdict() | {"nearest_safe": safe} for one in self.engines],
            "scores": [vars(score) for score in self.scores],
            "ruins": [score.topic for score in self.scores if score.ruined],
        }


def describe_pruning(
    model: str | Path,
    cut: Cut,
    *,
    revision: str | None = None,
    results_folder: Path | None = None,
    healed: bool = False,
    known: bool = True,
    trust_remote_code: bool = False,
) -> PruningDescription:
    """What is known of a model without the layers of a cut, before it is made.

    Weights are read for their hash only where results hold a model of this name.

    Args:
        model: "embedded" or another packaged model, a hub id, a folder, or a `.gguf` file.
        cut: what to drop.
        revision: of a hub id.
        results_folder: where results lie; by default as everywhere, and the published ones behind them.
        healed: adapters are added to the weights.
        known: ask results at all; they are of weights as they were, and of none that a rule changed.
        trust_remote_code: for a hub id whose code comes with it.

    Raises:
        InputError: the model is none, or the cut does not fit.
    """
    model, config, held, scores = str(model), models.stated_config(str(model), revision), [], []
    layers = models.stated_layers(config)
    if layers is None:
        from deeper_layers.export.layer_tensors import number_of_layers  # slow

        layers = number_of_layers(models.checkpoint_folder(model, revision))
    cut.check(layers)
    try:
        wrong = wrong_in(config, cut)
        safe = nearest_safe(config, cut) if wrong and cut.is_block else None
    except InputError:  # a depth that is not stated in plain words
        wrong, safe = [], None
    if known and (is_gguf_model(model) or results.all_results(results_folder, model=models.model_name(model))):
        key = models.find_model(model, revision=revision, trust_remote_code=trust_remote_code).key
        if is_gguf_model(model):  # known by its hash, whatever it is called
            key["name"] = results.name_of(key["weights"], results_folder) or key["name"]
        held = [one for one in results.all_results(results_folder, model=key["name"]) if one.key["model"] == key]
    if held:
        from deeper_layers.report import one_cut  # slow

        scores = one_cut.scores_of(scores_of(held), cut)
    name = held[0].key["model"]["name"] if held else models.model_name(model)
    return PruningDescription(name, layers, cut, wrong, safe, held, scores, healed)


def prune_checkpoint(
    model: str | Path,
    cut: Cut | None,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    type: str | None = None,
    changed: "Changed | None" = None,
    overwrite: bool = False,
    described: PruningDescription | None = None,
    name: str | None = None,
    **options,
) -> Path:
    """Write a model without the layers of a cut as `deeper-layers prune` does: a folder, or a GGUF file.

    What is wrong with the cut (see `PruningDescription.warnings`) is said in warnings, unless `described` is given:
    then it was said. The model card of a folder holds what results say, and the command that writes the same.

    Args:
        model: "embedded" or another packaged model, a hub id, a folder, or a `.gguf` file.
        cut: what to drop; None is the cut for which the adapters were trained.
        out: where to write: a GGUF file where it ends in .gguf, which has to be made of one, else a folder.
        type: of the matrices of a GGUF file, see `slice_gguf`. All other arguments are those of `slice_checkpoint`.

    Raises:
        InputError: as `slice_checkpoint` and `slice_gguf`, and for a cut of another shape than can be written there.

    Returns:
        `out`, complete.
    """
    from deeper_layers import export  # slow, one of its functions more than the other

    added, out = None if adapter is None else export.read_adapter(adapter), Path(out)
    cut = cut or (added.cut if added else None)
    if cut is None:
        raise InputError("cut is None, and no adapters record theirs: say which layers go, as Cut(8, 3)")
    silence = options.get("silence", False)
    if not cut.is_of_layers:
        check_sublayers(f"this cut is {cut}", silence=silence, adapted=added is not None, to_gguf=is_gguf(out))
    if described is None:
        found = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        described = describe_pruning(model, cut, healed=added is not None, known=changed is None, **found)
        for said in described.warnings():
            warnings.warn(said, stacklevel=2)
    if is_gguf(out):
        return export.slice_gguf(model, cut, out, adapter=adapter, type=type, overwrite=overwrite)
    # the command as anyone else would type it: the cut by its place, or by a rule, and no path of this machine
    place = ["--start", str(cut.start), "--drop", str(cut.size)] if cut.is_block else typed_lists(cut)
    if changed:
        place = ["--drop", str(cut.size), "--rule", changed.words.partition(":")[0]]
    words = ["deeper-layers", "prune", described.model, out.name, *place]
    words += ["--silence"] if silence else []
    words += ["--adapter", added.folder.name] if added else []
    words += ["--dtype", options["dtype"]] if options.get("dtype", "auto") != "auto" else []
    words += [] if options.get("mtp", True) else ["--without-mtp"]
    options |= {"adapter": adapter, "changed": changed, "overwrite": overwrite, "name": name or out.name}
    return export.slice_checkpoint(model, cut, out, card=described.card(added), command=shlex.join(words), **options)


def check_out(
    model: str,
    out: Path,
    *,
    dtype: str = "auto",
    type: str | None = None,
    changes: bool = False,
    overwrite: bool = False,
) -> Path:
    """Where to write, its home folder spelled out; what killed processes left there goes.

    Raises InputError where it can't be written, or what is asked is not to be had there; `changes` is whether weights
    that stay are changed.
    """
    from deeper_layers import export  # slow, one of its checks

    to_gguf = is_gguf(out)
    if to_gguf and (changes or not is_gguf_model(model)):
        what = "weights are changed, and a GGUF file's stay as they are" if changes else f"{model} is no GGUF file"
        raise InputError(f"OUT is {str(out)!r}, and {what}: give a folder as OUT, and {CONVERT}")
    if (type is not None) > to_gguf or to_gguf > (dtype == "auto"):
        raise InputError(f"OUT is {str(out)!r}: --type is for one that ends in .gguf, --dtype for a folder")
    out = checks.place("OUT", out)
    if not out.name:
        raise InputError(f"OUT is {str(out)!r}, a folder that is there: name one to be made")
    checks.new_folder("the folder of OUT", out.parent, writable=True)
    files.clear(out)
    check = files.check_absent if not overwrite else export.check_our_gguf if to_gguf else export.check_our_folder
    check(out)
    return out


def check_sublayers(what: str, *, silence: bool, adapted: bool, to_gguf: bool) -> None:
    """Raise InputError where what drops sublayers can't be written or healed; `what` begins the message."""
    if adapted:
        raise InputError(f"adapters are of whole layers, and {what}: leave them out")
    if to_gguf:
        raise InputError(f"{what}, which no GGUF file states: give a folder as OUT with --silence, and {CONVERT}")
    if not silence:
        raise InputError(
            f"{what}: no configuration states a layer without one of its sublayers; --silence writes zeros where they "
            "end instead, which any tool reads to the same numbers, and which saves no memory"
        )


def written_sizes(
    source: Source,
    out: Path,
    *,
    dtype: str = "auto",
    type: str | None = None,
    mtp: bool = True,
    healed: bool = False,
) -> Callable[[Cut], tuple[int, str]]:
    """What says of a cut how many bytes of weights `prune_checkpoint` would write, and in which type.

    From headers, with that of what is written, where the model is on this machine; else about, by its parameters. What
    llama.cpp's quantizer rounds is counted as it is before that. `healed`: adapters will be added.
    Raises InputError, as what it gives does, where the cut or the type does not fit, or the model is not understood.
    """
    packaged, to_gguf = models.PACKAGED.get(source.folder), is_gguf(out)
    exact, then = (None, f", which llama.cpp then rounds to {type}") if type in ROUNDED else (type, "")
    path, folder = packaged.path if packaged else source.gguf, Path(source.folder).expanduser()
    if to_gguf and path is not None and path.is_file():
        from deeper_layers.export.gguf_files import plan_gguf  # slow
        from deeper_layers.models.gguf_header import read_gguf

        header, said = read_gguf(path), exact or source.quantized + ", matrices of adapters in f16" * healed
        return lambda cut: (plan_gguf(source, header, cut, exact, healed=healed).bytes, said + then)
    if source.is_gguf:
        from deeper_layers.models.gguf_conversion import conversion_of  # slow

        folder = conversion_of(source.weights.removeprefix("sha256:"))
    if not to_gguf and folder is not None and folder.is_dir():
        from deeper_layers.export.slicing import weights_written  # slow

        return weights_written(folder, dtype, dequantized=source.is_gguf, mtp=mtp)
    if to_gguf and packaged:
        kind = (exact or source.quantized) + then
        width = BYTES[exact] if exact else packaged.bytes / packaged.parameters
    else:
        plain = "float32" if source.is_gguf else source.dtype
        kind = dtype if dtype != "auto" else {"F16": "float16", "BF16": "bfloat16"}.get(source.quantized, plain)
        width = BYTES[kind]
    sizes = models.sizes_of(source)
    return lambda cut: (round(sizes.parameters(cut) * width), kind)


def say_smaller(source: Source, cut: Cut, dtype: str) -> str | None:
    """What to say of a folder in float32 that is made of a GGUF file; None for any other."""
    if not source.is_gguf or dtype != "float32":
        return None
    whole, _ = written_sizes(source, Path("out.gguf"))(cut)
    return (
        f"in float32, as no 16 bits hold each of its {source.quantized} weights: --dtype bfloat16 rounds them and "
        f"halves that, an OUT that ends in .gguf keeps them in {whole / 1e6:,.0f} MB"
    )


def is_gguf_model(model: str) -> bool:
    """Whether a model is a GGUF file, given or packaged."""
    return model in models.PACKAGED or is_gguf(model)


def cut_as_json(cut: Cut) -> dict:
    """A cut as scripts read it: a block by its place, any other with what it drops."""
    place = {"start": cut.start, "size": cut.size}
    lists = {"layers": list(cut.dropped), "attention": list(cut.attention), "mlp": list(cut.mlp)}
    return place if cut.is_block else place | lists


def typed_lists(cut: Cut) -> list[str]:
    """A cut as one types it, layer by layer: ["--layers", "3,7-9", "--mlp", "12"]."""
    words = []
    for name, indices in (("layers", cut.dropped), ("attention", cut.attention), ("mlp", cut.mlp)):
        parts = [str(start) if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in ranges(indices)]
        words += [f"--{name}", ",".join(parts)] if parts else []
    return words
