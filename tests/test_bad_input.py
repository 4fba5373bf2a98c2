"""What a user can get wrong: an error of one line that says what to do, and never a library's traceback."""

import json
import shutil
import time

import gguf
import jaxtyping
import numpy as np
import pytest
from transformers import T5Config, T5ForConditionalGeneration

from deeper_layers.cuts import Cut, simple_cut
from deeper_layers.data import corpora
from deeper_layers.errors import InputError
from deeper_layers.experiments.parameters import (
    HealingParameters,
    Parameters,
    QuestionAnsweringParameters,
    ReproductionParameters,
    SimilarityParameters,
    TakeAwayParameters,
)
from deeper_layers.experiments.sweeps import sweep_unit
from deeper_layers.models.opening import load_model
from deeper_layers.models.sources import find_model
from deeper_layers.results.units import unit_path
from deeper_layers.rules.choosing import cuts_of_rule
from deeper_layers.sweeping import harness
from deeper_layers.sweeping.sweeps import plan, sweep

LAYERS = 5  # of the tiny model


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Without the checks of annotations, which would come before ours, and without a hub."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("DATASETS_MIRROR", raising=False)


def refusal(action, *arguments, **options):
    """The message of the InputError: one line that names what was given and ends with advice."""
    with pytest.raises(InputError) as caught:
        action(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 1000
    print(message)  # shown where a test fails
    return message


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A copy of the tiny model's folder, to be spoiled."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def write_gguf(path, *, architecture="llama", blocks=2, without=None):
    """A whole model of two layers in GGUF, which transformers opens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(blocks)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "ab", "bc", "cd", "de"])
    writer.add_token_types([3, 3] + [1] * 30)
    writer.add_token_merges(["a b", "b c", "c d", "d e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm"]
    tensors = ["token_embd", "output", "output_norm", *(f"blk.{i}.{name}" for i in range(2) for name in names)]
    draw = np.random.default_rng(0)
    for name in tensors:
        if name != without:
            shape = (32,) if name.endswith("norm") else (32, 32)
            writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- models ----------------------------------------------------------------------------------------------


def test_unknown_hub_id_while_offline():
    started = time.monotonic()
    for model in ("nobody/nothing-by-this-name", "nothing-by-this-name"):
        message = refusal(load_model, model)
        assert repr(model) in message and "check the name and the connection" in message
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("model", ["/no/such/folder", "a/b/c", "spaces in a name", "model.bin!"])
def test_neither_file_nor_folder_nor_hub_id(model):
    assert "no file, no folder and no hub id" in refusal(load_model, model)


def test_folder_without_config(copy):
    (copy / "config.json").unlink()
    message = refusal(load_model, str(copy))
    assert "config.json" in message and "save_pretrained" in message


def test_folder_with_pickled_weights_alone(copy, monkeypatch):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    message = refusal(load_model, str(copy))
    assert "safetensors" in message and "safe_serialization=True" in message


def test_pickled_weights_beside_safe_ones_are_not_opened(copy, monkeypatch):
    (copy / "pytorch_model.bin").write_bytes(b"never opened")
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was opened"))
    load_model(str(copy))


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "{}",
        '{"model_type": "of another world"}',
        {"num_hidden_layers": "five"},
        {"num_attention_heads": 3},
        {"layer_types": ["none"]},
    ],
    ids=str,
)
def test_unusable_configuration(config, copy):
    if isinstance(config, dict):
        change_config(copy, **config)
    else:
        (copy / "config.json").write_text(config)
    assert "config.json" in refusal(load_model, str(copy))


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kept", [0, 50, -50])
def test_truncated_files_of_a_model(file, kept, copy):
    path = copy / file
    path.write_bytes(path.read_bytes()[:kept])
    said = "can't open the model 'copy'" if file == "tokenizer.json" else f"{path} is not a whole safetensors file"
    assert said in refusal(load_model, str(copy))


def test_folder_without_tokenizer(copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(load_model, str(copy))


def test_weights_that_a_checkpoint_lacks_are_not_made_up(copy, tmp_path, monkeypatch):
    """transformers fills them in at random: such a layer would be measured as if it were one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    change_config(copy, num_hidden_layers=LAYERS + 1)
    assert f"model.layers.{LAYERS}." in refusal(load_model, str(copy))
    assert "block_count is 3" in refusal(load_model, str(write_gguf(tmp_path / "deep.gguf", blocks=3)))
    assert "attn_k" in refusal(load_model, str(write_gguf(tmp_path / "holed.gguf", without="blk.1.attn_k")))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_encoder_decoder_model(tmp_path):
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    message = refusal(load_model, str(tmp_path / "t5"))
    assert "encoder-decoder" in message and "t5" in message and "decoder-only" in message


def test_a_revision_that_nothing_would_check_is_refused(tiny_folder):
    assert "'embedded' is packaged, in one version" in refusal(find_model, "embedded", revision="0" * 64)
    assert "is a folder: leave it out" in refusal(find_model, str(tiny_folder), revision="main")


def test_whole_gguf_opens(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "whole.gguf")
    source = find_model(str(path))
    assert (source.name, source.num_layers, source.quantized) == ("whole", 2, "F32")
    assert find_model(str(path), revision=source.weights) == source
    model, tokenizer = load_model(source)
    assert model.config.num_hidden_layers == 2 and tokenizer("abc")["input_ids"] == [28, 4]
    reader = gguf.GGUFReader(path)
    expected = next(t.data for t in reader.tensors if t.name == "blk.1.ffn_up.weight")
    assert np.array_equal(model.model.layers[1].mlp.up_proj.weight.detach().numpy(), expected)


def test_truncated_gguf(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "part.gguf"
    for kept in [*range(0, 2000, 97), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:kept])
        message = refusal(load_model, str(path))
        assert str(path) in message and "fetch it again" in message
    path.write_bytes(b"no GGUF file, whatever its name says" * 100)
    assert "not a whole GGUF file" in refusal(load_model, str(path))


def test_gguf_with_another_hash(tmp_path):
    path = write_gguf(tmp_path / "whole.gguf")
    for expected in ("0" * 64, "sha256:" + "0" * 64):
        message = refusal(load_model, str(path), revision=expected)
        assert str(path) in message and "expected " + "0" * 64 in message and "fetch it again" in message


def test_gguf_that_is_missing_or_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "does not exist" in refusal(load_model, str(tmp_path / "none.gguf"))
    assert "architecture strange" in refusal(
        load_model, str(write_gguf(tmp_path / "strange.gguf", architecture="strange"))
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dtype", "fp8", "'bfloat16'"),
        ("dtype", "int8", "'bfloat16'"),
        ("device", "gpu", "'auto'"),
        ("device", "cuda:99", "'auto'"),
        ("quantization", "int4", "'nf4'"),
    ],
)
def test_unknown_ways_to_open_a_model(name, value, expected, tiny_folder):
    message = refusal(load_model, str(tiny_folder), **{name: value})
    assert message.startswith(f"{name} is {value!r}") and expected in message


