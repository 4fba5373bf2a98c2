"""Scans as rows to be drawn: what is kept, or what the loss rises by, under each cut, with 95% intervals.

Columns panel and line (where a row is drawn), size, start, at (its place along the axis), value, low, high, items and
metric: those of `Picture.accuracy`.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from deeper_layers.cuts import Cut
from deeper_layers.report.questions.dissociation import (
    BESIDE,
    FORMS,
    QUESTIONS,
    SIZE,
    Kept,
    interval,
    kept,
    scans,
    unknown_in_sweeps,
)
from deeper_layers.report.questions.early_cliff import letters_and_words
from deeper_layers.report.statistics import curves
from deeper_layers.report.statistics.outcomes import in_runs
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.results.units import Unit
from deeper_layers.rules.choosing import measured_cuts

COLUMNS = ["panel", "line", "size", "start", "at", "value", "low", "high", "items", "metric"]
KEPT = "share kept"


def kept_by_start(units: Iterable[Unit]) -> tuple[pd.DataFrame, list[str]]:
    """What every block keeps of what a model knows, a panel a task, a line a model; and what no model can show."""
    rows, cannot = [], []
    for model, of_model in scans(units).items():
        for task, unit in of_model.items():
            if unit.kind != "scan" or task not in FORMS:
                continue
            one = kept(unit, FORMS[task])
            if not one.known:
                cannot.append(f"{curves.title(task)} ({model})")
                continue
            layers = unit.details["num_layers"]
            rows += _rows(task, model, one.cuts[1:], one.shares[:, 1:], one, lambda cut, L=layers: cut.start / L)
    return pd.DataFrame(rows, columns=COLUMNS), cannot


def not_scanned(units: Iterable[Unit]) -> list[str]:
    """Blocks that scans lack, in words: the criterion asks that every one be shown."""
    found: dict[tuple[str, str], list[str]] = {}
    for model, of_model in scans(units).items():
        for task, unit in of_model.items():
            starts = {start for start, size in unit.key["cuts"] if size == SIZE}
            if lacking := set(range(unit.details["num_layers"] - SIZE + 1)) - starts:
                found.setdefault((model, in_runs(lacking)), []).append(curves.title(task))
    return [f"{model}, without {SIZE} layers from {at}: {', '.join(tasks)}" for (model, at), tasks in found.items()]


def not_asked(units: Iterable[Unit]) -> tuple[list[str], list[str]]:
    """Of what the criterion puts beside its verdicts: what no scan has asked, and what a sweep says can't be shown."""
    lacking, cannot, units = [], [], list(units)
    for model, of_model in scans(units).items():
        for task, form in BESIDE.items():
            if task not in of_model:
                (cannot if unknown_in_sweeps(units, model, [form]) else lacking).append(
                    f"{curves.title(task)} ({model})"
                )
    return lacking, cannot


def differences_by_start(able: dict[tuple[str, str], tuple[Kept, Kept, int]]) -> pd.DataFrame:
    """D of every block, a panel a set of questions, a line a model, where `dissociation.pairs` found both able."""
    rows = []
    for (model, questions), (letters, words, layers) in able.items():
        cuts = [cut for cut in letters.cuts[1:] if cut in words.cuts]
        both = letters.at(cuts) - words.at(cuts)
        rows += _rows(questions, model, cuts, both, letters, lambda cut, L=layers: cut.start / L)
    return pd.DataFrame(rows, columns=COLUMNS)


def without_the_last(able: dict[tuple[str, str], tuple[Kept, Kept, int]]) -> list[str]:
    """What is kept of both forms without the last SIZE layers, in words with 95% intervals: no D counts that block."""
    said = []
    for (model, questions), (letters, words, layers) in able.items():
        last = Cut(layers - SIZE, SIZE)
        if last in letters.cuts and last in words.cuts:
            both = (interval(form.at([last])[:, 0], 1) for form in (letters, words))
            of_letters, of_words = (f"{value:.2f} ({low:.2f} to {high:.2f})" for value, low, high in both)
            said.append(f"{questions} ({model}), {of_letters} of the letters and {of_words} of the words")
    return said


def rises_by_start(units: Iterable[Unit]) -> pd.DataFrame:
    """By how much the loss of every block rises, nats a token, a panel a text, a line a model."""
    rows = []
    for model, of_model in scans(units).items():
        for text, unit in of_model.items():
            if unit.kind != "blocks":
                continue
            by_cut = {name: np.array(losses) for name, losses in unit.details["by_sequence"].items()}
            for start, size in unit.key["cuts"]:
                if size == SIZE:
                    rise = paired_interval(by_cut[f"{start},{size}"] - by_cut["0,0"], shares=False)
                    at = start / unit.details["num_layers"]
                    rows.append((text, model, size, start, at, *rise, len(by_cut["0,0"]), "rise"))
    return pd.DataFrame(rows, columns=COLUMNS)


def kept_by_size(of_model: dict[str, Unit]) -> pd.DataFrame:
    """What both forms of MMLU keep against the layers dropped, of one model, a panel a rule, a line a form.

    Letters are calibrated where the log-probability of each was kept.
    """
    rows = []
    form, _ = QUESTIONS["MMLU"]
    unit = of_model[form.task]
    letters, words = letters_and_words(of_model)
    lines = {"letters": letters, "words (cloze)": words}
    if unit.kind != "sweep":
        lines["letters, calibrated"] = kept(unit, form, without_bias=True)
    layers, rules = unit.details["num_layers"], unit.key["rule"].split(", ")
    shared = [cut for cut in letters.cuts if cut in words.cuts]
    for line, one in lines.items():
        for rule, cuts in measured_cuts(rules, shared, layers).items():
            rows += _rows(rule, line, cuts, one.at(cuts), one, lambda cut: cut.size)
    return pd.DataFrame(rows, columns=COLUMNS)


def forms_by_size(of_model: dict[str, Unit]) -> pd.DataFrame:
    """Both forms of MMLU under every cut of each rule, of one model.

    Columns rule, n, start, letters and words (accuracies), and kept: what is kept of letters less that of words, with
    its 95% interval over questions, in words.
    """
    unit = of_model[QUESTIONS["MMLU"][0].task]
    letters, words = letters_and_words(of_model)
    shared = [cut for cut in letters.cuts if cut in words.cuts]
    rows = []
    for rule, cuts in measured_cuts(unit.key["rule"].split(", "), shared, unit.details["num_layers"]).items():
        for cut, drawn in zip(cuts, (letters.at(cuts) - words.at(cuts)).T, strict=True):
            right = (float(one.right[one.cuts.index(cut)].mean()) for one in (letters, words))
            value, low, high = interval(drawn, 1)
            kept_less = f"{value:+.2f} ({low:+.2f} to {high:+.2f})" if cut.size else ""
            rows.append((rule, cut.size, cut.start if cut.size else None, *right, kept_less))
    return pd.DataFrame(rows, columns=["rule", "n", "start", "letters", "words", "kept"]).astype({"start": "Int64"})


def _rows(panel: str, line: str, cuts: Sequence[Cut], found: Float[np.ndarray, "R C"], one: Kept, at) -> list[tuple]:
    return [
        (panel, line, cut.size, cut.start, at(cut), *interval(of_cut, 1), one.right.shape[1], KEPT)
        for cut, of_cut in zip(cuts, found.T, strict=True)
    ]
