"""Real models without two layers, answering in each engine: the lines that one types are run, what they say is kept.

    python -m conformance.open_in                                      SmolLM2 in every engine
    python -m conformance.open_in vllm --model Qwen2.5-Coder-1.5B-Instruct

The lines and what they said go into open_in.json, from which the book shows both. Each is right where it says what
transformers says of the same model cut in memory, in float32.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from conformance.environments import ENGINES, LIBRARY, python_of, versions_of
from conformance.measured import OPEN_IN, read_measured
from deeper_layers import Cut, drop_layers, load_model
from deeper_layers.errors import InputError, first_line
from deeper_layers.files import write_file
from deeper_layers.models import device_name
from deeper_layers.models.packaged import EMBEDDED, QWEN
from deeper_layers.package_index import cache_folder
from deeper_layers.results.circumstances import provenance

# what is typed for it, where it is written, and the two layers next to each other that change the least
MODELS = {EMBEDDED.name: ("embedded", "smollm2", Cut(25, 2)), QWEN.name: (QWEN.name, "qwen", Cut(15, 2))}
TOKENS = 16
PROMPT = "The capital of France is"
MADE_BY = (
    "deeper-layers prune {model} {folder} --drop 2 --start {start}",
    "deeper-layers prune {model} {folder}.gguf --drop 2 --start {start} --type f32",
)
OF_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="float32")
prompt = tokenizer("{prompt}", return_tensors="pt")["input_ids"]
answer = model.generate(prompt, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(answer[0, prompt.shape[1] :]))
"""
# what one types into Python, by engine
LINES = {
    "transformers": OF_TRANSFORMERS,
    "transformers-oldest": OF_TRANSFORMERS,
    "vllm": """\
from vllm import LLM, SamplingParams

if __name__ == "__main__":  # it starts processes of its own
    llm = LLM("{folder}", dtype="float32", max_model_len=512, enforce_eager=True)
    answer = llm.generate("{prompt}", SamplingParams(temperature=0, max_tokens={tokens}))
    print(answer[0].outputs[0].text)
""",
    "ctranslate2": """\
import ctranslate2
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
generator = ctranslate2.Generator("{folder}-ctranslate2", compute_type="float32")
prompt = tokenizer.convert_ids_to_tokens(tokenizer("{prompt}")["input_ids"])
answer = generator.generate_batch([prompt], max_length={tokens}, sampling_topk=1, include_prompt_in_result=False)
print(tokenizer.decode(answer[0].sequences_ids[0]))
""",
    "openvino": """\
from optimum.intel import OVModelForCausalLM
from transformers import AutoTokenizer

exact = {{"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}
tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = OVModelForCausalLM.from_pretrained("{folder}", export=True, load_in_8bit=False, ov_config=exact)
prompt = tokenizer("{prompt}", return_tensors="pt")["input_ids"]
answer = model.generate(prompt, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(answer[0, prompt.shape[1] :]))
""",
    "onnxruntime": """\
import onnxruntime_genai

model = onnxruntime_genai.Model("{folder}-onnx")
tokenizer = onnxruntime_genai.Tokenizer(model)
prompt = tokenizer.encode("{prompt}")
options = onnxruntime_genai.GeneratorParams(model)
options.set_search_options(max_length=len(prompt) + {tokens}, do_sample=False)
generator = onnxruntime_genai.Generator(model, options)
generator.append_tokens(prompt)
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)[len(prompt) :]))
""",
    "mistral.rs": """\
from mistralrs import CompletionRequest, ModelDType, Runner, Which

runner = Runner(which=Which.Plain(model_id="./{folder}", dtype=ModelDType.F32))
request = CompletionRequest(prompt="{prompt}", model="default", max_tokens={tokens}, temperature=0.0, top_k=1)
print(runner.send_completion_request(request).choices[0].text)
""",
    "llama.cpp": """\
from cyllama.llama import llama_cpp

model = llama_cpp.LlamaModel("{folder}.gguf", llama_cpp.LlamaModelParams())
options = llama_cpp.LlamaContextParams()
options.type_k = options.type_v = options.flash_attn_type = 0  # keys and values in float32, too
context = llama_cpp.LlamaContext(model, options)
sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
sampler.add_greedy()
vocabulary = model.get_vocab()
tokens, answer = vocabulary.tokenize("{prompt}", add_special=True, parse_special=False), []
past, batch = len(tokens), llama_cpp.llama_batch_get_one(tokens, 0)
for number in range({tokens}):
    context.decode(batch)
    answer.append(sampler.sample(context, -1))
    batch = llama_cpp.llama_batch_get_one(answer[-1:], past + number)
print(vocabulary.detokenize(answer, unparse_special=True))
""",
}
# and into a shell before that, where an engine wants files of its own
FIRST = {
    "ctranslate2": "ct2-transformers-converter --model {folder} --output_dir {folder}-ctranslate2 --force",
    "onnxruntime": "python -m onnxruntime_genai.models.builder -i {folder} -o {folder}-onnx -p fp32 -e cpu -c cache",
}
PORT = 8123
SERVER = "python -m vllm.entrypoints.openai.api_server --model {folder} --dtype float32 --max-model-len 512 --port 8123"
CURL = """\
curl -s http://localhost:8123/v1/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{folder}", "prompt": "{prompt}", "max_tokens": {tokens}, "temperature": 0}}'"""
SECONDS = 1200
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "RUST_LOG": "error"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m conformance.open_in", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(LINES)}; all where none is given")
    parser.add_argument("--model", choices=list(MODELS), default=EMBEDDED.name)
    parser.add_argument("--work", type=Path, default=cache_folder() / "conformance", help="where all that is made lies")
    options = parser.parse_args()
    if strange := [name for name in options.engines if name not in LINES]:
        parser.error(f"the engine is {strange[0]!r}, expected one of {', '.join(LINES)}")
    place, words = options.work / "open-in", words_of(options.model)
    place.mkdir(parents=True, exist_ok=True)
    made = [line.format(**words) for line in MADE_BY]
    for line in made:
        if not (place / line.split()[3]).exists():
            typed(line, place, Path(sys.executable), {"PYTHONPATH": str(LIBRARY / "lib")})
    expected = Expected(options.model)
    for name in options.engines or LINES:
        try:
            found = answer(name, place, words, expected, options.work)
        except InputError as error:
            found = {"label": ENGINES[name].label, "not_tried": first_line(error)}
        print(f"{name}: {found.get('said', found)!r}", file=sys.stderr)
        keep(options.model, made, expected.text, name, found)