# --- cuts ------------------------------------------------------------------------------------------------


def sized(sizes):
    return QuestionAnsweringParameters(sizes=sizes)


@pytest.mark.parametrize("sizes", ["-1", "0-8, -2", "two", "1.5", "3-", "5-2", "²", "0 1"])
def test_what_is_no_list_of_sizes(sizes):
    message = refusal(sized, sizes)
    assert message.startswith(f"sizes is {sizes!r}") and "'0-8, 12'" in message


def test_sizes_of_a_model():
    assert sized("all").size_list(LAYERS) == [0, 1, 2, 3]
    assert sized(f"{LAYERS - 1}").size_list(LAYERS) == [0, 4]
    assert sized("3, 1-2,2").size_list(LAYERS) == [0, 1, 2, 3]
    for sizes, given in ((f"{LAYERS}", LAYERS), ("0-7", 7), ("1, 99", 99)):
        message = refusal(sized(sizes).size_list, LAYERS)
        assert message.startswith(f"size is {given}, expected 0 to 4") and "the last layer is never dropped" in message


def test_sizes_of_one_task():
    parameters = QuestionAnsweringParameters(tasks="capitals, sums:0@20/0-1+3, sums_one_digit/2", sizes="0, 4")
    sizes = {task: parameters.size_list(LAYERS, task) for task in parameters.task_list}
    assert sizes == {"capitals": [0, 4], "sums": [0, 1, 3], "sums_one_digit": [0, 2]}
    assert (parameters.shots["sums"], parameters.limits["sums"]) == (0, 20)
    assert "'3-1' is no block size" in refusal(QuestionAnsweringParameters, tasks="sums/3-1")
    for kind in (HealingParameters, ReproductionParameters, TakeAwayParameters):
        assert "block sizes for 'sums' alone" in refusal(kind, tasks="capitals, sums/0-1")


