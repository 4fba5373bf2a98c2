"""Units, adapters and checkpoints that are damaged or hostile: one line names them, and nothing comes of them.

The cases by number are those of tests/fuzz, which tries more of them by a command.
"""

import functools
import json
import os
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import IDENTITY, SETTINGS, WEIGHTS
from deeper_layers.healing.adapters import load_adapters, merge_adapters
from deeper_layers.pruning import drop_layers
from deeper_layers.results.packing import pack
from deeper_layers.results.schema import KINDS
from deeper_layers.results.units import all_units, content_hash, read_unit
from tests.fuzz import adapter_cases, unit_cases
from tests.fuzz.trying import counted
from tests.test_results import KEY, Measure, measure_or_load, measured

# ---- units -----------------------------------------------------------------------------------------------


def test_damaged_units_are_named_in_one_warning_or_can_be_drawn(tmp_path):
    counts, bad = counted(unit_cases.outcomes(range(800), tmp_path))
    assert bad == []
    assert counts["clear"] > 550 and counts["harmless"] > 16


def test_published_units_hold_what_their_kinds_ask_for():
    assert {unit.kind for unit in all_units()} <= KINDS.keys()


def kept(path, change) -> None:
    """Damage to a unit that is signed anew, as by somebody who means it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content | {"sha256": content_hash(content)}))


def outcomes(content: dict, packed: str) -> None:
    content["details"]["outcomes"]["0,1"]["a"]["acc"] = packed


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda unit: unit["rows"][0].update(value="0.5"), "0.value"),
        (lambda unit: unit["rows"][0].update(value=1.5), "accuracy"),
        (lambda unit: unit["rows"][0].update(size=True), "0.size"),
        (lambda unit: unit["rows"][0].update(size=7), "cuts of its key"),
        (lambda unit: unit["rows"][0].pop("stderr"), "0.stderr"),
        (lambda unit: unit["rows"][0].update(more=1), "0.more"),
        (lambda unit: unit["rows"].pop(), "cuts of its key"),
        (lambda unit: unit["rows"].append(unit["rows"][0]), "two rows"),
        (lambda unit: unit.update(rows=[]), "rows"),
        (lambda unit: unit.update(rows={"a": 1}), "rows"),
        (lambda unit: unit["provenance"].pop("measured"), "provenance.measured"),
        (lambda unit: unit["provenance"].update(measured="yesterday"), "provenance.measured"),
        (lambda unit: unit["provenance"].update(measured=3), "provenance.measured"),
        (lambda unit: unit.update(provenance=None), "provenance"),
        (lambda unit: unit["details"].update(num_layers="5"), "num_layers"),
        (lambda unit: unit["details"].update(num_layers=0), "num_layers"),
        (lambda unit: unit["details"].pop("weights"), "weights"),
        (lambda unit: unit["details"]["levels"].update(a=0.25), "levels.a"),
        (lambda unit: unit["details"]["outcomes"].pop("0,1"), "outcomes are not of its cuts"),
        (lambda unit: unit["details"].pop("outcomes"), "neither"),
        (lambda unit: unit["details"].update(units=["../../x.json"]), "units.0"),
        (lambda unit: outcomes(unit, "no base 64"), "base64|padding|Only"),
        (lambda unit: outcomes(unit, "AAAA"), "can't be unpacked"),
        (lambda unit: outcomes(unit, pack(np.zeros(4))), "as many as there are items"),
        (lambda unit: outcomes(unit, pack(np.zeros(10**7))), "as many as there are items"),
        (lambda unit: outcomes(unit, pack(np.zeros(3))[:-4]), "end too early|unpacked"),
        (lambda unit: unit["details"].update(units=None), "units"),
        (lambda unit: unit["details"]["levels"]["a"].update(majority=None), "majority"),
        (lambda unit: unit.update(kind="swept"), "kind is 'swept', expected one of sweep, shots, "),
        (lambda unit: unit.update(name="b"), "name"),
        (lambda unit: unit.update(more=1), "more"),
    ],
)
def test_a_unit_of_right_json_and_odd_content_is_left_out_and_measured_again(change, word, tmp_path):
    measure = Measure()
    path = measure_or_load("sweep", "a", KEY, measure, tmp_path).path
    kept(path, change)
    with pytest.warns(UserWarning, match=rf"{path.name} is not a readable unit \(.*({word})") as caught:
        assert all_units(tmp_path) == []
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with pytest.warns(UserWarning):
        measure_or_load("sweep", "a", KEY, measure, tmp_path)
    assert measure.count == 2 and len(all_units(tmp_path)) == 1


def test_any_change_of_a_unit_that_was_signed_is_found(tmp_path):
    path = measure_or_load("sweep", "a", KEY, Measure(), tmp_path).path
    whole = path.read_text()
    changes = {
        "0.25": "0.26",
        '"device": "': '"device": "x',
        '"value": 0.6': '"value": 0.5',
        '"order": 1': '"order": 2',
    }
    for old, new in changes.items():
        assert old in whole
        path.write_text(whole.replace(old, new, 1))
        with pytest.warns(UserWarning, match="its content is not that of its SHA-256|that of its outcomes"):
            assert read_unit(path) is None
    # laid out otherwise it is the same; one without a hash is not believed
    path.write_text(json.dumps(dict(reversed(json.loads(whole).items())), indent=7))
    assert read_unit(path) is not None
    path.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name != "sha256"}))
    with pytest.warns(UserWarning, match="its content is not that of its SHA-256"):
        assert read_unit(path) is None


def test_a_group_is_missing_where_the_unit_of_a_task_is(tmp_path):
    """Nothing is drawn of it, and all that is measured again is that task."""
    measure, of_group = Measure(), []

    def group(shards):
        of_group.append(measure_or_load("sweep", "a", KEY, measure, tmp_path))
        rows, _ = measured(KEY["cuts"])
        return rows.assign(task="b"), {"levels": {}, "units": [of_group[-1].path.name]}

    for measured_before, spoil in (
        (0, lambda path: None), (1, lambda path: None),
        (1, lambda path: path.write_bytes(b"{")), (2, lambda path: path.unlink()),
    ):  # fmt: skip
        assert measure.count == len(of_group) == measured_before
        if of_group:
            spoil(of_group[-1].path)
        with warnings.catch_warnings(action="ignore"):
            assert measure_or_load("sweep", "b", KEY | {"task": "b"}, group, tmp_path).name == "b"
    assert measure.count == len(of_group) == 3


# ---- adapters --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    adapter_cases.made(folder)
    return folder


def test_damaged_adapters_are_refused_in_one_line_or_give_one_finite_model(tmp_path):
    counts, bad = counted(adapter_cases.outcomes(range(600), tmp_path))
    assert bad == []
    assert counts["clear"] > 450 and counts["harmless"] > 15


def of_settings(**values):
    def spoil(folder):
        path = folder / SETTINGS
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def of_identity(**values):
    def spoil(folder):
        path = folder / IDENTITY
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def of_tensors(change):
    def spoil(folder):
        tensors = load_file(folder / WEIGHTS)
        name = next(name for name in sorted(tensors) if "up_proj.lora_B" in name)
        tensors[name] = change(tensors[name].clone())
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)

    return spoil


def without(part: str):
    def spoil(folder):
        tensors = load_file(folder / WEIGHTS)
        save_file({name: tensor for name, tensor in tensors.items() if part not in name}, folder / WEIGHTS)

    return spoil


def set_first(value):
    def change(tensor):
        tensor[0, 0] = value
        return tensor

    return change


def replaced(name: str, make):
    def spoil(folder):
        (folder / name).unlink()
        make(folder / name)

    return spoil


def pickled(path) -> None:
    torch.save({"x": adapter_cases.Ran(path.with_name("ran"))}, path)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (of_tensors(set_first(float("nan"))), "not finite"),
        (of_tensors(set_first(float("inf"))), "not finite"),
        (of_tensors(lambda tensor: tensor.to(torch.int32)), "type I32"),
        (of_tensors(lambda tensor: tensor.to(torch.complex64)), "type C64"),
        (of_tensors(lambda tensor: tensor[:, :2]), "a B of rank 2"),
        (of_tensors(lambda tensor: tensor[:0]), r"shape \(0, 3\)"),
        (of_tensors(lambda tensor: tensor[0]), "expected only names"),
        (without("1.mlp.up_proj"), "has no adapters for|lacks the adapters of"),
        (without("1.mlp.up_proj.lora_A"), "lacks A or B"),
        (without("lora"), "lacks A or B of all"),
        (of_settings(target_modules=["up_proj", "down_proj", "gate_proj", "q_proj"]), "no adapters for q_proj"),
        (of_settings(target_modules=["mlp.up_proj", "proj"]), "no adapters for proj"),
        (of_settings(target_modules=[]), "target_modules"),
        (of_settings(target_modules="(a+)+$"), "target_modules"),
        (of_settings(target_modules=["(a+)+$"]), "target_modules"),
        (of_settings(rank_pattern={"1.mlp.up_proj": 4}), "says 4"),
        (of_settings(rank_pattern={"(a+)+$": 4}), "rank_pattern"),
        (of_settings(rank_pattern=[3]), "rank_pattern"),
        (of_settings(r=4), "says 4"),
        (of_settings(r="3"), "^.*: r:|r: "),
        (of_settings(r=True), "r: "),
        (of_settings(lora_alpha=float("nan")), "NaN"),
        (of_settings(lora_alpha=float("inf")), "Infinity"),
        (of_settings(lora_alpha=-1), "lora_alpha"),
        (of_settings(lora_alpha=0), "lora_alpha"),
        (of_settings(lora_alpha=True), "lora_alpha"),
        (of_settings(lora_alpha="5"), "lora_alpha"),
        (of_settings(lora_alpha=1e300), "too large|not finite"),
        (of_settings(use_rslora="yes"), "use_rslora"),
        (of_settings(megatron_config={}, megatron_core="os"), None),
        (of_settings(megatron_config={"a": 1}, megatron_core="this"), "megatron_config"),
        (of_identity(cut=[2, 2, 2]), "cut"),
        (of_identity(cut=["2", "2"]), "cut"),
        (of_identity(cut=[-2, 2]), "cut"),
        (of_identity(cut=[True, True]), "cut"),
        (of_identity(base=[]), "base"),
        (of_identity(base={"name": 1, "weights": "x"}), "base.name"),
        (of_identity(healing={"config": {}}), "healing"),
        (of_identity(healing=[1]), "healing"),
        (lambda folder: (folder / SETTINGS).write_text("[" * 60_000), "nested too deep"),
        (lambda folder: (folder / SETTINGS).write_text("[1]"), r"it is '\[1\]'"),
        (lambda folder: (folder / SETTINGS).write_text("3"), "it is '3'"),
        (lambda folder: (folder / IDENTITY).write_text("[1, 2, 3]"), "holds no adapters of ours"),
        (replaced(SETTINGS, os.mkfifo), "lacks adapter_config.json"),
        (replaced(WEIGHTS, os.mkfifo), "lacks adapter_config.json"),
        (replaced(WEIGHTS, os.mkdir), "lacks adapter_config.json"),
        (replaced(IDENTITY, os.mkfifo), "no plain file"),
        (replaced(WEIGHTS, pickled), "whole safetensors"),
        (replaced(WEIGHTS, lambda path: pickled(path.with_suffix(".bin"))), "lacks adapter_config.json or"),
    ],
)  # fmt: skip
def test_adapters_that_are_odd_are_refused_on_disk_and_in_memory(spoil, word, good, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (good / "good").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    base = json.loads((adapter / IDENTITY).read_text())["base"]
    spoil(adapter)

    pruned = drop_layers(adapter_cases.whole(), adapter_cases.CUT)
    modules = [name for name, _ in pruned.named_modules()]
    on_disk = functools.partial(adapter_cases.on_disk, adapter, base, good)
    in_memory = functools.partial(load_adapters, pruned, adapter, base, adapter_cases.CUT)
    if word is None:
        on_disk(), in_memory()
        return
    for use in (on_disk, lambda: merge_adapters(in_memory())):
        with pytest.raises(InputError, match=word) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert [name for name, _ in pruned.named_modules()] == modules or word.startswith("too large")
    assert not (adapter / "ran").exists()
