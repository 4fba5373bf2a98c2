"""Adapters and checkpoints that are damaged or hostile: one line names them, and nothing comes of them.

The cases by number are those of tests/fuzz, which tries more of them by a command.
"""

import functools
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from deeper_layers.errors import InputError
from deeper_layers.export.adapter_files import IDENTITY, SETTINGS, WEIGHTS
from deeper_layers.healing.adapters import load_adapters, merge_adapters
from deeper_layers.pruning import drop_layers
from tests.fuzz import adapter_cases
from tests.fuzz.trying import counted

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
        (of_settings(target_modules=[]), "target_modules"),
        (of_settings(target_modules=["(a+)+$"]), "target_modules"),
        (of_settings(rank_pattern={"(a+)+$": 4}), None),
        (of_settings(r="3"), "^.*: r:|r: "),
        (of_settings(r=4), "says 4"),
        (of_settings(lora_alpha=float("nan")), "NaN"),
        (of_settings(lora_alpha=-1), "lora_alpha"),
        (of_settings(lora_alpha=1e300), "too large|not finite"),
        (of_settings(use_rslora="yes"), "use_rslora"),
        (of_settings(megatron_config={}, megatron_core="os"), None),
        (of_settings(megatron_config={"a": 1}, megatron_core="this"), "megatron_config"),
        (of_identity(cut=[2, 2, 2]), "cut"),
        (of_identity(cut=[True, True]), "cut"),
        (of_identity(base=[]), "base"),
        (of_identity(base={"name": 1, "weights": "x"}), "base.name"),
        (of_identity(healing={"config": {}}), "healing"),
        (lambda folder: (folder / SETTINGS).write_text("[" * 60_000), "nested too deep"),
        (lambda folder: (folder / SETTINGS).write_text("[1]"), r"it is '\[1\]'"),
        (lambda folder: (folder / IDENTITY).write_text("[1, 2, 3]"), "holds no adapters of ours"),
        (replaced(SETTINGS, os.mkfifo), "lacks adapter_config.json"),
        (replaced(WEIGHTS, os.mkfifo), "lacks adapter_config.json"),
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
        with pytest.raises(InputError) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert [name for name, _ in pruned.named_modules()] == modules or word.startswith("too large")
    assert not (adapter / "ran").exists()