@pytest.mark.parametrize("size", [-1, LAYERS, LAYERS + 1])
def test_cuts_that_do_not_fit(size, tiny_folder):
    advice = f"size is {size}; expected 0 to {LAYERS - 1}"
    assert refusal(simple_cut, LAYERS, size).startswith(advice)
    assert refusal(cuts_of_rule, "simple", [0, size], LAYERS).startswith(advice)
    assert refusal(cuts_of_rule, "similarity", [size], LAYERS, np.ones((LAYERS, LAYERS))).startswith(advice)
    if size > 0:
        assert refusal(Cut(0, size).check, LAYERS).startswith(advice)


def test_the_simple_rule_never_drops_the_last_layer():
    for size in range(LAYERS):
        assert LAYERS - 1 in simple_cut(LAYERS, size).kept(LAYERS)
    # the one size that would
    assert "expected 0 to 4" in refusal(simple_cut, LAYERS, LAYERS)


def test_a_sweep_refuses_before_it_measures(tiny_folder, monkeypatch):
    model, tokenizer = load_model(str(tiny_folder))
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("measured all the same"))
    whole = [Cut(0, 0)]
    assert "size is 5" in refusal(sweep, model, tokenizer, ["capitals"], [*whole, Cut(0, LAYERS)])
    assert "start is 4 with size 2" in refusal(sweep, model, tokenizer, ["capitals"], [Cut(4, 2)])
    assert "limit is 0" in refusal(sweep, model, tokenizer, ["capitals"], whole, limit=0)
    assert "limit is 0" in refusal(plan, model, tokenizer, ["sums_one_digit_generated"], whole, limit=0)


# --- tasks, text and parameters --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names():
    """What the parameters of notebook 02 are in its first cell."""
    return {"model": "embedded", "tasks": "capitals", "limit": 20, "_private": 1, "np": np}


def test_parameters_are_taken_from_a_notebook(names):
    parameters = QuestionAnsweringParameters.from_names(names | {"limit": None, "sizes": "0-3"})
    assert (parameters.limit, parameters.task_list, parameters.model) == (None, ["capitals"], "embedded")


@pytest.mark.parametrize("kind", [Parameters, SimilarityParameters, QuestionAnsweringParameters])
def test_unknown_notebook_parameter(kind):
    message = refusal(kind.from_names, {"model": "embedded", "modle": "a", "sampels": 3})
    assert "unknown parameter 'modle', 'sampels'" in message
    assert "sequence_length" in message and "papermill --help-notebook" in message
    if kind is not QuestionAnsweringParameters:
        assert "'limit'" in refusal(kind.from_names, {"limit": 3})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"limit": "20"}, "limit is '20', expected int or None"),
        ({"limit": 20.0}, "limit is 20.0, expected int or None"),
        ({"limit": True}, "limit is True, expected int or None"),
        ({"limit": 0}, "limit is 0, expected None"),
        ({"limit": -3}, "limit is -3, expected None"),
        ({"model": None}, "model is None, expected str"),
        ({"model": 7}, "model is 7, expected str"),
        ({"tasks": ["capitals"]}, "tasks is ['capitals'], expected str"),
        ({"trust_remote_code": "yes"}, "trust_remote_code is 'yes', expected bool"),
        ({"samples": 1}, "samples is 1, expected a whole number from 2"),
        ({"sequence_length": 0}, "sequence_length is 0, expected a whole number from 2"),
        ({"tasks": "capitals:five"}, "tasks has 'capitals:five', expected a task or, for 5 examples in its prompt"),
        ({"num_fewshot": -1}, "num_fewshot is -1, expected None or a whole number from 0"),
        ({"memory": 0}, "memory is 0, expected a whole number from 1"),
        ({"corpus": "bible"}, "corpus is 'bible', expected one of 'wikipedia', 'c4'"),
        ({"rules": "simple, best"}, "rule is 'best', expected one of 'similarity', 'simple'"),
        ({"quantization": "int4"}, "quantization is 'int4', expected None, 'nf4' or 'int8'"),
        ({"tasks": " , "}, "tasks is ' , ', expected names separated by commas"),
        ({"sizes": "-1"}, "sizes is '-1'"),
        ({"datasets": "/no/such/folder"}, "datasets is '/no/such/folder', which is no folder"),
        ({"tasks": "sums, capitals:5"}, "task 'capitals' has no examples for its prompt, 5 are asked for: give it 0"),
        ({"num_fewshot": 2}, "task 'capitals' has no examples for its prompt, 2 are asked for"),
    ],
    ids=str,
)
def test_impossible_notebook_parameter(given, expected, names):
    assert refusal(QuestionAnsweringParameters.from_names, names | given).startswith(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"numbers": "0"}, "num_fewshot is None and tasks 'mmlu', expected the number of examples which other numbers"),
        ({"numbers": "0, some"}, "numbers is '0, some', expected whole numbers separated by commas"),
        ({"orders": "0, 1"}, "orders is '0, 1', expected whole numbers separated by commas, from 1"),
    ],
    ids=str,
)
def test_impossible_prompts(given, expected):
    assert refusal(QuestionAnsweringParameters.from_names, {"tasks": "mmlu"} | given).startswith(expected)


