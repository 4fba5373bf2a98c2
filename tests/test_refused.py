"""What a user can get wrong: what is typed or given, and words of the one line that says so."""

import copy
import dataclasses
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import deeper_layers as ours
from deeper_layers import PRESETS, Cut, InputError, export
from deeper_layers.data import corpora
from deeper_layers.data.tokens import token_sequences
from deeper_layers.errors import MAX_LENGTH
from deeper_layers.sweeping.sweeps import text_loss
from deeper_layers_companion.command import main
from deeper_layers_companion.jobs import notebook_options as shown
from deeper_layers_companion.jobs import options as kinds
from deeper_layers_companion.results.places import AROUND as ROOT

PRUNE = "prune tiny out --rule simple --drop 1"
IDS = torch.ones(1, 4, dtype=torch.long)
WHOLE = [Cut(0, 0)]
LONG = "A few words to learn from. " * 40
SHORT = dataclasses.replace(PRESETS["small"], steps=1, sequence_length=16, quantization=None)


def batches(ids, mask=None) -> list[dict]:
    return [{"input_ids": ids, "attention_mask": torch.ones_like(IDS) if mask is None else mask}]


def on_meta(model):
    with torch.device("meta"):
        return type(model)(model.config)


def giving_tuples(model):
    model = copy.deepcopy(model)
    model.config.return_dict = False
    return model


def of_few_positions(model):
    model = copy.deepcopy(model)
    model.config.max_position_embeddings = 15
    return model


def of_two_types(model):
    model = copy.deepcopy(model).to(torch.bfloat16)
    model.lm_head.float()
    return model


