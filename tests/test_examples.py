"""The examples in the docstrings of the public names, and those of README, run as they are written."""

import dataclasses
import doctest
import functools
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import deeper_layers
from deeper_layers.command import main
from deeper_layers.command.group import SUBCOMMANDS
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import healings
from deeper_layers.models import opening
from deeper_layers.report import paper
from deeper_layers.report.claims.deciding import cliffs
from deeper_layers.report.questions import dissociation, early_cliff, geometry, given_back
from deeper_layers.report.questions.regret import Map, mean_regret, place, regret
from deeper_layers.report.questions.rivals import blocks_of, choices_of, points_table, regret_table
from deeper_layers.report.statistics import curves
from deeper_layers.report.statistics.evidence import by_model
from deeper_layers.report.statistics.outcomes import interval
from deeper_layers.report.statistics.significance import paired_interval
from deeper_layers.results.units import all_units
from deeper_layers.rules.choosing import cuts_of_rule
from deeper_layers.rules.similarity import distance_matrix

README = Path(__file__).resolve().parents[1] / "README.md"
# in this order: an example may go on from one before it
NAMES = [
    "InputError", "NotMeasuredError", "Cut", "simple_cut", "similarity_cut", "load_model", "decoder_layers",
    "angular_distances", "drop_layers", "silence_sublayers", "slice_checkpoint", "plan", "sweep", "heal",
    "merge_adapters",
]  # fmt: skip


@pytest.fixture(scope="module")
def names():
    """What the examples share: names that one makes are there for the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "load_model", functools.cache(opening.load_model))  # opened once for all
        try:
            opening.load_model("embedded")
        except InputError as error:
            pytest.skip(str(error))
        yield {}


def test_every_public_name_has_an_example():
    others = {"PRESETS", "HealingConfig", "Plan", "measure_distances"}  # values, and what is documented beside these
    assert set(deeper_layers.__all__) - others == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_examples_print_what_they_say(name, names):
    found = doctest.DocTestFinder(recurse=False).find(getattr(deeper_layers, name), name, globs=names)
    (test,) = [one for one in found if one.examples]
    printed = []
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        test, out=printed.append, clear_globs=False
    )
    assert not results.failed, "".join(printed)
    names.update(test.globs)


def test_readme_from_python(names):
    """README's lines, with texts; the healing for a few steps only."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    texts = ["Some words about the capitals of the world, which are many. " * 40] * 40
    found = {"texts": texts}
    exec(code.replace('PRESETS["small"]', "little"), {"little": little()} | found, found)
    assert found["merged"].config.num_hidden_layers == 26
    assert set(found["rows"]["size"]) == {0, 4}


def typed() -> list[list[str]]:
    """The lines of README's block "On your model" that begin with deeper-layers, as words."""
    (block,) = re.findall(r"## On your model\n\n```bash\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words for words in lines if words[0] == "deeper-layers"]


def test_readme_types_every_subcommand():
    assert {words[1] for words in typed()} == set(SUBCOMMANDS)


# report runs every notebook: minutes, and tests/test_command.py has it for one
@pytest.mark.parametrize("words", [words for words in typed() if words[1] != "report"], ids=" ".join)
def test_readme_commands(words, tiny_folder, tmp_path, monkeypatch):
    """Typed as they stand in a folder of one's own, on a tiny model, with data that need no hub."""
    instead = {"ORGANISATION/NAME": str(tiny_folder), "boolq, arc_easy": "capitals", "0-8": "0-2", "8": "2"}
    words = [instead.get(word, word) for word in words[1:]]
    words += ["--text", "wikipedia"] if "--heal" in words or words[0] == "heal" else []
    words += ["--steps", "1", "--loss-sequences", "2"] if words[0] == "heal" else []
    words += ["--limit", "3"] if words[0] in ("sweep", "scan", "heal") else []
    words += ["--results", "results"]
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(tiny_folder, "config.json"), tmp_path)
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()


def little():
    """The preset of README, for one step."""
    return dataclasses.replace(deeper_layers.PRESETS["small"], steps=1, warmup_steps=0, batch_sequences=2, at_once=1)


ON_ALL = {
    "block-influence", "llm-drop", "llm-drop-attention", "llm-drop-mlp", "perplexity", "perplexity-plus", "similarity",
    "simple", "taylor", "taylor-plus", "window-cosine",
}  # fmt: skip  # rules that were tried on all three models


