"""Prune a model on disk as the command does: what is known of a cut before it is made, how large it gets, the files,
and their upload to the hub.
"""

import contextlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeper_layers import checks, files, models, results
from deeper_layers.cuts import Cut, ranges
from deeper_layers.errors import InputError, NotMeasuredError, telling
from deeper_layers.export.engines import Misreading, find_misreadings, find_nearest_safe
from deeper_layers.export.llama_cpp import ROUNDED_TYPES
from deeper_layers.models.checkpoint_files import is_gguf
from deeper_layers.models.sources import Source
from deeper_layers.results.frames import tabulate_distances, tabulate_scores
from deeper_layers.results.store import Result

if TYPE_CHECKING:  # slow
    from deeper_layers.export.adapter_files import Adapter
    from deeper_layers.export.tensors import Changed
    from deeper_layers.report.one_cut import Score

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "f32": 4, "f16": 2, "q8_0": 34 / 32}  # bytes a weight, or nearly
BYTES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
ADVICE = "check the name, the token's rights and the connection"
PARAMETERS = {"K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class PruningDescription:
    """What is known of a model without the layers of a cut, before it is made."""

    model: str  # its name in results
    layers: int  # L
    cut: Cut
    engines: list[Misreading]  # which would take kept layers for others
    safe: Cut | None  # the nearest block that every engine reads rightly; None where the cut is one, or none is known
    held: list[Result]  # all that results hold of the model
    scores: "list[Score]"  # what they say of the cut, task by task

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
        lines = [
            f"  {score.asked}: whole model {score.whole[0]:.2f}, this cut {score.left[0]:.2f}, guessing "
            f"{score.guessing:.2f}; largest n that does not: {score.largest}"
            for score in self.scores
            if score.ruined
        ]
        known = sum(score.largest is not None for score in self.scores)
        first = (
            f"results say that this cut, not healed, ruins {len(lines)} of {known} tasks that the whole model can do: "
            "surely less than half of what it scores above guessing is left"
        )
        return "\n".join([first, *lines]) if lines else None

    def card(self, adapter: "Adapter | None" = None) -> str:
        """What results say of the cut, healed with these adapters, in Markdown, for the model card."""
        if not self.held:
            return ""
        from deeper_layers.report import one_cut  # slow

        scores, healed = tabulate_scores(self.held), None
        if adapter and adapter.healing:
            found = one_cut.healed_alike(scores, self.cut, adapter.healing["config"], adapter.healing["text"])
            healed = None if found.empty else found
        known = self.scores if healed is None else None
        return one_cut.card_text(scores, tabulate_distances(self.held), self.cut, healed, known)

    def content(self) -> dict:
        """All of it for JSON."""
        safe = self.safe and cut_as_json(self.safe)
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
    model: str, config: dict, layers: int, cut: Cut, results_folder: Path | None = None, known: bool = True, **opening
) -> PruningDescription:
    """What is known of a model of so many layers without those of a cut, before it is made.

    `config` is its `stated_config`, `opening` is for `find_model`. Results are asked where `known` says so: they are of
    weights as they were. These are read for their hash only where results hold a model of this name.
    """
    wrong, name, held, scores = find_misreadings(config, cut), models.model_name(model), [], []
    safe = find_nearest_safe(config, cut) if wrong and cut.is_block else None
    if known and (is_gguf_model(model) or results.all_results(results_folder, model=name)):
        key = models.find_model(model, **opening).key
        key["name"] = name = results.find_model_name(key["weights"], results_folder) or name  # not that of the file
        held = [one for one in results.all_results(results_folder, model=name) if one.key["model"] == key]
    if held:
        from deeper_layers.report import one_cut  # slow

        scores = one_cut.find_scores(tabulate_scores(held), cut)
    return PruningDescription(name, layers, cut, wrong, safe, held, scores)