@pytest.fixture
def here(tiny_folder, tiny_gguf, tmp_path, monkeypatch):
    """A folder to stand in, offline, with a model, its GGUF file, another file, and a pipe that blocks who reads it."""
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    shutil.copyfile(tiny_gguf, tmp_path / "tiny.gguf")
    (tmp_path / "FILE").write_text("{}")
    (tmp_path / "t5.json").write_text('{"model_type": "t5"}')
    os.mkfifo(tmp_path / "PIPE")
    for name in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{name}.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DATASETS_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TYPED = [  # what is typed, exit status, words of the line
    ("swep embedded", 2, "No such command 'swep'"),
    ("sweep /no/such/folder", 1, "'/no/such/folder' is no .gguf file, no folder"),
    ("sweep nobody/nothing-by-this-name", 1, "check the name and the connection"),
    ("distances tiny/config.json", 1, "is no .gguf file, no folder and no hub id"),
    ("distances PIPE", 1, "a pipe or a device"),
    ("plan", 2, "expected MODEL, or --model-config"),
    ("plan --model-config t5.json", 1, "encoder-decoder"),
    ("plan tiny --machine h100x0", 1, "--machine is 'h100x0', expected 'this' or one of h100, h200"),
    ("sweep embedded --sizes two", 1, "--sizes is 'two', expected numbers like \"0-8, 12\", or all"),
    ("sweep embedded --sizes 0-30", 1, "--sizes is 30; expected a whole number from 0 to 29; the last of 30"),
    ("sweep embedded --tasks capitals:five", 1, "--tasks is 'capitals:five', expected tasks like \"mmlu:5@20/0-8\": 5"),
    ("sweep embedded --tasks 'capitals:1, capitals:2'", 1, "twice, and asks other things"),
    ("sweep embedded --tasks 'sums, capitals:5'", 1, "task 'capitals' has no examples for its prompt"),
    ("sweep embedded --tasks capitols", 1, "did you mean capitals"),
    ("sweep embedded --tasks 'capitals, mbpp_instruct'", 1, "runs code that the model writes"),
    ("sweep embedded --tasks wikitext", 1, "is of type loglikelihood_rolling"),
    ("sweep tiny --tasks piqa --datasets tiny --results new", 1, "DATASETS_MIRROR"),
    ("sweep embedded --limit 0", 1, "--limit is 0, expected greater than or equal to 1"),
    ("sweep embedded --rules best", 1, "--rules is 'best', expected some of similarity, simple, "),
    ("sweep embedded --tasks capitals@0", 1, "20 items, of which there is at least 1"),
    ("sweep embedded --layers 30", 1, "--layers 30 is of layer 30; expected layers 0 to 29"),
    ("scan embedded --starts 28 --blocks 3", 1, "--starts 28 --blocks 3 is of layer 30; expected"),
    ("sweep embedded --limit 7 --no-measure", 1, "not measured: capitals"),
    ("sweep embedded --limit 7 --no-measure", 1, "nearest that results hold of it is capitals with capitals limit 120"),
    ("distances embedded --samples 7 --no-measure", 1, "is wikipedia with samples 256, not 7"),
    ("sweep embedded --layers 1 --sizes 0-1", 2, "--layers and --sizes exclude each other"),
    ("sweep embedded --keep 0.95 --precision 0.05", 2, "give one of them, as a share is judged on all items"),
    ("distances embedded --device gpu", 1, "--device is 'gpu', expected one of auto, cpu"),
    ("distances embedded --quantization int4", 1, "--quantization is 'int4', expected one of nf4, int8, or none:"),
    ("distances tiny --revision main", 1, "is no hub id: leave it out"),
    ("distances tiny --results FILE", 1, "FILE is no folder: name another place"),
    ("scan tiny --starts 3 --sizes 0-2", 2, "--sizes and --blocks 4 exclude each other"),
    ("heal embedded", 2, "--drop says how many layers go, --layers which: give one of them"),
    ("heal embedded --drop 30", 1, "--drop is 30; expected 0 to 29"),
    ("heal embedded --drop 2 --start 29", 1, "--start 29 --drop 2 is of layer 30; expected layers 0 to 29"),
    ("heal embedded --drop 2 --text bible", 1, "--text is 'bible', expected one of wikipedia, c4, code"),
    ("heal embedded --drop 3 --learning-rate nan", 1, "--learning-rate is nan"),
    ("prune embedded out --drop 2 --start 0 --rule simple", 2, "give one of them"),
    ("prune embedded out --drop 2 --heal small --no-measure", 2, "--heal and --no-measure exclude each other"),
    ("prune tiny tiny --drop 1", 1, "tiny exists, and nothing is overwritten: give"),
    ("prune tiny out --adapter tiny", 1, "lacks adapter_model.safetensors"),
    ("prune tiny out --drop 1 --steps 5", 2, "--steps is of --heal"),
    ("prune tiny.gguf out.gguf --drop 1 --rule replaceme", 1, "of a GGUF file alone, whose weights no rule changes"),
    ("prune tiny out.gguf --drop 1", 1, "is made of a GGUF file alone"),
    ("prune tiny.gguf out.gguf --drop 1 --dtype float16", 1, "a folder is made of any model, in a --dtype"),
    ("prune tiny out --drop 1 --for ollama", 1, "the engine (--for) is 'ollama', expected one of llama.cpp"),
    ("prune tiny out --drop 1 --push-to-hub a/b", 2, "No such option"),
    ("prune tiny out --drop 1 --overwrite", 2, "No such option"),
    ("sweep tiny --engine vllm", 2, "No such option"),
    ("prune tiny out --drop 1 --rule replaceme-cosine", 2, "'replaceme-cosine' is not one of 'similarity', 'simple', "),
    ("prune tiny out --drop 1 --heal big", 1, "--heal is 'big', expected one of Llama-2 7B, "),
    ("prune tiny out --start 4 --drop 2", 1, "--start 4 --drop 2 is of layer 5; expected layers 0 to 4"),
    ("prune tiny out --to-size big", 1, "--to-size is 'big', expected bytes as 400MB"),
    ("prune tiny out --mlp 1", 1, "--silence writes zeros into a folder where they end"),
    ("report embedded --notebooks 99", 1, "--notebooks is '99', expected 'all' or some of 01-similarity"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "status", "words"), TYPED, ids=[typed[:60] for typed, _, _ in TYPED])
def test_what_is_typed(typed, status, words, here):
    before = sorted(here.rglob("*"))
    done = CliRunner().invoke(main, shlex.split(typed))
    print(done.stderr)  # shown where a test fails
    lines = done.stderr.strip().splitlines()
    assert done.exit_code == status and done.stdout == "" and "Traceback" not in done.stderr
    assert words in lines[-1] and lines[-1].lower().startswith("error: ")
    assert [path for path in sorted(here.rglob("*")) if "cache" not in path.parts] == before