@pytest.mark.parametrize(
    "model, verdict",
    [("Qwen2.5-Coder-1.5B-Instruct", "as good"), ("SmolLM2-135M-Instruct", "worse"), ("Gemma-3-270m", "worse")],
)
def test_readme_says_how_far_the_distance_is_from_the_best_block(model, verdict):
    """Over the sizes of 10, 20, 25 and 33% of the layers, on the page's own settings."""
    told = told_under("Which layers.")
    of_model = all_units(model=model)
    maps = [unit for unit in of_model if (unit.kind, unit.name) == ("blocks", "c4")]
    every = Map.of(max(maps, key=lambda unit: len(unit.key["cuts"])))
    (distances,) = [
        unit for unit in of_model
        if unit.kind == "similarity" and (unit.key["dtype"], unit.key["quantization"]) == ("bfloat16", None)
        and unit.key["corpus"] == "wikipedia"
    ]  # fmt: skip
    sizes = [(percent * every.layers + 50) // 100 for percent in (10, 20, 25, 33)]
    cuts = cuts_of_rule("similarity", sizes, every.layers, distance_matrix(distances.rows))
    found = mean_regret([regret(every, cut.size, every.of_cut(cut)) for cut in cuts])
    assert found.verdict == verdict
    assert f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})" in told, found
    choices = {
        unit.name: choices_of(unit) for unit in of_model
        if (unit.kind, unit.key.get("sizes"), unit.key["dtype"]) == ("choice", sizes, "bfloat16")
    }  # fmt: skip
    for rule in ("similarity", "simple"):
        choices[rule] = blocks_of(every, cuts_of_rule(rule, sizes, every.layers, distance_matrix(distances.rows)))
    name = model.split("-")[0].replace("2.5", "")
    as_much = ON_ALL - {"llm-drop-attention", "llm-drop-mlp"}
    tried = f"Of the {len(as_much)} rules that were tried on all three models and drop as much (some the same layers)"
    assert set(choices) >= ON_ALL and tried in told
    dropped = {rule: [choices[rule][size].cut for size in sizes] for rule in ("perplexity", "perplexity-plus")}
    assert dropped["perplexity"] == dropped["perplexity-plus"]
    for rule in ON_ALL:
        of_rule = [choices[rule][size].cut for size in sizes]
        sublayers = [2 * cut.size + len(cut.attention) + len(cut.mlp) for cut in of_rule]
        assert (sublayers == [2 * size for size in sizes]) == (rule in as_much), rule
    compared = regret_table(every, {rule: choices[rule] for rule in as_much}, sizes).set_index("rule")
    place_of_it = {1: "1st", 8: "8th", 5.5: "between 5th and 6th (a tie)"}[compared["rank"]["similarity"]]
    assert re.search(rf"(comes|and|,) {re.escape(place_of_it)} on {name}\b", told)
    alone = compared.loc["perplexity"]
    least, most = sorted(map(abs, (alone["low"], alone["high"])))
    assert f"{name} ({abs(alone['mean']):.2f}, {least:.2f} to {most:.2f})" in told
    assert (alone["mean"] < 0) == (name != "Qwen")
    less = regret_table(every, {rule: choices[rule] for rule in ("similarity", "llm-drop-attention")}, sizes)
    assert less["rule"].tolist() == ["llm-drop-attention", "similarity"] and "which is less, costs less on each" in told
    if model.startswith("SmolLM2"):
        assert np.mean([place(every, cut) for cut in cuts]) == pytest.approx(0.5, abs=0.05), "half of all are better"


@pytest.mark.parametrize("model", ["Qwen2.5-Coder-1.5B-Instruct", "SmolLM2-135M-Instruct", "Gemma-3-270m"])
def test_readme_says_which_geometry_foretells_the_loss(model):
    """As the page of each model has it, of the distances in the same precision."""
    told = told_under("Which layers.").partition("Of 17 measures")[2]
    of_model = all_units(model=model)
    (unit,) = [unit for unit in of_model if unit.kind == "geometry"]
    (distances,) = [
        one for one in of_model
        if one.kind == "similarity" and (one.key["dtype"], one.key["quantization"]) == (unit.key["dtype"], None)
    ]  # fmt: skip
    cost, _ = geometry.costs(of_model)["loss on C4"]
    found = geometry.predictions(geometry.of_blocks(unit, distances.rows), cost, "loss on C4")
    assert len(found) == 17
    foretold = {one.measure: one for one in found if one.verdict == geometry.PREDICTED}
    if not model.startswith("Qwen"):
        assert not foretold and told.endswith(", and the data can't tell of any.")
        assert {one.verdict for one in found} == {geometry.UNTOLD}
        skip, cka = (next(one.correlation for one in found if one.measure == name) for name in ("skip", "cka"))
        assert f"{skip:.2f} and {cka:.2f} on {model.split('-')[0]}" in told and max(skip, cka) < 0.9
        return
    assert (
        set(foretold) == {"skip", "cka"}
        and "two correlate with" in told
        and f"with the whole interval above {geometry.PREDICTS}, on Qwen" in told
    )
    (distance,) = [one for one in found if one.measure == geometry.DISTANCE]
    for one in (*foretold.values(), distance):
        assert f"({'rank correlation ' * (one.measure == 'skip')}{one.correlation:.2f}, " in told
        assert f"{one.correlation:.2f}, {one.low:.2f} to {one.high:.2f})" in told, one
    assert distance.verdict == geometry.UNTOLD


