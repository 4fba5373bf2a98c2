"""A job: one measurement as data. Keys of results are built in this file and nowhere else.

A key is all that determines the numbers of a result and nothing else: literals, no path and no device. The fingerprint
of the data is added by session.py, which can read them.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deeper_layers import data
from deeper_layers.cuts import UNPRUNED, Cut
from deeper_layers.models.sources import DTYPES, Source
from deeper_layers.presets import HealingConfig
from deeper_layers_companion.jobs.options import (
    BITSANDBYTES,
    CutsByRule,
    HealingParameters,
    Parameters,
    TaskParameters,
)
from deeper_layers_companion.jobs.until import Until
from deeper_layers_companion.results.schema import GIVEN
from deeper_layers_companion.rules.table import DESCRIBED

# compared rules are calibrated on this split, and losses are of another
CALIBRATION: dict = {"split": "train"}
# what determines the sequences of the distances
SEQUENCES = (
    "corpus",
    "samples",
    "sequence_length",
    "seed",
)
USUAL_LENGTH = 256  # tokens of a sequence on which a loss is measured
TOKENS_OF_A_DOCUMENT = (
    200  # the least average; it says how many documents are read for a number of tokens
)
ORDER_SEED = 0  # of the random order in which items are asked where asking may stop early
# to files for llama.cpp
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Water is made of",
)
ANSWER_TOKENS = 24  # of each answer to them


class Data(NamedTuple):
    """Names data that a measurement reads: the items of a task, or documents of a corpus."""

    name: str
    part: dict = {}  # for a corpus: split and documents, arguments of `deeper_layers.data.texts`

    def fingerprint(self, datasets: str | None) -> str:
        """A text that changes when the data change."""
        if self.name in data.CORPORA:
            return data.text_fingerprint(self.name, datasets=datasets, **self.part)
        # lm-eval is slow to import, and not needed for these
        if self.name in data.embedded_tasks():
            return data.embedded_fingerprint(self.name)
        from deeper_layers import sweeping

        return sweeping.data_fingerprint(self.name, datasets)


@dataclass(frozen=True)
class Job:
    """One measurement: the kind of its result, its key, the data that it reads, the jobs whose results it reads, and
    until when items are asked, where that is not until the last one."""

    kind: str  # one of `schema.KINDS`
    key: dict
    reads: tuple[Data, ...] = ()
    needs: tuple["Job", ...] = ()
    until: Until | None = None

    @property
    def form(self) -> str:
        """Which measurement of its kind it is."""
        if self.kind != "scores":
            return self.kind
        if self.until is not None:
            return "until"
        marks = {"choice": "choice", "prompts": "file", "bits": "rounded", "healing": "healed"}
        marks |= {"calibration": "changed", "seed": "search", "map": "mapped"}
        return next((form for mark, form in marks.items() if mark in self.key), "scores")

    @property
    def identity(self) -> str:
        """The same text for the same measurement."""
        return json.dumps([self.kind, self.key], sort_keys=True)

    @property
    def cuts(self) -> list[Cut]:
        """The distinct cuts in its key, sorted."""
        names = list(itertools.chain.from_iterable(self.key.get("cuts", {}).values()))
        names += [self.key["cut"]] if "cut" in self.key else []
        if "choice" in self.key:
            choice = self.key["choice"]
            names = [cut.name for cut in list_unknown_cuts(choice["rule"], choice["sizes"])]
        return sorted({read_cut(name) for name in names}, key=dataclasses.astuple)


# ---- cuts that are not known yet ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnknownCut(Cut):  # ty: ignore[subclass-of-dataclass-with-order]  # cuts are sorted by their fields
    """A placeholder in a plan, where the inputs of a rule are not measured yet. It shares no work with other cuts."""

    rule: str = ""

    @property
    def name(self) -> str:
        return f"{self.rule} {self.size}"

    def runs(self, layer: int) -> str | None:
        return None if layer in self.dropped else self.name


def list_unknown_cuts(rule: str, sizes: Iterable[int]) -> list[Cut]:
    """The placeholders, in a plan, for the cuts of a rule; size 0 is the whole model."""
    return [UnknownCut(0, size, rule=rule) if size else UNPRUNED for size in sizes]


def read_cut(name: str) -> Cut:
    """The cut of a name in a key, or its placeholder."""
    rule, _, size = name.rpartition(" ")
    return UnknownCut(0, int(size), rule=rule) if rule in DESCRIBED else Cut.named(name)


# ---- parts of keys -----------------------------------------------------------------------------------------------


def _make(
    kind: str,
    source: Source,
    settings: dict,
    reads: Iterable[Data],
    needs: Iterable[Job] = (),
    cuts: CutsByRule | None = None,
) -> Job:
    key = {"model": source.key, "dtype": source.dtype} | settings
    if cuts is not None:
        key["cuts"] = {}
        for rule, rule_cuts in cuts.items():
            key["cuts"][rule] = [cut.name for cut in rule_cuts]
    return Job(kind, key, tuple(reads), tuple(needs))


def _describe_tasks(
    names: Iterable[str], options: TaskParameters, prompt: dict | None = None
) -> dict[str, dict]:
    """The settings of each text, its "limit" of sequences and their "length"; and of each task, its "shots" and the
    "limit" of items, under the prompt if one is given."""
    settings: dict[str, dict] = {}
    for name in names:
        if name in options.texts:
            settings[name] = options.texts[name]
        else:
            asked = options.parsed_tasks[name]
            settings[name] = {"shots": asked["shots"], "limit": asked["limit"]} | (prompt or {})
    return settings


def list_data(tasks: dict[str, dict]) -> list[Data]:
    """The data that are read for these settings of a key: texts first, then tasks by name."""
    texts = [
        Data(
            name,
            {"split": "validation"} if settings["length"] else {"documents": settings["limit"]},
        )
        for name, settings in tasks.items()
        if "length" in settings
    ]
    return texts + [Data(name) for name in sorted(tasks) if "length" not in tasks[name]]


def describe_calibration(options: Parameters) -> dict:
    """The settings that determine the text on which rules are calibrated, and bridges are fitted."""
    settings = options.model_dump(
        include={*SEQUENCES, "calibration_sequences", "bridge_sequences", "loss_length"}
    )
    # keys in results without a length are of the usual one
    if settings["loss_length"] == USUAL_LENGTH:
        del settings["loss_length"]
    return settings


# ---- one function for each form ----------------------------------------------------------------------------------


def distances_job(source: Source, options: Parameters, *, by_sequence: bool = False) -> Job:
    """The distances of a model, averaged over sequences; `by_sequence` also keeps the distances of every sequence."""
    settings = options.model_dump(include={"quantization", *SEQUENCES}) | (
        {"by_sequence": True} if by_sequence else {}
    )
    return _make("distances", source, settings, [Data(options.corpus)])


def geometry_job(source: Source, options: Parameters) -> Job:
    """The geometry of a model's residuals, on the sequences of its distances."""
    settings = options.model_dump(
        include={"quantization", *SEQUENCES, "tokens", "neighbours", "skip_sequences"}
    )
    return _make("geometry", source, settings, [Data(options.corpus)])