GIVEN = [  # a call, of the tiny model and its tokenizer, and words of the line
    (lambda m, t: Cut(1, 10**5000), "size is a int"),
    (lambda m, t: ours.similarity_cut(np.full((4, 4), np.nan), 1), "expected"),
    (lambda m, t: dataclasses.replace(PRESETS["small"], at_once=3), "at_once is 3, expected a divisor"),
    (lambda m, t: corpora.texts("bible"), "corpus is 'bible', expected one of 'wikipedia', 'c4'"),
    (lambda m, t: ours.drop_layers(m, (1, 2)), "expected"),
    (lambda m, t: corpora.texts(["c4"]), "corpus is ['c4'], expected one of"),
    (lambda m, t: corpora.texts("wikipedia", split="test"), "split is 'test', expected 'train' or 'validation'"),
    (lambda m, t: corpora.texts("wikipedia", documents=0), "documents is 0; expected a whole number from 1"),
    (lambda m, t: token_sequences(t, None, length=9), "documents is None, expected a list of texts"),
    (lambda m, t: token_sequences(t, "a text", length=9), "documents is 'a text'"),
    (lambda m, t: token_sequences(t, ["a", None], length=9), "documents is ['a', None]"),
    (lambda m, t: token_sequences(None, ["a text"], length=9), "tokenizer is None"),
    (lambda m, t: ours.decoder_layers(torch.nn.Linear(2, 2)), "Linear"),
    (lambda m, t: ours.decoder_layers(types.SimpleNamespace(config=m.config)), "the model is a SimpleNamespace"),
    (lambda m, t: ours.decoder_layers(type(m)), "the model is a type"),
    (lambda m, t: ours.angular_distances(m, []), "there is no sequence"),
    (lambda m, t: ours.angular_distances(m, [{"input_ids": IDS, "attention_mask": 0 * IDS}]), "all padding"),
    (lambda m, t: ours.angular_distances(m, None), "batches is None, expected a list of batches"),
    (lambda m, t: ours.angular_distances(m, batches(IDS)[0]), "expected a list of batches: put one into a list"),
    (lambda m, t: ours.angular_distances(m, ["a text"]), "a batch is 'a text'; expected input_ids and attention_mask"),
    (lambda m, t: ours.angular_distances(m, [{"input_ids": IDS}]), "expected input_ids and attention_mask, [B, T]"),
    (lambda m, t: ours.angular_distances(m, batches(IDS[:0], IDS[:0])), "with a token at least"),
    (lambda m, t: ours.angular_distances(m, batches(IDS.float())), "of torch.float32 and attention_mask [1, 4]; expec"),
    (lambda m, t: ours.angular_distances(m, batches(IDS, IDS[:, :3])), "and attention_mask [1, 3]; expected"),
    (lambda m, t: ours.angular_distances(m, batches(10**6 * IDS)), "a token has the number 1000000, expected 0 to"),
    (lambda m, t: ours.angular_distances("embedded", batches(IDS)), "the model is a str, expected one of transformer"),
    (lambda m, t: ours.angular_distances(on_meta(m), batches(IDS)), "has shapes and no weights, on device meta"),
    (lambda m, t: ours.sweep(on_meta(m), t, ["capitals"], WHOLE), "has shapes and no weights, on device meta"),
    (lambda m, t: ours.sweep(m.model, t, ["capitals"], WHOLE), "is a LlamaModel, which has no head, expected one"),
    (lambda m, t: ours.plan(giving_tuples(m), t, ["capitals"], WHOLE), "config.return_dict is False, expected True"),
    (lambda m, t: ours.plan(of_two_types(m), t, ["capitals"], WHOLE), "give all weights one data type and place"),
    (lambda m, t: text_loss(m, WHOLE, None), "there is no sequence to measure the loss on"),
    (lambda m, t: text_loss(m, WHOLE, ["a text"]), "a sequence is 'a text', expected whole numbers [T]"),
    (lambda m, t: text_loss(m, WHOLE, [IDS[0].float()]), "a sequence is tensor([1., 1., 1., 1.]), expected whole"),
    (lambda m, t: text_loss(m, WHOLE, [IDS]), "expected whole numbers [T]: use token_sequences"),
    (lambda m, t: ours.sweep(m, t, ["capitals"], None), "cuts is None, expected a list of some"),
    (lambda m, t: ours.sweep(m, t, ["capitals"], Cut(1, 1)), "cuts is Cut(start=1, size=1), expected a list of some"),
    (lambda m, t: ours.sweep(m, t, ["capitals"], [1]), "cut is 1; expected a Cut"),
    (lambda m, t: ours.sweep(m, t, ["capitals"], [Cut(4, 3)]), "the cut is of layer 6; expected layers 0 to 4"),
    (lambda m, t: ours.sweep(m, None, ["capitals"], WHOLE), "tokenizer is None, expected the model's"),
    (lambda m, t: ours.sweep(m, t, ["capitals"], WHOLE, limit=1.5), "limit is 1.5; expected a whole number from 1"),
    (lambda m, t: ours.drop_layers(None, Cut(1, 1)), "the model is a NoneType; expected a transformers"),
    (lambda m, t: ours.merge_adapters(None), "healed is a NoneType, expected a model with adapters"),
    (lambda m, t: ours.heal(m, t, ["a text"], None), "config is None, expected a HealingConfig"),
    (lambda m, t: ours.heal(m.model, t, [LONG], SHORT), "is a LlamaModel, which has no head, expected one"),
    (lambda m, t: ours.heal(giving_tuples(m), t, [LONG], SHORT), "config.return_dict is False, expected True"),
    (lambda m, t: ours.heal(of_few_positions(m), t, [LONG], SHORT), "a sequence has 16 tokens, and LlamaForCausalLM"),
    (lambda m, t: ours.HealingConfig(), "rank is missing"),
    (lambda m, t: ours.similarity_cut(None, 1), "distances is of shape (); expected (L, L)"),
    (lambda m, t: ours.similarity_cut([[0.1], [0.1, 0.2]], 1), "distances is [[0.1], [0.1, 0.2]] (setting an array"),
    (lambda m, t: ours.similarity_cut("most", 1), "distances is 'most' (could not convert"),
    (lambda m, t: ours.simple_cut("30", 1), "num_layers is '30'; expected a whole number from 1"),
    (lambda m, t: Cut.of(None), "layers is None; expected a list of layers; put one into a list"),
    (lambda m, t: Cut.of(mlp=3), "mlp is 3; expected a list of layers"),
    (lambda m, t: ours.sweep(m, t, "capitals", [Cut(0, 0)]), "tasks is 'capitals'"),
    (lambda m, t: ours.heal(m, t, "text", PRESETS["small"]), "texts"),
    (lambda m, t: ours.merge_adapters(m), "adapters"),
    (lambda m, t: ours.load_model(None), "model is None, expected Unicode text"),
    (lambda m, t: ours.load_model(m), "model is LlamaForCausalLM"),
    (lambda m, t: ours.load_model(""), "model is ''"),
    (lambda m, t: ours.load_model("a/b", revision=5), "revision is 5"),
    (lambda m, t: ours.load_model("tiny", dtype="fp8"), "dtype is 'fp8'"),
    (lambda m, t: ours.load_model("tiny", device="meta"), "device is 'meta'"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "/dev/null/out"), "/dev/null"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), ""), "out is '', expected Unicode text"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), None), "out is None, expected str or Path"),
    (lambda m, t: ours.slice_checkpoint(None, Cut(0, 1), "out"), "source is None, expected str or Path"),
    (lambda m, t: ours.slice_checkpoint("tiny", (0, 1), "out"), "cut is (0, 1), expected Cut"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "out", adapter=b"x"), "adapter is b'x', expected str or"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "out", adapter="a\0"), "adapter is 'a\\x00', expected"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "out", changed={"a": 1}), "expected Changed or None"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "out", silence="no"), "silence is 'no', expected bool"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "out", card=[]), "card is [], expected str"),
    (lambda m, t: ours.slice_checkpoint("tiny", Cut(0, 1), "out", command=("a", "b")), "expected str or None"),
    (lambda m, t: export.slice_gguf("tiny.gguf", 1, "out.gguf"), "cut is 1, expected Cut"),
    (lambda m, t: export.slice_gguf("tiny.gguf", Cut(0, 1), ""), "out is '', expected Unicode text"),
    (lambda m, t: export.slice_gguf("tiny.gguf", Cut(0, 1), None), "expected str or Path: give one"),
    (lambda m, t: export.quantize("tiny.gguf", "out.gguf", ["Q8_0"]), "type is ['Q8_0'], expected str"),
    (lambda m, t: shown.QuestionAnsweringParameters.from_names({"modle": "a"}), "unknown parameter 'modle'"),
    (lambda m, t: shown.TakeAwayParameters(tasks="sums/0-1"), "tasks is 'sums/0-1', expected"),
    (lambda m, t: shown.WhichLayersParameters(rules="laco"), "rules is 'laco', expected some of similarity, simple, "),
]  # fmt: skip


