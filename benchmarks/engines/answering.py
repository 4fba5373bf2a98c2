"""One engine on many folders: PYTHON answering.py ENGINE JOBS ANSWERS, run by the Python of the engine's environment.

JOBS is a list of {name, folder, prompt (numbers of tokens), tokens (how many more)}. ANSWERS gets a line a job as soon
as it is done: {name, tokens} or {name, error}. Jobs that have a line are not done again. Nothing of this project is
imported, and what the engine prints goes to standard error.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

WAYS = {}


def main(way: str, jobs: str, answers: str) -> None:
    os.dup2(2, 1)  # an engine's own messages are no answers
    wanted, place, done = json.loads(Path(jobs).read_text()), Path(answers), set()
    if place.exists():
        done = {json.loads(line)["name"] for line in place.read_text().splitlines()}
    for job in wanted:
        if job["name"] in done:
            continue
        try:
            answer = {"tokens": [int(token) for token in WAYS[way](job)]}
        except BaseException as error:  # whatever an engine raises is its answer, a panic of Rust too
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        with place.open("a") as file:
            file.write(json.dumps({"name": job["name"], **answer}) + "\n")


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def write(job):
    """A tiny random checkpoint, saved by the transformers of this environment; no tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    config = AutoConfig.for_model(job["model_type"], **job["settings"])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains of norms and biases, which start as constants
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(job["folder"])
    words = {f"t{number}": number for number in range(job["vocabulary"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.ByteLevel()
    named = {"unk_token": "t0", "pad_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(job["folder"])
    return []


def generated(model, job):
    import torch

    prompt = torch.tensor([job["prompt"]])
    how = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": job["tokens"], "do_sample": False}
    return model.generate(prompt, **how)[0, prompt.shape[1] :]


@way
def transformers(job):
    import torch
    from transformers import AutoModelForCausalLM

    return generated(AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32).eval(), job)


@way
def openvino(job):
    from optimum.intel import OVModelForCausalLM

    # its plug-in for processors else rounds to 16 bits, and the cache to 8
    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    how = {"export": True, "load_in_8bit": False, "ov_config": exact}
    return generated(OVModelForCausalLM.from_pretrained(job["folder"], **how), job)


@way
def vllm(job):
    # in one process, and no more memory for keys and values than tiny models need
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, ModelRegistry, SamplingParams

    (architecture,) = json.loads(Path(job["folder"], "config.json").read_text())["architectures"]
    if architecture not in ModelRegistry.get_supported_archs():
        raise ValueError(f"{architecture} is none of its registry")
    how = {"enforce_eager": True, "max_model_len": 64, "skip_tokenizer_init": True, "disable_log_stats": True}
    llm = LLM(job["folder"], dtype="float32", **how)
    options = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True, detokenize=False)
    (found,) = llm.generate([{"prompt_token_ids": job["prompt"]}], options, use_tqdm=False)
    del llm
    gc.collect()
    return found.outputs[0].token_ids


@way
def ctranslate2(job):
    import ctranslate2

    with tempfile.TemporaryDirectory() as out:
        ctranslate2.converters.TransformersConverter(job["folder"]).convert(out, force=True)
        generator = ctranslate2.Generator(out, compute_type="float32", intra_threads=1)
        how = {"sampling_topk": 1, "include_prompt_in_result": False, "return_end_token": True}
        prompt = [f"t{token}" for token in job["prompt"]]
        (found,) = generator.generate_batch([prompt], max_length=job["tokens"], **how)
    return found.sequences_ids[0]


@way
def onnxruntime(job):
    import onnxruntime_genai
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as cache:
        how = ("", job["folder"], out, "fp32", "cpu", cache)
        create_model(*how, **parse_extra_options(*how, []))
        model = onnxruntime_genai.Model(out)
        options = onnxruntime_genai.GeneratorParams(model)
        options.set_search_options(max_length=len(job["prompt"]) + job["tokens"], do_sample=False)
        generator = onnxruntime_genai.Generator(model, options)
        generator.append_tokens(job["prompt"])
        while not generator.is_done():
            generator.generate_next_token()
        found = list(generator.get_sequence(0))[len(job["prompt"]) :]
        del generator, options, model
    return found


@way
def mistralrs(job):
    from mistralrs import CompletionRequest, ModelDType, Runner, Which

    with tempfile.TemporaryDirectory() as folder:
        for path in Path(job["folder"]).resolve().iterdir():
            if path.name != "tokenizer.json":
                Path(folder, path.name).symlink_to(path)
        tokenizer = json.loads(Path(job["folder"], "tokenizer.json").read_text())
        tokenizer["added_tokens"] = []  # it answers with text, and leaves special tokens out of that
        Path(folder, "tokenizer.json").write_text(json.dumps(tokenizer))
        runner = Runner(which=Which.Plain(model_id=folder, dtype=ModelDType.F32), no_paged_attn=True)
        prompt = " ".join(f"t{token}" for token in job["prompt"])
        how = {"model": "default", "max_tokens": job["tokens"], "temperature": 0.0, "top_k": 1, "ignore_eos": True}
        answer = runner.send_completion_request(CompletionRequest(prompt=prompt, **how))
    return [int(word) for word in answer.choices[0].text.split("t")[1:]]


@way
def llama_cpp(job):
    path = job["folder"]
    if not path.endswith(".gguf"):
        path = converted(path)
    if not job["tokens"]:
        return []
    from cyllama.llama import llama_cpp as engine

    engine.disable_logging()
    model = engine.LlamaModel(path, engine.LlamaModelParams())
    options = engine.LlamaContextParams()
    options.n_ctx = len(job["prompt"]) + job["tokens"]
    options.n_threads = options.n_threads_batch = 1
    # otherwise keys, values and sums over them are rounded to 16 bits
    options.type_k = options.type_v = options.flash_attn_type = 0
    context = engine.LlamaContext(model, options)
    sampler = engine.LlamaSampler(engine.LlamaSamplerChainParams())
    sampler.add_greedy()
    found, batch = [], engine.llama_batch_get_one(job["prompt"], 0)
    while True:
        context.decode(batch)
        found.append(sampler.sample(context, -1))
        if len(found) == job["tokens"]:
            return found
        batch = engine.llama_batch_get_one(found[-1:], len(job["prompt"]) + len(found) - 1)


def converted(folder):
    """As convert_hf_to_gguf.py does it, but for the vocabulary: it knows tokenizers by their hash, and ours is none."""
    source = next((Path(sys.prefix) / "source").glob("*/vendor/llama.cpp"))
    sys.path[:0] = [str(source), str(source / "gguf-py")]  # the converter, and the gguf that it is written for
    import gguf
    import torch
    from conversion import ModelBase, get_model_class

    def set_vocab(model):
        words = [f"t{number}" for number in range(model.hparams["vocab_size"])]
        model.gguf_writer.add_tokenizer_model("gpt2")
        model.gguf_writer.add_tokenizer_pre("gpt-2")
        model.gguf_writer.add_token_list(words)
        model.gguf_writer.add_token_types([1] * len(words))
        model.gguf_writer.add_token_merges(["t 0"])

    hparams = ModelBase.load_hparams(Path(folder), False)
    kind = get_model_class(hparams["architectures"][0])
    kind.set_vocab = set_vocab
    out = f"{folder}.gguf"
    with contextlib.suppress(FileNotFoundError):
        os.remove(out)
    with torch.inference_mode():
        kind(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out)).write()
    return out


if __name__ == "__main__":
    main(*sys.argv[1:])