def scores_job(
    source: Source,
    options: TaskParameters,
    names: Iterable[str],
    cuts_by_rule: CutsByRule,
    prompt: dict | None = None,
) -> Job:
    """Tasks, groups and texts under the cuts of each rule. `prompt`: the number ("shots") and "order" of the examples
    in the prompt, if not the usual ones: compared prompts are asked all items. Where asking may stop early, of one
    task: its items are in a random order, and their number is not in the key."""
    names = list(names)
    tasks = _describe_tasks(names, options, prompt)
    until = options.find_until(names[0]) if len(names) == 1 and prompt is None else None
    if until is not None:
        tasks[names[0]] |= {"limit": None, "seed": ORDER_SEED}
    settings = {"quantization": options.quantization, "tasks": tasks}
    job = _make("scores", source, settings, list_data(tasks), cuts=cuts_by_rule)
    return dataclasses.replace(job, until=until)


def search_job(source: Source, options: Parameters, cuts: list[Cut]) -> Job:
    """One step of a search by loss: the losses of its candidates on the sequences of the distances."""
    tasks = {options.corpus: {"limit": options.samples, "length": options.sequence_length}}
    settings = {"quantization": options.quantization, "seed": options.seed, "tasks": tasks}
    return _make("scores", source, settings, [Data(options.corpus)], cuts={GIVEN: cuts})