def in_one_line(error: InputError) -> str:
    line = str(error)
    assert "\n" not in line and len(line) <= MAX_LENGTH
    return line


@pytest.mark.quick
@pytest.mark.wrong_types
@pytest.mark.parametrize(("call", "words"), GIVEN, ids=[words for _, words in GIVEN])
def test_what_is_given(call, words, opened, here):
    before = sorted(here.rglob("*"))
    with pytest.raises(InputError) as caught:
        call(*opened)
    assert words in in_one_line(caught.value) and sorted(here.rglob("*")) == before


@pytest.mark.quick
def test_a_folder_without_its_configuration_says_so(here):
    os.remove("tiny/config.json")
    with pytest.raises(InputError, match="tiny has no config.json: give a checkpoint"):
        ours.load_model("tiny")


HELP = 20  # characters from which a description says more than what kind of thing is expected
ODD = [None, True, 7, -7, 10**30, 10**5000, 1.5, math.nan, math.inf, [], {}, b"x", object(), "7", "", "x" * 5000,
       "nul\0l", "\ud800", "²", "0-99999999999", "../../x", "PIPE"]  # fmt: skip


def test_every_odd_value_of_every_parameter_is_taken_or_told_in_one_line(here):
    found = (vars(kinds) | vars(shown)).items()
    fields = [(kind, name) for of, kind in found if of.endswith("Parameters") for name in kind.model_fields]
    assert len(fields) > 150
    for kind, name in fields:
        for value in ODD if name != "tasks" else ODD[:-4]:  # lm-eval is asked of names
            try:
                kind(**{name: value})
            except InputError as error:
                line, words = in_one_line(error), str(kind.model_fields[name].description)
                assert len(words) < HELP or words not in line, "a text of help says what an option does"