@dataclass(frozen=True)
class Output:
    """What is written of a model without some of its layers, and where.

    Attributes:
        path: a GGUF file where it ends in .gguf, which has to be made of one, else a folder.
        dtype, mtp, silence: of a folder; see `slice_checkpoint`.
        type: of the matrices of a GGUF file; see `slice_gguf`.
        overwrite: there may be what was written here, and nobody changed since.
        healed: adapters will be added to the weights.
    """

    path: Path
    dtype: str = "auto"
    type: str | None = None
    mtp: bool = True
    silence: bool = False
    overwrite: bool = False
    healed: bool = False

    @property
    def is_gguf(self) -> bool:
        return is_gguf(self.path)

    def check(self, model: str, *, changes: bool = False) -> None:
        """Raise InputError where it can't be written, or is not to be had of a model, some of whose weights a rule
        `changes`."""
        from deeper_layers import export  # slow, one of its checks

        asked_of_files = self.is_gguf and (changes or self.dtype != "auto" or not is_gguf_model(model))
        if asked_of_files or self.type and not self.is_gguf:
            raise InputError(
                f"OUT is {str(self.path)!r}: what ends in .gguf is made of a GGUF file alone, whose weights no rule "
                "changes, in a --type; a folder is made of any model, in a --dtype, and llama.cpp's "
                "convert_hf_to_gguf.py makes a GGUF file of it"
            )
        checks.new_folder("the folder of OUT", self.path.parent, writable=True)
        ours = export.check_our_gguf if self.is_gguf else export.check_our_folder
        (ours if self.overwrite else files.check_absent)(self.path)

    def check_sublayers(self, what: str) -> None:
        """Raise InputError where what drops sublayers can't be written or healed; `what` begins the message."""
        if self.healed or self.is_gguf or not self.silence:
            raise InputError(
                f"{what}: no configuration, no GGUF file and no adapters are of a layer without one of its sublayers; "
                "--silence writes zeros into a folder where they end, which saves no memory"
            )

    def sizes(self, source: Source) -> Callable[[Cut], tuple[int, str]]:
        """What says of a cut how many bytes of weights are written, headers included, and in which type.

        Where the model is not on this machine it is about, by its parameters. What llama.cpp's quantizer rounds is
        counted as it is before that. Either raises InputError.
        """
        packaged = models.PACKAGED.get(source.folder)
        if self.is_gguf:
            from deeper_layers.export.gguf_files import find_gguf_file, plan_gguf  # slow
            from deeper_layers.models.gguf_reading import read_gguf

            exact = None if self.type in ROUNDED_TYPES else self.type
            kind = (exact or source.quantized) + f", then rounded to {self.type}" * (self.type != exact)
            if not packaged or packaged.path.is_file():
                header = read_gguf(find_gguf_file(source))
                return lambda cut: (plan_gguf(source, header, cut, exact, healed=self.healed).bytes, kind)
            width = WIDTHS[exact] if exact else packaged.bytes / packaged.parameters
        else:
            from deeper_layers.export.slicing import weights_written  # slow
            from deeper_layers.models.gguf_reading import conversion_of

            folder = conversion_of(source.weights) if source.is_gguf else Path(source.folder)
            if folder.is_dir():
                return weights_written(folder, self.dtype, dequantized=source.is_gguf, mtp=self.mtp)
            kind = {"F16": "float16", "BF16": "bfloat16"}.get(source.quantized, source.dtype)
            kind = kind if self.dtype == "auto" else self.dtype
            width = WIDTHS[kind]
        sizes = models.sizes_of(source)
        return lambda cut: (round(sizes.parameters(cut) * width), kind)

    def fit(self, source: Source, size: str, choose: Callable[[int], Cut]) -> Cut:
        """The smallest cut with which what is written fits into a size (`read_size`); `choose` gives a rule's cut of so
        many layers. Raises InputError where not even the smallest model fits."""
        most, in_file = read_size(size)
        if in_file and self.type in ROUNDED_TYPES:
            raise InputError(f"type is {self.type}, and how large llama.cpp makes a file is not known: give q8_0")
        taken = self.sizes(source) if in_file else lambda cut: (parameters(cut), "")
        parameters, last = models.sizes_of(source).parameters, "the smallest is larger"
        for number in range(source.num_layers):
            try:
                if taken(cut := choose(number))[0] <= most:
                    return cut
            except NotMeasuredError:
                raise
            except InputError as error:  # a number of layers that this rule or format can't drop
                last = error
        raise InputError(f"no cut of {source.name} fits into {size} ({last}): give a larger size or type")