def told_under(title: str) -> str:
    """What README says under a title in bold, up to the next one."""
    text = README.read_text(encoding="utf-8").partition(f"**{title}**")[2]
    assert text, f"README has no {title}"
    return re.split(r"\n\n(?:\*\*|## )", text)[0].rstrip()


def healed_alike(model: str, sizes: list[int], like: Cut, steps: int, quantization: str | None):
    """What comes back at the cuts of the similarity rule, of healings on text in the precision of the pages."""
    units = all_units(model=model)
    opened = ("bfloat16", quantization)
    (distances,) = [
        unit for unit in units
        if unit.kind == "similarity" and (unit.key["dtype"], unit.key["quantization"]) == opened
    ]  # fmt: skip
    layers = distances.details["num_layers"]
    cuts = cuts_of_rule("similarity", sizes, layers, distance_matrix(distances.rows))
    first = next(
        unit for unit in units
        if unit.kind == "healing" and Cut.of_key(unit.key["cut"]) == like
        and (unit.key["healing"]["steps"], unit.key["healing"]["rank"], unit.key["healing"]["seed"]) == (steps, 8, 0)
        and unit.key["healing"].get("objective", "text") == "text"
    )  # fmt: skip
    tokens = first.details["healing"]["tokens"]
    healed = given_back.by_tokens(units, first)[tokens]
    found = [given_back.of_healing(units, healed[cut]) for cut in cuts if cut in healed and cut.size]
    return pd.concat(found).set_index(["what", "size"])


