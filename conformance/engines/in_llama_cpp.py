import contextlib
import os
import sys
from pathlib import Path

SOURCE = next((Path(sys.prefix) / "source").glob("*/vendor/llama.cpp"))
sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py")]  # the converter, and the gguf that it is written for

from cyllama.llama import llama_cpp  # noqa: E402


def tokens(job):
    path = job["folder"]
    if not path.endswith(".gguf"):
        path = convert(path, job.get("gguf", f"{path}.gguf"))
    return greedy(path, job["prompt"], job["tokens"]) if job["tokens"] else []


def convert(folder, out):
    """As convert_hf_to_gguf.py does it, but for the vocabulary: it knows tokenizers by their hash, and ours is none."""
    import gguf
    import torch
    from conversion import ModelBase, get_model_class

    hparams = ModelBase.load_hparams(Path(folder), False)
    kind = get_model_class(hparams["architectures"][0])
    kind.set_vocab = set_vocab
    with contextlib.suppress(FileNotFoundError):
        os.remove(out)
    with torch.inference_mode():
        kind(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out)).write()
    return out


def set_vocab(model):
    words = [f"t{number}" for number in range(model.hparams["vocab_size"])]
    model.gguf_writer.add_tokenizer_model("gpt2")
    model.gguf_writer.add_tokenizer_pre("gpt-2")
    model.gguf_writer.add_token_list(words)
    model.gguf_writer.add_token_types([1] * len(words))
    model.gguf_writer.add_token_merges(["t 0"])


def greedy(path, prompt, number):
    llama_cpp.disable_logging()
    model = llama_cpp.LlamaModel(path, llama_cpp.LlamaModelParams())
    options = llama_cpp.LlamaContextParams()
    options.n_ctx = len(prompt) + number
    options.n_threads = options.n_threads_batch = 1
    # otherwise keys, values and sums over them are rounded to 16 bits
    options.type_k = options.type_v = 0
    options.flash_attn_type = 0
    context = llama_cpp.LlamaContext(model, options)
    sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    sampler.add_greedy()
    found, batch = [], llama_cpp.llama_batch_get_one(prompt, 0)
    while True:
        context.decode(batch)
        found.append(sampler.sample(context, -1))
        if len(found) == number:
            return found
        batch = llama_cpp.llama_batch_get_one(found[-1:], len(prompt) + len(found) - 1)
