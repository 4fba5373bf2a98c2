"""Prune a model on disk as the command does: what is known of a cut before it is made, and the files.

`describe_pruning` says which engines would misread the result and what results hold of its quality; `prune_checkpoint`
says the same in warnings, writes a folder or a GGUF file, and puts it into the model card.
"""

import shlex
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers import checks, files, models, results
from deeper_layers.cuts import UNPRUNED, Cut, ranges
from deeper_layers.errors import InputError
from deeper_layers.export.engines import Miscounted, nearest_safe, wrong_in
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

    @property
    def ruined(self) -> "list[Score]":
        """The tasks of which surely less than half of what the model scores above guessing is left."""
        return [score for score in self.scores if score.ruined]

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
        """Which tasks the cut ruins, a line each below the first; None where it ruins none."""
        if not self.ruined:
            return None
        known = sum(score.largest is not None for score in self.scores)
        lines = [
            f"results say that this cut ruins {len(self.ruined)} of {known} tasks that the whole model can do: surely "
            "less than half of what it scores above guessing is left"
        ]
        for score in self.ruined:
            lines.append(
                f"  {score.asked}: whole model {score.whole[0]:.2f}, this cut {score.left[0]:.2f}, guessing "
                f"{score.guessing:.2f}; largest n that does not: {score.largest}"
            )
        return "\n".join([*lines, *(["  (before it is healed)"] if self.healed else [])])

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
            "engines": [asdict(one) | {"layers": list(one.layers), "nearest_safe": safe} for one in self.engines],
            "scores": [asdict(score) for score in self.scores],
            "ruins": [score.topic for score in self.ruined],
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
    model, config = str(model), models.stated_config(str(model), revision)
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
    held, scores = [], []
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
    revision: str | None = None,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    type: str | None = None,
    mtp: bool = True,
    silence: bool = False,
    changed: "Changed | None" = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    name: str | None = None,
    described: PruningDescription | None = None,
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
    if not cut.is_of_layers:
        check_sublayers(f"this cut is {cut}", silence=silence, adapted=added is not None, to_gguf=is_gguf(out))
    if described is None:
        described = describe_pruning(
            model,
            cut,
            revision=revision,
            healed=added is not None,
            known=changed is None,
            trust_remote_code=trust_remote_code,
        )
        for said in described.warnings():
            warnings.warn(said, stacklevel=2)
    if is_gguf(out):
        return export.slice_gguf(model, cut, out, adapter=adapter, type=type, overwrite=overwrite)
    # the command as anyone else would type it: the cut by its place, or by a rule, and no path of this machine
    drop = ["--drop", str(cut.size)]
    if changed:
        place = [*drop, "--rule", changed.words.partition(":")[0]]
    else:
        place = ["--start", str(cut.start), *drop] if cut.is_block else typed_lists(cut)
    words = ["deeper-layers", "prune", described.model, out.name, *place]
    words += ["--silence"] if silence else []
    words += ["--adapter", added.folder.name] if added else []
    words += ["--dtype", dtype] if dtype != "auto" else []
    words += [] if mtp else ["--without-mtp"]
    return export.slice_checkpoint(
        model,
        cut,
        out,
        revision=revision,
        adapter=adapter,
        dtype=dtype,
        mtp=mtp,
        silence=silence,
        changed=changed,
        card=described.card(added),
        command=shlex.join(words),
        name=name or out.name,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )


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
    checks.new_folder("the folder of OUT", checks.place("OUT", out).parent, writable=True)
    out = out.expanduser()
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


def estimate_bytes(
    source: Source, cut: Cut, out: Path, *, dtype: str = "auto", type: str | None = None, mtp: bool = True
) -> tuple[float, str]:
    """About how many bytes of weights `prune_checkpoint` would write, and in which type, from headers alone.

    Raises InputError where the cut or the type does not fit, or the checkpoint is not understood.
    """
    if is_gguf(out):
        return _gguf_bytes(source, cut, type), type or source.quantized
    folder = Path(source.folder).expanduser()
    if source.is_gguf:
        from deeper_layers.models.gguf_conversion import conversion_of  # slow

        folder = conversion_of(source.weights.removeprefix("sha256:"))
    if folder is not None and folder.is_dir():  # in safetensors, on this machine
        from deeper_layers.export import bytes_after  # slow

        return bytes_after(cut, folder, dtype, dequantized=source.is_gguf, mtp=mtp)
    if dtype == "auto":
        plain = "float32" if source.is_gguf else source.dtype
        dtype = {"F16": "float16", "BF16": "bfloat16"}.get(source.quantized, plain)
    return models.sizes_of(source).parameters(cut) * BYTES[dtype], dtype


def say_smaller(source: Source, cut: Cut, dtype: str) -> str | None:
    """What to say of a folder in float32 that is made of a GGUF file; None for any other."""
    if not source.is_gguf or dtype != "float32":
        return None
    whole = _gguf_bytes(source, cut, None) / 1e6
    return (
        f"in float32, as no 16 bits hold each of its {source.quantized} weights: --dtype bfloat16 rounds them and "
        f"halves that, an OUT that ends in .gguf keeps them in {whole:,.0f} MB"
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


def _gguf_bytes(source: Source, cut: Cut, type: str | None) -> int:
    """About how many bytes of weights a GGUF file will have."""
    packaged = models.PACKAGED.get(source.folder)
    if packaged and packaged.path.is_file():
        source = replace(source, gguf=packaged.path, folder=str(packaged.path))
    sizes = models.sizes_of(source)
    if type is not None:
        return round(sizes.parameters(cut) * BYTES[type])
    if (whole := sizes.file_bytes(cut)) is not None:
        return whole
    assert packaged is not None  # one that is not here yet
    return round(packaged.bytes * sizes.parameters(cut) / sizes.parameters(UNPRUNED))
