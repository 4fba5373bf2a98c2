"""What is known of a checkpoint before it is written: bytes, engines that would misread it, scores from results."""

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deeper_layers import export, models, results
from deeper_layers.command.answers import Answer, table
from deeper_layers.cuts import UNPRUNED, Cut, ranges
from deeper_layers.errors import InputError
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import Source
from deeper_layers.results.frames import distances_of, scores_of
from deeper_layers.results.units import Unit

if TYPE_CHECKING:  # slow
    from deeper_layers.export.adapter_files import Adapter

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "f32": 4, "f16": 2, "q8_0": 34 / 32}  # a weight, or nearly


@dataclasses.dataclass(frozen=True)
class Known:
    """A cut of a model, and what is known of it before it is made."""

    name: str
    layers: int
    cut: Cut
    engines: list[dict]
    units: list
    scores: list
    healed: bool

    @classmethod
    def of(cls, model: str, units: list, config: dict, layers: int, cut: Cut, healed: bool) -> "Known":
        scores = []
        if units:
            from deeper_layers.report import one_cut  # slow

            scores = one_cut.scores_of(scores_of(units), cut)
        name = units[0].key["model"]["name"] if units else models.model_name(model)
        return cls(name, layers, cut, engines_of(config, cut), units, scores, healed)

    def ruin(self) -> str | None:
        said = ruin_in_words(self.scores)
        return f"{said}\n  (before it is healed)" if said and self.healed else said

    def warn(self) -> None:
        """Say on stderr what is wrong with the cut, before it is made."""
        for said in [*engines_in_words(self.engines), self.ruin()]:
            if said:
                click.echo(f"warning: {said}", err=True)

    def card(self, adapter: "Adapter | None") -> str:
        """What results say, for the model card."""
        if not self.units:
            return ""
        from deeper_layers.report import one_cut  # slow

        course, scores = adapter.healing if adapter else None, scores_of(self.units)
        healed = one_cut.healed_alike(scores, self.cut, course["config"], course["text"]) if course else None
        healed = None if healed is None or healed.empty else healed
        return one_cut.card_text(scores, distances_of(self.units), self.cut, healed)

    def content(self) -> dict:
        return {
            "model": self.name, "layers": self.layers, "cut": as_json(self.cut),
            "kept": self.cut.kept(self.layers), "engines": self.engines,
            "scores": [dataclasses.asdict(score) for score in self.scores],
            "ruins": [score.topic for score in self.scores if score.ruined],
        }  # fmt: skip


def preview(
    known: Known, out: Path, source: Source, dtype: str, kind: str | None, mtp: bool, healing: str, folder: str | None
) -> Answer:
    """What --dry-run answers; `healing` says how the model would be healed, `folder` is that of results as typed."""
    lines = [f"{known.name}: {known.cut.describe(known.layers)}", *([healing] if healing else [])]
    if is_gguf(out):
        bytes, written = gguf_bytes(source, known.cut, kind), kind or source.quantized
    else:
        bytes, written = bytes_of(source, known.cut, dtype, mtp)
    lines.append(f"would be written: {out}, {bytes / 1e6:,.0f} MB of weights in {written}")
    lines += smaller(source, known.cut, out, written)
    lines.append("\n".join(engines_in_words(known.engines)) or "no engine that counts layers would misread it")
    if known.scores:
        lines += [
            "",
            scores_in_words(known.scores, known.cut),
            "",
            known.ruin() or "results do not say that it surely ruins any of these: where items are few, they can not",
        ]
    else:
        where = ["--results", folder] if folder else []
        words = ["deeper-layers", "sweep", str(source.gguf or source.folder), *typed_lists(known.cut), *where]
        asked = shlex.join(words)
        of = "this cut" if known.units else "this model"
        lines.append(f"of its quality: results hold nothing of {of}; `{asked} --tasks TASKS` measures it")
    content = known.content() | {"out": str(out), "bytes": bytes, "dtype": written, "dry_run": True}
    return Answer("\n".join(lines), content)


def as_json(cut: Cut) -> dict:
    """A cut as scripts read it: a block by its place, any other with what it drops."""
    place = {"start": cut.start, "size": cut.size}
    return place if cut.is_block else place | {name: list(found) for name, found in _lists(cut).items()}


def typed_lists(cut: Cut) -> list[str]:
    """A cut as one types it, layer by layer."""
    found = {name: ranges(indices) for name, indices in _lists(cut).items()}
    listed = {
        name: ",".join(str(start) if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in parts)
        for name, parts in found.items() if parts
    }  # fmt: skip
    return [word for name, text in listed.items() for word in (f"--{name}", text)]


def _lists(cut: Cut) -> dict[str, tuple[int, ...]]:
    return {"layers": cut.dropped, "attention": cut.attention, "mlp": cut.mlp}


def units_of(model: str, folder: Path, found: Callable[[], Source]) -> list[Unit]:
    """What results hold of a model, known by its hash; a folder is read for its only where they have its name."""
    if not of_gguf(model) and not results.all_units(folder, model=models.model_name(model)):
        return []
    key = found().key
    return [unit for unit in results.all_units(folder, model=key["name"]) if unit.key["model"] == key]