# ---- processes of their own ------------------------------------------------------------------------------------------


def started(*words: str) -> subprocess.Popen:
    path = os.pathsep.join([os.getcwd(), str(ROOT / "lib"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes)


def test_ctrl_c_at_once_and_a_signal_later_are_told(here):
    (here / "click.py").write_text("raise KeyboardInterrupt")  # while the first of the packages is imported
    first = started(sys.executable, "-m", "deeper_layers_companion", "distances", "tiny")
    assert (first.communicate(timeout=60)[1], first.returncode) == ("\ninterrupted\n", 130)
    (here / "click.py").unlink()
    slow = "import time, deeper_layers.models as m\ndef late(*_, **__): print('begun', flush=True); time.sleep(60)\n"
    slow += "m.__dict__['find_model'] = late\nfrom deeper_layers_companion.__main__ import main\nmain()"
    second = started(sys.executable, "-c", slow, "distances", "tiny")
    assert "begun" in second.stderr.readline()  # what is printed meanwhile goes to stderr
    time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    assert "interrupted: what was measured in full is kept" in second.communicate(timeout=60)[1]
    assert second.returncode == 130


@pytest.mark.thorough
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_report_that_is_ended_while_its_notebook_measures_goes_on(sent, here):
    asked = "report tiny --notebooks 01 --no-site --corpus wikipedia --samples 8 --sequence-length 64 --results kept"
    words = [sys.executable, "-m", "deeper_layers_companion", *shlex.split(asked)]
    first = started(*words)
    until = time.monotonic() + 120
    while not list(here.glob("kept/**/*.lock")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert first.poll() is None and list(here.glob("kept/**/*.lock"))
    first.send_signal(sent)
    said = first.communicate(timeout=60)[1]
    assert "Traceback" not in said and "caught in kernel" not in said
    assert first.returncode == (-sent if sent == signal.SIGKILL else 130)
    again = started(*words)
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 0, said
    assert list(here.glob("kept/**/distances-*.json"))


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads all")
def test_what_may_not_be_read_is_named(here):
    # root may read what nobody may, unless it gives that right away
    rights = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search "
    (here / "tiny").chmod(0)
    words = (rights if os.geteuid() == 0 else "") + f"{sys.executable} -m deeper_layers_companion {PRUNE}"
    done = started(*shlex.split(words))
    said = done.communicate(timeout=120)[1]
    (here / "tiny").chmod(0o700)
    assert done.returncode == 1 and "Permission denied: 'tiny/" in said.splitlines()[-1]


@pytest.mark.quick
@pytest.mark.parametrize(
    "use", [ours.load_model, lambda folder: ours.slice_checkpoint(folder, Cut(1, 1), "out")], ids=["open", "prune"]
)
def test_python_without_docstrings_is_told_so(use, here, monkeypatch):
    """As `python -OO` is, which would first compile all of torch."""
    flags = types.SimpleNamespace(optimize=2)
    monkeypatch.setattr("deeper_layers.models.configuration.sys", types.SimpleNamespace(flags=flags))
    with pytest.raises(InputError, match=r"^PYTHONOPTIMIZE is 2 \(python -OO\), without docstrings"):
        use("tiny")
    assert not os.path.exists("out")


def test_where_the_folder_of_the_shell_is_gone(here):
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    for typed in ("plan embedded", f"prune {here / 'tiny'} out --rule simple --drop 1", "results check ."):
        done = CliRunner().invoke(main, shlex.split(typed))
        assert done.exit_code == 1 and done.stderr.startswith("Error: the folder in which this was typed is gone")
    os.chdir(here)


@pytest.mark.parametrize(
    ("number", "typed"),
    [(number, "sweep tiny --tasks capitals --limit 2 --rules simple --sizes 0-1") for number in ("abc", "2", "-1")]
    + [("abc", "prune tiny out --rule simple --drop 1 --heal small --text wikipedia")],
)
def test_a_result_is_measured_by_one_process(number, typed, here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", number)
    done = CliRunner().invoke(main, shlex.split(typed))
    assert done.exit_code == 1 and f"WORLD_SIZE is {number}, and a result is measured by one" in done.stderr
    assert not (here / "out").exists()


def test_healing_says_what_it_can_not_start_with(opened, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "abc")
    with pytest.raises(InputError, match="healing can't start with WORLD_SIZE 'abc'"):
        ours.heal(*opened, [LONG], SHORT)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
    ("typed", "words"), [(PRUNE, "can't print the answer ([Errno 28]"), ("--help", "can't print (No space left")]
)
def test_an_answer_that_can_not_be_printed_is_told_so_and_what_was_written_stays(typed, words, here):
    path = os.pathsep.join([str(ROOT / "lib"), str(ROOT)])
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "deeper_layers_companion", *shlex.split(typed)]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and line.startswith("Error: ") and words in line and "Traceback" not in done.stderr
    assert "same command" not in line and (here / "out" / "config.json").exists() == (typed == PRUNE)


def test_a_full_disk_and_a_mirror_of_the_environment_are_noticed(here, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 50_000))
    done = CliRunner().invoke(main, shlex.split(PRUNE))
    assert done.exit_code == 1 and "where 0.05 MB are free" in done.stderr and not (here / "out").exists()
    monkeypatch.setenv("DATASETS_MIRROR", "/no/where")
    done = CliRunner().invoke(main, ["plan", "tiny", "--tasks", "capitals"])
    assert done.exit_code == 1 and "DATASETS_MIRROR is '/no/where'" in done.stderr