def test_readme_says_what_healing_gives_back():
    """Of the loss beside the whole model healed alike, and of MMLU and GSM8K, at the six sizes that it names."""
    told = told_under("With healing.")
    sizes = [2, 4, 6, 8, 10, 12]
    found = healed_alike("Qwen2.5-Coder-1.5B-Instruct", sizes, Cut(15, 2), 30, None)
    assert set(found["tokens"]) == {61_440}
    assert "61,440 tokens" in told and f"{61_440 / paper.HEALING_TOKENS:.2%} of the paper's" in told
    for size in (2, 12):
        row = found.loc[given_back.LOSS, size]
        assert f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}) at {size}" in told, row
    shares = found.loc[given_back.LOSS, "value"]
    assert shares.idxmin() == 2 and shares.idxmax() == 12 and set(shares.index) == set(sizes)
    for what, items in (("MMLU, 5-shot", 570), ("GSM8K, 5-shot", 50)):
        of_task = found.loc[what]
        assert set(of_task.index) == set(sizes) and (of_task["items"] == items).all() and f"({items}" in told
        assert not (of_task["low"] > 0).any(), "no gain is shown"
    of_two = found.loc["GSM8K, 5-shot", 2]
    whole, pruned, healed = (f"{of_two[name]:.2f}" for name in ("whole", "pruned", "healed"))
    assert f"dropping 2 layers takes GSM8K from {whole} to {pruned}, and healed it is {healed}" in told
    units = all_units(model="Qwen2.5-Coder-1.5B-Instruct")
    unpruned, late = (
        next(
            unit for unit in units if unit.kind == "healing" and unit.key["cut"] == cut and task in unit.key["tasks"]
            and (unit.key["healing"]["steps"], unit.key["healing"]["rank"]) == (30, 8)
        )
        for cut, task in (([0, 0], "gsm8k"), ([19, 8], "capitals"))
    )  # fmt: skip
    of_page = next(unit for unit in units if unit.kind == "loss" and [19, 8] in unit.key["cuts"])
    before = given_back.losses_before(units, of_page)
    of_whole = {61_440: {UNPRUNED: unpruned}}
    change = given_back.of_the_whole(before, given_back.swept_alike(units, [unpruned]), of_whole).set_index("what")
    row = change.loc[given_back.LOSS]
    assert f"falls by {-row['change']:.3f} ({-row['high']:.3f} to {-row['low']:.3f}) nats" in told
    row = change.loc["GSM8K, 5-shot"]
    assert f"from {row['before']:.2f} to {row['after']:.2f} (by {-row['high']:.2f} to {-row['low']:.2f})." in told
    for size in (10, 12):
        dropped = next(
            unit for unit in units
            if unit.kind == "healing" and unit.key["cut"] == [7, size] and unit.key["healing"]["steps"] == 245
        )  # fmt: skip
        budgets = given_back.by_tokens(units, dropped)
        of_cut = {tokens: {Cut(7, size): of_cuts[Cut(7, size)]} for tokens, of_cuts in budgets.items()}
        more = given_back.of_more_tokens(before, units, of_cut).set_index("what")
        row = more.loc[given_back.LOSS]
        assert (row["fewest"], row["tokens"]) == (61_440, 501_760) and "Eight times as many tokens (501,760)" in told
        way, ends = (
            ("falls", (-row["high"], -row["low"])) if row["change"] < 0 else ("rises", (row["low"], row["high"]))
        )
        shown = f"{way} from {row['before']:.3f} to {row['after']:.3f} (by {ends[0]:.3f} to {ends[1]:.3f})"
        assert re.search(rf"where {size}\b[^(]* {re.escape(shown)}", told) and ends[0] > 0
        assert unpruned.key["healing"]["learning_rate"] == dropped.key["healing"]["learning_rate"] == 0.005
        assert {"MMLU, 5-shot", "GSM8K, 5-shot"} < set(
            more.index
        ) and f"{501_760 / paper.HEALING_TOKENS:.2%} of" in told
        assert not (given_back.of_healing(units, dropped).set_index("what").drop(given_back.LOSS)["low"] > 0).any()
    row = given_back.of_healing(units, late).set_index("what").loc["Capitals"]
    assert f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}) of what it lost of the capitals" in told
    for cut, size in (([23, 4], 4), ([19, 8], 8)):
        healed = next(unit for unit in units if unit.kind == "healing" and unit.key["cut"] == cut)
        row = given_back.of_healing(units, healed).set_index("what").loc[given_back.LOSS]
        assert f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}) at {size}" in told and sum(cut) == 27
    assert late.details["num_layers"] - 1 == late.key["cut"][0] + late.key["cut"][1], "the simple heuristic's"
    smaller = healed_alike("SmolLM2-135M-Instruct", [1, 3, 6, 9, 12, 15], Cut(9, 3), 60, "nf4").loc["Capitals"]
    assert smaller["value"].idxmax() == 3 and len(smaller) == 6 and set(smaller["tokens"]) == {122_880}
    row = smaller.loc[3]
    assert (
        f"(122,880 tokens), {row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f}), the largest of six sizes"
        in told
    )
    assert f"gains too, from {row['whole']:.2f} to {row['whole, healed']:.2f}. It was healed" in told
    (published,) = {
        f"{curves.of_cut(unit.rows, UNPRUNED)['value'].item():.2f}"
        for unit in all_units(kind="sweep", model="SmolLM2-135M-Instruct")
        if unit.name == "capitals" and not unit.key["quantization"]
    }
    assert f"in 4 bits (nf4), which had taken it from {published} to {row['whole']:.2f}." in told