def of_gguf(model: str) -> bool:
    """Whether a model is a GGUF file, given or packaged."""
    return model in models.PACKAGED or is_gguf(model)


def bytes_of(source: Source, cut: Cut, dtype: str, mtp: bool) -> tuple[int, str]:
    """About how many bytes of weights a folder will have, and in which data type, from headers alone.

    Raises InputError where the cut or the type does not fit, or the checkpoint is not understood.
    """
    folder = _readable(source)
    if folder is not None:
        return export.bytes_after(cut, folder, dtype, dequantized=source.is_gguf, mtp=mtp)
    if dtype == "auto":
        dtype = {"F16": "float16", "BF16": "bfloat16"}.get(
            source.quantized, "float32" if source.is_gguf else source.dtype
        )
    return models.sizes_of(source).parameters(cut) * BYTES[dtype], dtype


def gguf_bytes(source: Source, cut: Cut, kind: str | None) -> int:
    """About how many bytes of weights a GGUF file will have."""
    packaged = models.PACKAGED.get(source.folder)
    if packaged and packaged.path.is_file():
        source = dataclasses.replace(source, gguf=packaged.path, folder=str(packaged.path))
    sizes = models.sizes_of(source)
    whole = sizes.file_bytes(cut)
    if kind is None and whole is not None:
        return whole
    if kind is None:  # of a packaged model that is not here yet
        return round(packaged.bytes * sizes.parameters(cut) / sizes.parameters(UNPRUNED))
    return round(sizes.parameters(cut) * BYTES[kind])


def smaller(source: Source, cut: Cut, out: Path, written: str | None = None) -> list[str]:
    """What to say of a folder of float32 that is made of a GGUF file."""
    if not source.is_gguf or is_gguf(out):
        return []
    config = {} if written else models.read_json(out / "config.json")
    if (written or config.get("dtype") or config.get("torch_dtype")) != "float32":
        return []
    whole = gguf_bytes(source, cut, None) / 1e6
    return [
        f"in float32, as no 16 bits hold each of its {source.quantized} weights: --dtype bfloat16 rounds them and "
        f"halves that, an OUT that ends in .gguf keeps them in {whole:,.0f} MB"
    ]


def engines_of(config: dict, cut: Cut) -> list[dict]:
    """Which engines would read a checkpoint wrongly, why, and the nearest cut that they all read rightly."""
    try:
        wrong = export.wrong_in(config, cut)
    except InputError:  # a depth that is not stated in plain words
        return []
    safe = export.nearest_safe(config, cut) if wrong and cut.is_block else None
    return [
        {"engine": one.engine, "layers": list(one.layers), "why": one.why,
         "nearest_safe": safe and {"start": safe.start, "size": safe.size}}
        for one in wrong
    ]  # fmt: skip


def engines_in_words(found: list[dict]) -> list[str]:
    """A line for each engine, and one with what to do."""
    lines = [f"{one['engine']} would read it wrongly: {one['why']}" for one in found]
    if found and (safe := found[0]["nearest_safe"]):
        lines.append(
            f"the nearest cut that every engine reads rightly is --start {safe['start']} --drop {safe['size']}; --for "
            f"{','.join(dict.fromkeys(one['engine'] for one in found))} chooses the best one for these"
        )
    return lines


def scores_in_words(found: list, cut: Cut) -> str:
    """A table of what results hold of a cut."""
    from deeper_layers.report import one_cut

    rows = []
    for score in found:
        row = {"": score.asked, "items": f"{score.items:,}", "whole model": one_cut.in_words(score.whole)}
        row["this cut"] = one_cut.in_words(score.pruned)
        row["guessing"] = "" if score.guessing is None else f"{score.guessing:.2f}"
        row["measured in"] = score.how
        if score.metric == "accuracy":
            row["ruined"] = (
                "surely" if score.ruined else "not surely" if score.largest is not None else "nothing known to lose"
            )
            row["largest n that is not"] = "" if score.largest is None else f"{score.largest} ({score.rule})"
        rows.append(row)
    return table(rows)


def ruin_in_words(found: list) -> str | None:
    """Which tasks a cut ruins; None where it ruins none."""
    rows = [
        {"": f"  {score.asked}", "whole model": f"{score.whole[0]:.2f}", "this cut": f"{score.left[0]:.2f}",
         "guessing": f"{score.guessing:.2f}", "largest n that does not": str(score.largest)}
        for score in found if score.ruined
    ]  # fmt: skip
    known = sum(score.largest is not None for score in found)
    if not rows:
        return None
    return (
        f"results say that this cut ruins {len(rows)} of {known} tasks that the whole model can do: surely less than "
        f"half of what it scores above guessing is left\n{table(rows)}"
    )


def _readable(source: Source) -> Path | None:
    """The folder with the checkpoint of a source, where it is on this machine in safetensors."""
    if not source.is_gguf:
        return Path(source.folder).expanduser() if Path(source.folder).expanduser().is_dir() else None
    from deeper_layers.models.gguf_conversion import conversion_of  # slow

    return conversion_of(source.weights.removeprefix("sha256:"))
