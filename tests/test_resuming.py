"""Checkpoints of a healing: killed or damaged anywhere it goes on from a whole one, and no pickle is ever opened."""

import os
import re
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from deeper_layers.errors import InputError
from deeper_layers.experiments import healings
from deeper_layers.experiments.parameters import HealingParameters
from deeper_layers.healing.resuming import Checkpoints, Progress, checkpoints_in, remove_checkpoints
from deeper_layers.healing.training import train
from deeper_layers.models.opening import load_model
from deeper_layers.presets import PRESETS
from deeper_layers.pruning import drop_layers
from tests import faults
from tests.fuzz.adapter_cases import Ran
from tests.test_healing import CUT, SMALL, TEXTS, changed, equal, weights
from tests.test_house import fresh

LIKE = {"adapter.a": torch.zeros(3, 2), "step.a": torch.zeros(()), "random": torch.get_rng_state()}


def progress(step: int) -> Progress:
    return Progress(step=step, losses=[1.5] * step, tokens=8 * step, seconds=0.5 * step)


def at(step: int) -> dict[str, torch.Tensor]:
    return LIKE | {"adapter.a": torch.full((3, 2), float(step)), "step.a": torch.tensor(float(step))}


def write_three(folder) -> None:
    """From where the last whole checkpoint is to the third."""
    with checkpoints_in(folder, "a healing") as checkpoints:
        last = checkpoints.last(LIKE)
        for step in range(1 + (last[0].step if last else 0), 4):
            checkpoints.write(progress(step), at(step))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_or_failing_at_any_call_it_goes_on_and_leaves_nothing_over(tmp_path):
    calls = faults.calls_of(lambda: write_three(tmp_path / "straight"))
    expected = names(tmp_path / "straight")
    assert [re.sub("-[0-9a-f]{12}", "", name) for name in expected] == [
        "checkpoint-2.safetensors", "checkpoint-3.safetensors", "settings.json",
    ]  # fmt: skip
    for number, name in enumerate(calls):
        killed, failing = tmp_path / f"killed-{number}", tmp_path / f"failing-{number}"
        assert faults.killed_at(number, partial(write_three, killed), share=0.5 if name == "write" else 0)
        code = faults.FAULTS[number % 3]
        with faults.failing_at(number, code):
            try:
                write_three(failing)
            except InputError as error:
                assert os.strerror(code) in str(error) and str(failing) in str(error)
        for folder in (killed, failing):
            with warnings.catch_warnings(action="error"):  # what is half written is not even looked at
                write_three(folder)
            assert names(folder) == expected, f"call {number}, {name}"
            found, tensors = Checkpoints(folder, "a healing").last(LIKE)
            assert found == progress(3) and torch.equal(tensors["adapter.a"], at(3)["adapter.a"])