def choice_job(source: Source, options: TaskParameters, rule: str, sizes: Sequence[int]) -> Job:
    """The cuts of a rule, one for each size, and the losses of the pruned models on the texts of the options."""
    choice = {"rule": rule, "sizes": sizes, "calibration": describe_calibration(options)}
    settings = {"quantization": options.quantization, "tasks": options.texts, "choice": choice}
    reads = [Data(options.corpus, CALIBRATION), *list_data(options.texts)]
    needs = [distances_job(source, options)] if DESCRIBED[rule].needs == "distances" else []
    return _make("scores", source, settings, reads, needs)


def chosen_job(
    source: Source, options: TaskParameters, task: str, cuts: list[Cut], choice: Job
) -> Job:
    """A task under the cuts that a `choice_job` chose. Where the rule changes weights, so does its calibration."""
    rule = choice.key["choice"]["rule"]
    job = scores_job(source, options, [task], {rule: cuts})
    key = job.key
    reads = job.reads
    if DESCRIBED[rule].changes:
        key = key | {"calibration": describe_calibration(options)}
        reads = (Data(options.corpus, CALIBRATION), *reads)
    return Job("scores", key, reads, (choice,))


def mapped_job(
    source: Source,
    options: TaskParameters,
    task: str,
    rule: str,
    cuts: list[Cut],
    fitting: dict[str, int | str],
) -> Job:
    """A task with a map in the place of the last layers. `rule` says how the map is fitted, `fitting` on what text."""
    job = scores_job(source, options, [task], {rule: cuts})
    return Job(
        "scores", job.key | {"map": fitting}, (Data(options.corpus, CALIBRATION), *job.reads)
    )


def healing_job(
    source: Source, cut: Cut, config: HealingConfig, text: str, quantization: str | None
) -> Job:
    """The training of a pruned model; `quantization` is that of the opened model."""
    settings = {
        "quantization": quantization,
        "healing": config.settings,
        "text": text,
        "cut": cut.name,
    }
    documents = max(1000, config.tokens // TOKENS_OF_A_DOCUMENT)
    return _make(
        "healing", source, settings, [Data(text, {"split": "train", "documents": documents})]
    )


def healed_job(
    source: Source,
    options: HealingParameters,
    cut: Cut,
    config: HealingConfig,
    rules: Sequence[str] = (GIVEN,),
) -> Job:
    """The scores and losses of a healed model; `rules` are those that choose the cut."""
    healing = healing_job(source, cut, config, options.text, options.quantization)
    tasks = _describe_tasks([*options.texts, *options.task_list], options)
    settings = {name: healing.key[name] for name in ("quantization", "healing", "text")}
    settings |= {"tasks": tasks}
    cuts = {rule: [cut] for rule in rules}
    return _make("scores", source, settings, [*healing.reads, *list_data(tasks)], [healing], cuts)


def rounded_job(
    source: Source, options: TaskParameters, bits: str, cuts_by_rule: CutsByRule
) -> Job:
    """The scores and bytes of pruned models in one type of weights.

    `bits` is a data type ("bfloat16"), a quantization of bitsandbytes ("int8", "nf4"), which computes in bfloat16, or
    a type of llama.cpp's quantizer ("Q8_0", "Q2_K"), dequantized to float32 for the answers.
    """
    dtype = "bfloat16" if bits in BITSANDBYTES else "float32"
    source = dataclasses.replace(source, dtype=bits if bits in DTYPES else dtype)
    tasks = _describe_tasks(options.task_list, options)
    return _make(
        "scores", source, {"tasks": tasks, "bits": bits}, list_data(tasks), cuts=cuts_by_rule
    )


def file_job(
    source: Source,
    options: TaskParameters,
    rule: str,
    cut: Cut,
    *,
    config: HealingConfig,
    text: str,
    bits: str,
) -> Job:
    """One GGUF file on its way to llama.cpp: sliced, healed on a text in bfloat16, and rounded; see take_away.py."""
    source = dataclasses.replace(source, dtype="bfloat16")
    tasks = _describe_tasks(options.task_list, options)
    settings = {
        "tasks": tasks,
        "healing": config.settings,
        "text": text,
        "bits": bits,
        "prompts": list(PROMPTS),
        "answer_tokens": ANSWER_TOKENS,
    }
    reads = [Data(text, {"split": "train"}), *list_data(tasks)]
    needs = [healing_job(source, cut, config, text, None)]
    return _make("scores", source, settings, reads, needs, {rule: [UNPRUNED, cut]})