def words_of(model: str) -> dict:
    """What the lines name: the model, where it lies, and what it is asked."""
    typed_as, folder, cut = MODELS[model]
    return {"model": typed_as, "folder": folder, "start": cut.start, "prompt": PROMPT, "tokens": TOKENS}


def answer(name: str, place: Path, words: dict, expected: "Expected", work: Path) -> dict:
    """What an engine's lines say; vLLM's OpenAI server says it, too."""
    python = python_of(name, work)
    lines = LINES[name].format(**words)
    (place / "typed.py").write_text(lines, encoding="utf-8")
    first = FIRST.get(name, "").format(**words)
    start = time.monotonic()
    if first:
        typed(first, place, python)
    said = typed("python typed.py", place, python)
    found = {"label": ENGINES[name].label, "versions": versions_of(name, work), "first": first, "lines": lines}
    found["said"] = said
    found |= {"seconds": round(time.monotonic() - start, 1), **expected.compared(said)}
    if name == "vllm":
        served = serve(SERVER.format(**words), CURL.format(**words), place, python)
        text = served["answer"]["choices"][0]["text"]
        found["served"] = {"typed": served["typed"], "said": served["said"], **expected.compared(text)}
    return found


def typed(line: str, place: Path, python: Path, more: dict | None = None) -> str:
    """What a line says that is typed in a folder, where `python` is that of an environment; its last lines."""
    environment = {**os.environ, **QUIET, "PATH": f"{python.parent}:{os.environ['PATH']}", **(more or {})}
    if not more:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        ["bash", "-c", line], cwd=place, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise InputError(f"{line.split()[0]} failed ({last[:200]}): type it yourself in {place}")
    return done.stdout.strip("\n")


def serve(server: str, curl: str, place: Path, python: Path) -> dict:
    """What a server says to a line of curl once it is up."""
    environment = {**os.environ, **QUIET, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    with open(place / "server.log", "w", encoding="utf-8") as log:
        running = subprocess.Popen(
            server.split(), cwd=place, env=environment, stdout=log, stderr=log, executable=str(python)
        )
        try:
            for _ in range(SECONDS // 2):
                up = subprocess.run(["curl", "-sf", f"http://localhost:{PORT}/health"], capture_output=True)
                if up.returncode == 0 or running.poll() is not None:
                    break
                time.sleep(2)
            said = typed(curl, place, python)
        finally:
            running.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(30)
    return {"typed": [server, curl], "said": said, "answer": json.loads(said)}


class Expected:
    """What transformers says of the model cut in memory, and whether an engine says the same."""

    def __init__(self, model: str):
        typed_as, _, cut = MODELS[model]
        whole, self.tokenizer = load_model(typed_as)
        self.model = drop_layers(whole, cut).eval()
        self.prompt = self.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        self.tokens = self._greedy(self.prompt)
        self.text = self.tokenizer.decode(self.tokens)

    @torch.no_grad()
    def _greedy(self, prompt: torch.Tensor) -> list[int]:
        mask = torch.ones_like(prompt)
        found = self.model.generate(prompt, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
        return found[0, prompt.shape[1] :].tolist()

    @torch.no_grad()
    def compared(self, said: str) -> dict:
        """Whether a text is what is expected; else how far below the likeliest logit its first other token is."""
        text = said.splitlines()[-1] if "\n" in said and "\n" not in self.text else said
        if text.strip() == self.text.strip():
            return {"equal": True}
        tokens = self.tokenizer(PROMPT + text)["input_ids"][self.prompt.shape[1] :]
        at = next((i for i, (a, b) in enumerate(zip(tokens, self.tokens, strict=False)) if a != b), None)
        if at is None:
            return {"equal": False}
        before = torch.cat([self.prompt, torch.tensor([self.tokens[:at]], dtype=torch.long)], 1)
        logits = self.model(before, use_cache=False).logits[0, -1]
        return {"equal": False, "tokens_equal": at, "below": round(float(logits.max() - logits[tokens[at]]), 5)}


def keep(model: str, made: list[str], expected: str, name: str, found: dict) -> None:
    """Put what an engine said of a model into open_in.json; what is there of others stays."""
    content = read_measured(OPEN_IN) or {}
    engines = content.get("models", {}).get(model, {}).get("engines", {}) | {name: found}
    of_model = {
        "made_by": made,
        "prompt": PROMPT,
        "expected": expected,
        "engines": {key: engines[key] for key in LINES if key in engines},
    }
    models = content.get("models", {}) | {model: of_model}
    content = {"command": "python -m conformance.open_in", "models": models, "provenance": provenance(device_name())}
    write_file(OPEN_IN, f"{json.dumps(content, indent=1)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