def torn(path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flipped(path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def foreign(path) -> None:
    save_file(load_file(path), path)


def of_another(path) -> None:
    Checkpoints(path.parent, "another healing").write(progress(3), at(3))
    (other,) = [found for found in path.parent.glob("checkpoint-3-*") if found != path]
    other.replace(path)


def of_other_tensors(path) -> None:
    Checkpoints(path.parent, "a healing").write(progress(3), at(3) | {"adapter.a": torch.zeros(2, 3)})


def with_more_tensors(path) -> None:
    Checkpoints(path.parent, "a healing").write(progress(3), at(3) | {"adapter.b": torch.zeros(2)})


def not_finite(path) -> None:
    Checkpoints(path.parent, "a healing").write(progress(3), at(3) | {"adapter.a": torch.full((3, 2), torch.nan)})


def of_an_odd_state(path) -> None:
    Checkpoints(path.parent, "a healing").write(progress(3), at(3) | {"random": torch.full_like(LIKE["random"], 255)})


def of_odd_progress(path) -> None:
    odd = Progress.model_construct(step=3, losses=[1.0] * 3, tokens=-1, seconds=0.0)
    Checkpoints(path.parent, "a healing").write(odd, at(3))


def pickled(path) -> None:
    torch.save({"x": Ran(path.with_name("ran"))}, path)


def piped(path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "spoil",
    [
        torn, flipped, foreign, of_another, of_other_tensors, with_more_tensors, not_finite, of_an_odd_state, pickled,
        piped, of_odd_progress, lambda path: path.write_bytes(b""), lambda path: (path.unlink(), path.mkdir()),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(spoil, tmp_path):
    write_three(tmp_path)
    (path,) = tmp_path.glob("checkpoint-3-*")
    spoil(path)
    checkpoints = Checkpoints(tmp_path, "a healing")
    with pytest.warns(UserWarning, match=rf"{path.name} is no whole checkpoint .*the one before it used") as caught:
        found, tensors = checkpoints.last(LIKE)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert found == progress(2) and torch.equal(tensors["adapter.a"], at(2)["adapter.a"])
    assert not (tmp_path / "ran").exists()


def test_what_is_not_ours_is_neither_read_nor_removed(tmp_path):
    """Folders and files that go by names like ours, and checkpoints as others write them."""
    mine = [
        "checkpoint-1.safetensors",
        "checkpoint-notes/thesis.txt",
        "checkpoint-7/optimizer.pt",
        "complete",
        "notes.txt",
    ]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    pickled(tmp_path / "checkpoint-7" / "optimizer.pt")
    pickled(tmp_path / "checkpoint-7" / "scheduler.pt")
    before = faults.snapshot(tmp_path)
    with warnings.catch_warnings(action="error"):
        write_three(tmp_path)
    remove_checkpoints(tmp_path)
    assert faults.snapshot(tmp_path) == before and not (tmp_path / "checkpoint-7" / "ran").exists()


def test_a_folder_that_can_hold_no_checkpoints_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "settings.json").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "settings.json").write_bytes(b"\xff\xfe")
    for name in ("file", "folder", "theirs"):
        with pytest.raises(InputError) as caught:
            write_three(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


# ---- in training -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return load_model(str(tiny_folder))


def test_with_its_last_checkpoint_damaged_a_healing_ends_with_the_same_adapters(tiny, tmp_path, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    monkeypatch.setattr(torch, "save", lambda *_, **__: pytest.fail("a pickle was written"))

    def heal(folder):
        return train(drop_layers(model, CUT), tokenizer, TEXTS, SMALL, folder=folder)

    straight, record = heal(tmp_path / "straight")
    heal(tmp_path / "damaged")
    last = max((tmp_path / "damaged").glob("checkpoint-6-*"))
    flipped(last)
    with pytest.warns(UserWarning, match=f"{last.name} is no whole checkpoint"):
        again, record_again = heal(tmp_path / "damaged")
    assert equal(weights(straight), weights(again))
    assert record_again.losses == record.losses and record_again.tokens == record.tokens
    assert len(list((tmp_path / "damaged").iterdir())) == 3


SETTINGS = """
import dataclasses, json
from deeper_layers.errors import InputError
from deeper_layers.presets import PRESETS
odd = {"rank": ["8", True, 2.0], "steps": [10**30, None], "seed": [-1, 2**64], "learning_rate": [float("nan"), "1e-3"],
       "auxiliary": [float("inf")], "dropout": [None], "packed": ["no", 1], "adapters": [["all"]],
       "quantization": [4, []]}
for name, values in odd.items():
    for value in values:
        try:
            dataclasses.replace(PRESETS["small"], **{name: value})
        except InputError as error:
            assert str(error).startswith(f"{name} is {value!r}") and "expected " in str(error), error
        else:
            raise AssertionError(f"{name} may be {value!r}")
"""


def test_a_setting_of_a_wrong_type_is_refused(tmp_path):
    """Away from the tests, which check types themselves."""
    done = fresh(SETTINGS, tmp_path)
    assert done.returncode == 0, done.stderr


# ---- in the cache ----------------------------------------------------------------------------------------


def test_a_healing_in_the_cache_that_is_damaged_is_healed_again(tiny, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(PRESETS, "small", changed(SMALL, steps=2, save_every=1, warmup_steps=0))
    parameters = HealingParameters(model=str(tiny_folder), results=str(tmp_path / "results"), text="wikipedia")
    source, config = parameters.source(), PRESETS["small"]
    adapter = partial(healings.adapter_folder, CUT, config, parameters, source, lambda: tiny)
    folder = adapter()
    whole = faults.snapshot(folder)
    assert sorted(whole) == ["adapter_config.json", "adapter_model.safetensors", "healing.json"]
    assert names(folder.parent) == ["adapter", "record.json"]  # no checkpoint is left
    monkeypatch.setattr(healings.healing, "train", lambda *_, **__: pytest.fail("healed again"))
    assert adapter() == folder
    monkeypatch.undo()
    monkeypatch.setattr(healings, "cache_folder", lambda: tmp_path / "cache")
    for spoil in (
        lambda: flipped(folder / "adapter_model.safetensors"),
        lambda: (folder / "adapter_config.json").write_text("[]"),
        lambda: (folder.parent / "record.json").write_text('{"losses": 3}'),
        lambda: (folder.parent / "record.json").write_text("[" * 60_000),
    ):
        spoil()
        with pytest.warns(UserWarning, match="holds no whole healing .*: the model is healed again"):
            adapter()
        after = faults.snapshot(folder)
        same = {name: after[name] for name in after if name != "healing.json"}  # which has seconds
        assert same == {name: whole[name] for name in same}