def test_readme_says_what_results_hold():
    """The sentence of what was found: the share of the layers at which half is gone, with its interval."""
    said = README.read_text(encoding="utf-8").partition("**Found here:**")[2].partition("\n")[0]
    model = by_model(all_units(model="Qwen2.5-Coder-1.5B-Instruct"))["Qwen2.5-Coder-1.5B-Instruct"]
    assert model.name in said
    for topic, name in (
        ("GSM8K", "GSM8K"), ("MMLU", "MMLU"), ("Capitals", "the capitals of countries"),
        ("Sums, one digit", "sums of one digit"),
    ):  # fmt: skip
        answers = model.answers(topic, "similarity")
        value, low, high = interval(cliffs(answers))
        items = rf"\({answers.right.shape[1]:,}\b"
        shown = re.search(rf"{value:.0%} \({low:.0%} to {high:.0%}\)[^,]* on {name} {items}", said)
        assert shown, f"README is wrong about {topic}: {value:.0%} ({low:.0%} to {high:.0%})"
    of_rules = {rule: model.answers("MMLU", rule) for rule in ("simple", "similarity")}
    blocks = {rule: {4: next(cut for cut in answers.cuts if cut.size == 4)} for rule, answers in of_rules.items()}
    simple, similar = (
        answers.right[answers.cuts.index(blocks[rule][4])].astype(float) for rule, answers in of_rules.items()
    )
    # of every subject the second 10 questions: the first were asked block by block
    simple, similar = (right.reshape(57, 20)[:, 10:].ravel() for right in (simple, similar))
    value, low, high = paired_interval(simple - similar, shares=True)
    told = told_under("Which layers.")
    asked_again = f"Of {len(simple):,} other questions these two leave {simple.mean():.3f} and {similar.mean():.3f}"
    assert f"{asked_again}, {value:.2f} ({low:.2f} to {high:.2f}) less, which shows nothing." in told and low < 0 < high
    points = points_table(all_units(kind="scan", model=model.name), blocks).set_index(["task", "rule"])
    by_letter = points.xs("MMLU, 5-shot")
    best, row = by_letter.loc["simple"], by_letter.loc["similarity"]
    assert best["block"] == best["best"]
    assert (
        f"block of the simple heuristic leaves most right ({best['accuracy']:.3f} of {row['items']} questions), the "
        f"most similar one {row['accuracy']:.3f}, {row['regret']:.3f} ({row['low']:.3f} to {row['high']:.3f}) less. "
    ) in told
    of_tasks = points.xs("similarity", level="rule").drop("MMLU, 5-shot")
    boolq, as_good = of_tasks.loc["BoolQ"], of_tasks.drop("BoolQ")
    assert as_good["high"].max() <= 0.02 and "as good as the best, at most 0.02 less, on capitals" in told
    for task, words in (
        ("Capitals", "capitals ({}; by letter too)"), ("Capitals, by letter", "capitals ({}; by letter too)"),
        ("Sums, two digits", "sums of two digits ({})"), ("Facts, written", "facts to be written ({})"),
        ("MMLU as cloze, 5-shot", "the words of MMLU ({}; here right"),
    ):  # fmt: skip
        assert words.format(as_good.loc[task, "items"]) in told
    assert len(as_good) == 5 and boolq["low"] > 0
    assert (
        f"On BoolQ ({boolq['items']}) it leaves {boolq['accuracy']:.3f} where the best leaves {boolq['highest']:.3f}: "
        f"{boolq['regret']:.3f} ({boolq['low']:.3f} to {boolq['high']:.3f}) less, of the whole model's "
        f"{boolq['unpruned']:.3f}."
    ) in told
    told = told_under("Of MMLU, letters seem to fall first.")
    units = [unit for kind in ("scan", "sweep") for unit in all_units(kind=kind, model=model.name)]
    rulings = {ruling.what: ruling for ruling in early_cliff.cliffs(units)}
    ruling = rulings["similarity"]
    value, low, high = ruling.statistics["C"]
    assert (ruling.verdict, rulings["simple"].verdict) == ("letters", "open")
    assert f"{-value:.2f} ({-high:.2f} to {-low:.2f}) less by" in told and f"{ruling.items:,} questions" in told
    (calibrated,) = (one for one in early_cliff.cliffs(units, without_bias=True) if one.what == "similarity")
    value, low, high = calibrated.statistics["C"]
    assert calibrated.verdict == "letters" and f"(calibrated) {-value:.2f} ({-high:.2f} to {-low:.2f})." in told
    again = early_cliff.asked_twice(units)[model.name]
    changed = f"{again.fewest} to {again.most} of the {again.items:,} answers under each cut changed"
    assert f"which round differently: {changed}" in told
    assert f"hence {ruling.statistics['letters'][0]:.0%} here, and 11% above." in told and "at 11% (7%" in said
    unasked = json.loads((README.parent / "benchmarks" / "measured" / "unasked-qwen.json").read_text())
    least, most = unasked["interval"]
    asked_alike = early_cliff.without_questions(early_cliff.of_both_rules(units), [unasked])
    tried = early_cliff.by_guessing(units, asked_alike)
    own, highest = (
        next(ruling for _, value, ruling in tried if value == level and ruling.what == "similarity")
        for level in (unasked["guessing"], most)
    )
    value, low, high = own.statistics["C"]
    assert (own.verdict, highest.verdict) == ("letters", "open") and "to score 0.25. Without seeing" in told
    assert f"gets {unasked['guessing']:.2f} of them right ({least:.2f} to {most:.2f}). If" in told
    assert (
        f"the share kept is {-value:.2f} ({-high:.2f} to {-low:.2f}) less by letter; if guessing scores {most:.2f}"
        in told
    )
    at, low, high = own.statistics["words"]
    assert f"If that is guessing, half of the words is gone at {at:.0%} ({low:.0%} to {high:.0%}), and" in told
    of_simple = rulings["simple"].statistics
    first, last, gone = (
        "{:.0%} ({:.0%} to {:.0%})".format(*of_simple[name])
        for name in ("letters", early_cliff.FOR_GOOD.format("letters"), "words")
    )
    assert of_simple["words"][0] == of_simple[early_cliff.FOR_GOOD.format("words")][0]
    back, kept_words = (
        "{:.2f} ({:.2f} to {:.2f})".format(*dissociation.interval(form.at([simple_cut(28, 4)])[:, 0], 1))
        for form in early_cliff.letters_and_words(early_cliff.of_both_rules(units)[model.name])
    )
    assert (
        f"half of the letters is first gone at {first}, but with 4 layers dropped {back} of them is back, and half is "
        f"gone for good at {last}; of the words half is gone at {gone}, and {kept_words} is kept with 4 layers dropped."
    ) in told
    (simple,) = (ruling for _, value, ruling in tried if value == most and ruling.what == "simple")
    assert simple.verdict == "knowledge" and simple.statistics["C"][1] > 0
    assert {f"{own.level:.1%}", f"{dissociation.rulings(units)[0].level:.1%}"} == {"97.5%", "98.8%"}
    (at, low, high), (later, least, most) = (ruling.statistics[form] for form in ("letters", "words"))
    assert f"{at:.0%} ({low:.0%} to {high:.0%}) of the layers, half of the words at {later:.0%}" in told
    assert math.isinf(most) and f"({least:.0%} or more)" in told
    mmlu = next(ruling for ruling in dissociation.rulings(units) if ruling.what == "MMLU")
    value, low, high = mmlu.statistics[dissociation.MIDDLE]
    value_of_middle = value
    (letters, words, layers) = dissociation.pairs(units)[0][model.name, "MMLU"]
    (of_letters, of_words), late = (
        [form.at(dissociation.all_blocks(layers, place))[0].mean() for form in (letters, words)]
        for place in (dissociation.MIDDLE, dissociation.LATE)
    )
    middle_blocks, late_blocks = (
        len(dissociation.all_blocks(layers, place)) for place in (dissociation.MIDDLE, dissociation.LATE)
    )
    assert (
        f"over the {middle_blocks} in the middle third {of_letters:.2f} of the letters is kept and {of_words:.2f} of "
        f"the words, {-value:.2f} ({-high:.2f} to {-low:.2f}) less; over the {late_blocks} in the last third that keep "
        f"the last layer {late[0]:.2f} and {late[1]:.2f}."
    ) in told
    last, kept_last = Cut(layers - dissociation.SIZE, dissociation.SIZE), []
    for form in (letters, words):
        value, low, high = dissociation.interval(form.at([last])[:, 0], 1)
        kept_last.append(f"{value:.2f}, {low:.2f} to {high:.2f}")
    of_letters, of_words = kept_last
    assert f"all of the letters is kept ({of_letters}) and {of_words.replace(', ', ' (', 1)}) of the words." in told
    for level in (unasked["guessing"], unasked["interval"][1]):
        other = dataclasses.replace(words, guessing=level)
        less = dissociation.interval(dissociation.differences(letters, other, layers)[dissociation.MIDDLE], 4)
        left = dissociation.interval(other.at([last])[:, 0], 1)
        if level == unasked["guessing"]:
            assert (
                f"scores {level:.2f}, the {-value_of_middle:.2f} is {-less[0]:.2f} ({-less[2]:.2f} to {-less[1]:.2f}), "
                f"and of the words without the last 4 layers {left[0]:.2f} ({left[1]:.2f} to {left[2]:.2f}) is kept"
            ) in told
        else:
            assert f"if it scores {level:.2f}, both are open." in told and less[1] < 0 < less[2] and left[1] < 0
    assert dissociation.place_of(last.start, layers) == ""
    assert mmlu.verdict == "open" and f"({mmlu.items:,} of the questions)" in told
    assert "By a criterion written before the measurement, whether late layers take more of the words is open." in told
    _, low, high = mmlu.statistics[dissociation.LATE]
    assert low < 0 < high