def prune_checkpoint(
    model: str,
    described: PruningDescription,
    output: Output,
    *,
    adapter: Path | None = None,
    changed: "Changed | None" = None,
    name: str | None = None,
    **opening,
) -> Path:
    """Write what was described of a model, in a folder with a card of what results say and the command; its path."""
    from deeper_layers import export  # slow

    cut, out = described.cut, output.path
    how: dict = {"adapter": adapter, "overwrite": output.overwrite}
    if output.is_gguf:
        return export.slice_gguf(model, cut, out, type=output.type, **how)
    added = export.read_adapter(adapter) if adapter else None
    # the command as anyone else would type it: the cut by its place, or by a rule, and no path of this machine
    place = ["--start", str(cut.start), "--drop", str(cut.size)] if cut.is_block else typed_lists(cut)
    if changed:
        place = ["--drop", str(cut.size), "--rule", changed.words.partition(":")[0]]
    words = ["deeper-layers", "prune", described.model, out.name, *place, *["--silence"] * output.silence]
    words += ["--adapter", added.folder.name] if added else []
    words += ["--dtype", output.dtype] if output.dtype != "auto" else []
    words += ["--without-mtp"] * (not output.mtp)
    how |= {"dtype": output.dtype, "mtp": output.mtp, "silence": output.silence, "changed": changed}
    told = {"card": described.card(added), "command": shlex.join(words), "name": name or out.name}
    return export.slice_checkpoint(model, cut, out, **how, **told, **opening)


def read_size(text: str) -> tuple[float, bool]:
    """A size as "400MB" or "1.5 GiB", in bytes, or as "300M" or "1.1B", in parameters; and whether it is in bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", text, re.IGNORECASE)
    number, unit = (float(found[1]), found[2].upper()) if found else (0, "")
    if not number or unit not in BYTES | PARAMETERS:
        raise InputError(f"the size is {text!r:.40}, expected bytes as 400MB or 1.5GB, or parameters as 300M or 1.1B")
    return number * (BYTES | PARAMETERS)[unit], unit in BYTES


def is_gguf_model(model: str) -> bool:
    """Whether a model is a GGUF file, given or packaged."""
    return model in models.PACKAGED or is_gguf(model)


def cut_as_json(cut: Cut) -> dict:
    """A cut as scripts read it: a block by its place, any other with what it drops."""
    return {"start": cut.start, "size": cut.size} | ({} if cut.is_block else cut.parts)


def typed_lists(cut: Cut) -> list[str]:
    """A cut as one types it, layer by layer: ["--layers", "3,7-9", "--mlp", "12"]."""
    words = []
    for name, indices in cut.parts.items():
        parts = [str(start) if stop - start == 1 else f"{start}-{stop - 1}" for start, stop in ranges(indices)]
        words += [f"--{name}", ",".join(parts)] if parts else []
    return words


# ---- to the hub --------------------------------------------------------------------------------------------------


def check_repository(repository: str, *, public: bool) -> None:
    """Raise InputError, before anything is written, where a checkpoint can't be uploaded: the name is none, there is no
    token, the repository is public and that is not asked for, the hub does not take it or can't be reached."""
    from huggingface_hub import HfApi, get_token  # slow
    from huggingface_hub.errors import RepositoryNotFoundError

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise InputError(f"--push-to-hub is {checks.shown(repository)}, expected USER/NAME or ORGANISATION/NAME")
    if get_token() is None:
        raise InputError("--push-to-hub needs a token of the hub that may write: run `hf auth login`, or set HF_TOKEN")
    with telling(f"can't upload to {repository}", ADVICE):
        HfApi().whoami()
        with contextlib.suppress(RepositoryNotFoundError):
            if not HfApi().repo_info(repository).private and not public:
                raise ValueError("it is there and public, which --public allows")


def push(path: Path, repository: str, *, public: bool, message: str) -> str:
    """Upload a folder or a GGUF file as one commit; its address. Raises InputError where the hub does not take it."""
    from huggingface_hub import HfApi  # slow

    api = HfApi()
    with telling(f"can't upload to {repository}", f"{ADVICE}; {path} is complete, and stays"):
        api.create_repo(repository, private=not public, exist_ok=True)
        if path.is_file():
            api.upload_file(repo_id=repository, path_or_fileobj=path, path_in_repo=path.name, commit_message=message)
        else:
            api.upload_folder(repo_id=repository, folder_path=path, commit_message=message)
    return f"{api.endpoint}/{repository}"