def test_unknown_rule_and_missing_distances():
    assert refusal(cuts_of_rule, "best", [1], LAYERS).startswith("rule is 'best', expected one of 'similarity'")
    assert "angular_distances" in refusal(cuts_of_rule, "similarity", [1], LAYERS)


def test_unknown_corpus():
    assert refusal(corpora.texts, "bible").startswith("corpus is 'bible', expected one of 'wikipedia', 'c4'")


def test_unknown_task(names):
    message = refusal(QuestionAnsweringParameters.from_names, names | {"tasks": "capitals, capitols"})
    assert "unknown task 'capitols'" in message and "lm-eval ls tasks" in message
    assert "did you mean capitals" in message and "sums" in message
    assert "'capitals/two'" in refusal(QuestionAnsweringParameters, tasks="capitals/two")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("humaneval", "'humaneval' runs code that the model writes"),
        ("mbpp_instruct", "runs code that the model writes"),
        ("longproc", "runs code that the model writes"),  # one task of the group
        ("wikitext", "'wikitext' is of type loglikelihood_rolling, expected loglikelihood"),
    ],
)
def test_tasks_that_are_not_scored_are_refused_by_their_definitions(task, message, names, monkeypatch):
    monkeypatch.setattr(harness.TaskManager, "load", lambda *_: pytest.fail("data were read"))
    assert message in refusal(QuestionAnsweringParameters.from_names, names | {"tasks": f"capitals, {task}"})


def test_data_out_of_reach_while_offline(tmp_path, monkeypatch):
    message = refusal(harness.load_tasks, ["piqa"], datasets=str(tmp_path))  # a mirror that lacks it
    assert "piqa" in message and "DATASETS_MIRROR" in message
    assert "DATASETS_MIRROR" in refusal(corpora.texts, "c4")
    # before the model is opened
    asked = QuestionAnsweringParameters(
        model="embedded", tasks="capitals, piqa", datasets=str(tmp_path), results=str(tmp_path)
    )
    monkeypatch.setattr("deeper_layers.models.load_model", lambda *_, **__: pytest.fail("opened"))
    assert "piqa" in refusal(asked.open, asked.source())


@pytest.mark.parametrize("limit", [0, -1, 0.5, True, "3"])
def test_limit_that_is_no_number_of_items(limit):
    assert refusal(harness.check_limit, limit).startswith(f"limit is {limit!r}, expected None")


# --- results ---------------------------------------------------------------------------------------------


def test_unreadable_results_are_named_and_measured_again(tiny_folder, tmp_path):
    parameters = QuestionAnsweringParameters(model=str(tiny_folder), results=str(tmp_path), tasks="capitals", limit=2)
    source = parameters.source()
    cuts = {"simple": [Cut(0, 0), Cut(3, 1)]}
    unit = sweep_unit("capitals", cuts, parameters, source, lambda: parameters.open(source))
    assert unit.path == unit_path("sweep", "capitals", unit.key, tmp_path)
    unit.path.write_bytes(unit.path.read_bytes()[:-99])
    with pytest.warns(UserWarning, match=f"{unit.path.name} is not a readable unit .*: it is measured again"):
        again = sweep_unit("capitals", cuts, parameters, source, lambda: parameters.open(source))
    assert again.rows.equals(unit.rows) and again.details == unit.details
    # now it is read, and the model stays closed
    assert sweep_unit("capitals", cuts, parameters, source, pytest.fail).rows.equals(unit.rows)
