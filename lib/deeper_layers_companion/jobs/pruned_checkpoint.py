"""Prune a model on disk as the command `prune` does: describe the cut, find its size, write the files."""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers import checks, export, files, models
from deeper_layers.cuts import Cut, find_ranges
from deeper_layers.errors import InputError, NotMeasuredError
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.engines import Misreading, find_misreadings, find_nearest_safe
from deeper_layers.export.llama_cpp import ROUNDED_TYPES
from deeper_layers.models import checkpoint_files
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import Source
from deeper_layers_companion import results
from deeper_layers_companion.results.frames import tabulate_distances, tabulate_scores
from deeper_layers_companion.results.store import Result

if TYPE_CHECKING:  # slow
    from deeper_layers.export.tensors import Changed
    from deeper_layers_companion.report.one_cut import Score

# about
BYTES_PER_WEIGHT = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "f32": 4,
    "f16": 2,
    "q8_0": 34 / 32,
}
BYTE_UNITS = {
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
PLACEHOLDER = (
    "path/to/"  # in a command for others, before the name of a file or folder of this machine
)
PARAMETER_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class PruningDescription:
    """What is known about a pruned model before it is written."""

    model: str  # its name in results
    layers: int  # L
    cut: Cut
    engines: list[Misreading]  # engines that would take kept layers for another kind
    # the nearest block that all engines read correctly; None where the cut is safe, or no block is
    safe: Cut | None
    measured: list[Result]  # all results of the model
    scores: "list[Score]"  # the cut's scores in these results, one for each task

    def warnings(self) -> list[str]:
        """A message for each problem of the cut; the last one may have several lines."""
        return [*self.engine_warnings(), *filter(None, [self.ruin_warning()])]

    def engine_warnings(self) -> list[str]:
        """A line for each engine that would misread the pruned model, and a line of advice."""
        lines = [f"{item.engine} would read it wrongly: {item.why}" for item in self.engines]
        if self.safe:
            lines.append(
                f"the nearest cut that every engine reads rightly is --start {self.safe.start} --drop {self.safe.size};"
                f" --for {','.join(dict.fromkeys(item.engine for item in self.engines))} chooses the best one for these"
            )
        return lines

    def ruin_warning(self) -> str | None:
        """A message with a line for each ruined task: surely less than half of the model's score above guessing is
        left. None where no task is ruined."""
        lines = [
            f"  {score.asked}: whole model {score.whole[0]:.2f}, this cut {score.pruned[0]:.2f}, guessing "
            f"{score.guessing:.2f}; {describe_limit(score)}"
            for score in self.scores
            if score.ruined
        ]
        known = sum(score.largest is not None for score in self.scores)
        first = (
            f"results say that this cut, not healed, ruins {len(lines)} of {known} tasks that the whole model can do: "
            "surely less than half of what it scores above guessing is left"
        )
        return "\n".join([first, *lines]) if lines else None

    def card(self, adapter: Adapter | None = None) -> str:
        """The scores of the cut, healed with these adapters or not, in Markdown, for the model card."""
        if not self.measured:
            return ""
        from deeper_layers_companion.report import one_cut  # slow

        scores = tabulate_scores(self.measured)
        healed = None
        if adapter and adapter.healing:
            healed_scores = one_cut.find_healed(
                scores, self.cut, adapter.healing["config"], adapter.healing["text"]
            )
            healed = None if healed_scores.empty else healed_scores
        pruned_scores = self.scores if healed is None else None
        is_own = adapter is None or healed is not None
        return one_cut.write_card_text(
            scores,
            tabulate_distances(self.measured),
            self.cut,
            healed,
            pruned_scores,
            is_own=is_own,
        )

    def content(self) -> dict:
        """The description as content of a JSON file."""
        safe = self.safe and cut_as_json(self.safe)
        return {
            "model": self.model,
            "layers": self.layers,
            "cut": cut_as_json(self.cut),
            "kept": self.cut.kept(self.layers),
            "engines": [item._asdict() | {"nearest_safe": safe} for item in self.engines],
            "scores": [vars(score) for score in self.scores],
            "ruins": [score.topic for score in self.scores if score.ruined],
        }


def describe_limit(score: "Score") -> str:
    """How many layers, of the sizes that were measured, do not ruin a task, and how many do."""
    text = f"largest measured n that keeps it: {score.largest}"
    if score.smallest is None:
        return text
    least = (score.largest or 0) + 1
    first = f"{score.smallest}" if least == score.smallest else f"{least} to {score.smallest}"
    return f"{text}, and it is ruined from {first} on"


def describe_pruning(
    model: str,
    config: dict,
    layers: int,
    cut: Cut,
    results_folder: Path | None = None,
    known: bool = True,
    **opening,
) -> PruningDescription:
    """Describe a model of so many layers after a cut, before it is written.

    `config` is its `read_raw_config`, `opening` is for `find_model`. `known` asks for results; they describe a cut that
    changes no other weights. Weights are read for their hash only where results hold a model of this name.
    """
    misreadings = find_misreadings(config, cut)
    name = models.model_name(model)
    measured = []
    scores = []
    safe = find_nearest_safe(config, cut) if misreadings and cut.is_block else None
    if known and (is_gguf_model(model) or results.read_results(results_folder, model=name)):
        key = models.find_model(model, **opening).key
        # not that of the file
        key["name"] = name = results.find_model_name(key["weights"], results_folder) or name
        measured = [
            result
            for result in results.read_results(results_folder, model=name)
            if result.key["model"] == key
        ]
    if measured:
        from deeper_layers_companion.report import one_cut  # slow

        scores = one_cut.find_scores(tabulate_scores(measured), cut)
    return PruningDescription(name, layers, cut, misreadings, safe, measured, scores)


@dataclass(frozen=True)
class Output:
    """Where a pruned model is written, and in which format."""

    path: Path  # a GGUF file if it ends in .gguf, which can only be made of a GGUF file; else a folder
    dtype: str = "auto"  # of a folder, like mtp and silence: see `slice_checkpoint`
    type: str | None = None  # of the matrices of a GGUF file: see `slice_gguf`
    mtp: bool = True
    silence: bool = False
    healed: bool = False  # adapters will be added to the weights

    @property
    def is_gguf(self) -> bool:
        return is_gguf(self.path)

    def check(self, model: str, *, changes: bool = False) -> None:
        """Raise InputError where the path can't be written, or the format is impossible for the model; `changes` says
        whether a rule changes weights."""
        is_wrong_gguf = self.is_gguf and (
            changes or self.dtype != "auto" or not is_gguf_model(model)
        )
        if is_wrong_gguf or self.type and not self.is_gguf:
            raise InputError(
                f"OUT is {str(self.path)!r}: what ends in .gguf is made of a GGUF file alone, whose weights no rule "
                "changes, in a --type; a folder is made of any model, in a --dtype, and llama.cpp's "
                "convert_hf_to_gguf.py makes a GGUF file of it"
            )
        checks.check_new_folder("the folder of OUT", self.path.parent, writable=True)
        files.check_absent(self.path)

    def check_sublayers(self, what: str) -> None:
        """Raise InputError where a cut of sublayers can't be written or healed; `what` begins the message."""
        if self.healed or self.is_gguf or not self.silence:
            raise InputError(
                f"{what}: no configuration, no GGUF file and no adapters are of a layer without one of its sublayers; "
                "--silence writes zeros into a folder where they end, which saves no memory"
            )

    def size_function(self, source: Source) -> Callable[[Cut], tuple[int, str]]:
        """A function from a cut to the bytes of weights that are written, with headers, and their type.

        For a model that is not on this machine the bytes follow from its parameters, and are approximate. Files that
        llama.cpp's quantizer rounds are counted before rounding. This method and the function raise InputError.
        """
        packaged = models.PACKAGED.get(source.folder)
        if self.is_gguf:
            from deeper_layers.export.gguf_files import find_gguf_file, plan_gguf  # slow
            from deeper_layers.models.gguf_reading import read_gguf

            exact = None if self.type in ROUNDED_TYPES else self.type
            kind = (exact or source.quantized) + f", then rounded to {self.type}" * (
                self.type != exact
            )
            if not packaged or packaged.path.is_file():
                header = read_gguf(find_gguf_file(source))
                return lambda cut: (
                    plan_gguf(source, header, cut, exact, healed=self.healed).bytes,
                    kind,
                )
            width = BYTES_PER_WEIGHT[exact] if exact else packaged.bytes / packaged.parameters
        else:
            from deeper_layers.export.slicing import build_size_function  # slow
            from deeper_layers.models.gguf_reading import conversion_folder

            folder = conversion_folder(source.weights) if source.is_gguf else Path(source.folder)
            if folder.is_dir():
                return build_size_function(
                    folder, self.dtype, dequantized=source.is_gguf, mtp=self.mtp
                )
            stored = {"F16": "float16", "BF16": "bfloat16"}.get(source.quantized, source.dtype)
            kind = stored if self.dtype == "auto" else self.dtype
            width = BYTES_PER_WEIGHT[kind]
        sizes = models.find_sizes(source)
        return lambda cut: (round(sizes.parameters(cut) * width), kind)

    def describe_growth(self, source: Source, cut: Cut) -> str:
        """How large a folder will be that is made of a GGUF file, beside the file, and what makes it small."""
        from deeper_layers.export.gguf_files import find_gguf_file  # slow

        written, kind = self.size_function(source)(cut)
        stored = find_gguf_file(source).stat().st_size
        advice = f"an OUT that ends in .gguf keeps the file's {source.quantized}"
        if self.dtype == "auto" and "F32" in kind.upper().replace("FLOAT", "F"):
            advice = f"--dtype bfloat16 halves that, and {advice}"
        return (
            f"{self.path} will hold {written / 1e6:,.0f} MB of weights in {kind}, made of a file of "
            f"{stored / 1e6:,.0f} MB: {advice}"
        )

    def fit_cut(self, source: Source, size: str, choose: Callable[[int], Cut]) -> Cut:
        """The smallest cut whose output fits into a size (see `read_size`); `choose` returns a rule's cut of so many
        layers. Raises InputError where not even the smallest model fits."""
        limit, in_file = read_size(size)
        if in_file and self.type in ROUNDED_TYPES:
            raise InputError(
                f"type is {self.type}, and how large llama.cpp makes a file is not known: give q8_0"
            )
        measure_size = self.size_function(source) if in_file else lambda cut: (parameters(cut), "")
        parameters = models.find_sizes(source).parameters
        reason = "the smallest is larger"
        for number in range(source.num_layers):
            try:
                if measure_size(cut := choose(number))[0] <= limit:
                    return cut
            except NotMeasuredError:
                raise
            except InputError as error:  # the rule or the format can't drop so many layers
                reason = error
        raise InputError(
            f"no cut of {source.name} fits into {size} ({reason}): give a larger size or type"
        )


def prune_checkpoint(
    model: str,
    described: PruningDescription,
    output: Output,
    *,
    adapter: Path | None = None,
    changed: "Changed | None" = None,
    settings: Sequence[str] = (),
    **opening,
) -> Path:
    """Write a pruned model as described, and return its path. A folder's model card has the scores and the command, in
    which `settings` are further options."""
    cut = described.cut
    out = output.path
    options: dict = {"adapter": adapter}
    if output.is_gguf:
        return export.slice_gguf(model, cut, out, type=output.type, **options)
    adapters = export.read_adapter(adapter) if adapter else None
    # the command as others can type it: with the cut or the rule, and placeholders for paths
    cut_words = (
        ["--start", str(cut.start), "--drop", str(cut.size)] if cut.is_block else layer_options(cut)
    )
    if changed:
        cut_words = ["--drop", str(cut.size), "--rule", changed.words.partition(":")[0]]
    command = [
        "deeper-layers",
        "prune",
        *name_for_others(model, **opening),
        out.name,
        *cut_words,
        *settings,
    ]
    command += ["--silence"] * output.silence
    command += ["--adapter", PLACEHOLDER + adapters.folder.name] if adapters else []
    command += ["--dtype", output.dtype] if output.dtype != "auto" else []
    command += ["--without-mtp"] * (not output.mtp)
    options |= {
        "dtype": output.dtype,
        "mtp": output.mtp,
        "silence": output.silence,
        "changed": changed,
    }
    card_options = {"card": described.card(adapters), "command": shlex.join(command)}
    return export.slice_checkpoint(model, cut, out, **options, **card_options, **opening)


def name_for_others(
    model: str, revision: str | None = None, trust_remote_code: bool = False
) -> list[str]:
    """A model as words of a command that anybody can type: a hub id with its commit, or the name of a packaged model; a
    file or folder of this machine, which nobody else has, as a placeholder for its path."""
    path = checkpoint_files.local_path(model)
    if model in models.PACKAGED:
        return [model]
    code = ["--trust-remote-code"] * trust_remote_code
    if not path.exists():
        source = models.find_model(model, revision=revision, trust_remote_code=trust_remote_code)
        return [model, *(["--revision", source.revision] if source.revision else []), *code]
    if is_gguf(path):
        weights = models.find_model(model).weights
        names = [
            known.name for known in models.PACKAGED.values() if weights == f"sha256:{known.sha256}"
        ]
        return names[:1] or [PLACEHOLDER + path.name]
    return [PLACEHOLDER + models.model_name(model), *code]


def read_size(text: str) -> tuple[float, bool]:
    """A size like "400MB" or "1.5 GiB" in bytes, or like "300M" or "1.1B" in parameters; and whether it is in bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    number, unit = (float(match[1]), match[2].upper()) if match else (0, "")
    if not number or unit not in BYTE_UNITS | PARAMETER_UNITS:
        raise InputError(
            f"to_size is {text!r:.40}, expected bytes as 400MB or 1.5GB, or parameters as 300M or 1.1B"
        )
    return number * (BYTE_UNITS | PARAMETER_UNITS)[unit], unit in BYTE_UNITS


def is_gguf_model(model: str) -> bool:
    """Whether a model is a GGUF file, by its path or as a packaged model."""
    return model in models.PACKAGED or is_gguf(model)


def cut_as_json(cut: Cut) -> dict:
    """A cut for scripts: a block by start and size, any other cut also by its layers and sublayers."""
    return {"start": cut.start, "size": cut.size} | ({} if cut.is_block else cut.parts)


def layer_options(cut: Cut) -> list[str]:
    """A cut as options of the command, layer by layer: ["--layers", "3,7-9", "--mlp", "12"]."""
    words = []
    for name, indices in cut.parts.items():
        parts = [
            str(start) if stop - start == 1 else f"{start}-{stop - 1}"
            for start, stop in find_ranges(indices)
        ]
        words += [f"--{name}", ",".join(parts)] if parts else []
    return words
