"""README.md of a sliced checkpoint: how to use it, where it comes from, what was dropped and added, what was measured.

Its head is what the hub reads, made by the hub's own library. Names are text, whatever is in them. The card of the
source is kept below ours, as a quotation.
"""

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from deeper_layers.cuts import Cut, mergekit_yaml
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.lineage import Lineage, Step
from deeper_layers.export.source_facts import Facts
from deeper_layers.markup import as_code, as_markdown, visible
from deeper_layers.models.sources import model_name

KEPT_CARD = "## The card of the source"
TRANSFORMERS = """\
from transformers import {opens}, AutoTokenizer

name = {name}
tokenizer = AutoTokenizer.from_pretrained(name{more})
model = {opens}.from_pretrained(name, dtype="auto"{more})
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]))"""
VLLM = "python -m vllm.entrypoints.openai.api_server --model {name}{more}"
CYLLAMA = "the wheel cyllama, which has it compiled (llama-cli takes -m, -p and -n too)"
LLAMA_CPP = """\
python convert_hf_to_gguf.py {name} --outfile {file}
cyllama generate -m {file} -p "The capital of France is" -n 20 --temperature 0"""


@dataclass(frozen=True)
class Made:
    """What a card tells of a checkpoint.

    Attributes:
        source: the model, as the user named it.
        name: by which the checkpoint is opened: its folder, or its repository on the hub.
        facts: what the source says of itself.
        lineage: all cuts up to this one.
        config: of the checkpoint, as its config.json holds it.
        quantized: kind of weights of a GGUF file that it was made of.
        revision: of a hub id.
        adapter: what was added to the weights.
        predicting: what became of layers for multi-token prediction: "kept", "left out", or nothing without any.
    """

    source: str
    name: str
    facts: Facts
    lineage: Lineage
    config: dict
    quantized: str = ""
    revision: str | None = None
    adapter: Adapter | None = None
    predicting: str = ""

    @property
    def step(self) -> Step:
        return self.lineage.steps[-1]

    @property
    def cut(self) -> Cut:
        return self.step.cut


def model_card(made: Made, scores: str = "") -> str:
    """The card, with what results say of the cut, in Markdown, if they say anything."""
    first, layers = made.lineage.steps[0].model, made.lineage.layers
    title = f"# {as_markdown(first)} without {layers - len(made.lineage.kept)} of its {layers} layers"
    title += ", healed" if made.adapter else ""
    parts = [
        title,
        _what(made),
        "## Use",
        *_use(made),
        "## How it was made",
        *_how(made),
        *(["## Scores", scores.strip()] if scores.strip() else []),
        *_source_card(made),
    ]
    return _head(made) + "\n" + "\n\n".join(parts) + "\n"


def _head(made: Made) -> str:
    from huggingface_hub import ModelCardData  # slow

    base = made.facts.hub or made.lineage.base_model
    # the hub knows adapters, merges, quantized and fine-tuned models: of these a healed one is the last
    relation = {"base_model_relation": "finetune"} if base and made.adapter else {}
    entries: dict[str, Any] = made.facts.entries | relation
    data = ModelCardData(library_name="transformers", tags=["layer-pruning"], base_model=base, **entries)
    return f"---\n{data.to_yaml()}\n---"


def _what(made: Made) -> str:
    of = f" at revision {as_code(made.revision)}" if made.revision else ""
    weights = f" (weights {made.step.weights})" if (made.step.weights or "").startswith("sha256:") else ""
    said = [f"{as_markdown(made.step.model)}{of}{weights}; this checkpoint {made.cut.describe(made.step.layers)}."]
    if made.step.changed:
        said.append(f"Weights that stay are changed by the rule {as_markdown(made.step.changed)}.")
    if made.adapter:
        said.append(healing_in_words(made.adapter))
    elif not made.step.changed:
        said.append("All other weights are its own.")
    if made.step.attention or made.step.mlp:
        said.append("No configuration leaves a sublayer out: zeros stand where it ends, so it runs and adds nothing.")
    if made.quantized:
        said.append(f"They were {as_markdown(made.quantized)} in a GGUF file, and are {made.step.dtype} here.")
    elif made.step.dtype:
        said.append(f"They are cast to {made.step.dtype}.")
    if made.predicting:
        said.append(f"Layers for multi-token prediction, which come after the last one, are {made.predicting}.")
    return " ".join(said)


def _use(made: Made) -> list[str]:
    own_code = "auto_map" in made.config
    opens = "AutoModelForImageTextToText" if "vision_config" in made.config else "AutoModelForCausalLM"
    name, file = shlex.quote(visible(made.name)), shlex.quote(f"{visible(made.name).rpartition('/')[2]}.gguf")
    quoted = json.dumps(made.name) if made.name.isascii() else repr(made.name)  # JSON writes others as surrogates
    more = ", trust_remote_code=True" if own_code else ""
    python = TRANSFORMERS.format(opens=opens, name=quoted, more=more)
    server = VLLM.format(name=name, more=" --trust-remote-code" if own_code else "")
    return [
        "In transformers:",
        fenced("python", python),
        "In vLLM, as a server:",
        fenced("bash", server),
        f"In llama.cpp, by its converter and {CYLLAMA}:",
        fenced("bash", LLAMA_CPP.format(name=name, file=file)),
    ]


def _how(made: Made) -> list[str]:
    paper = (
        "The method is that of Gromov et al., *The Unreasonable Ineffectiveness of the Deeper Layers* (arXiv "
        "2403.17887)."
    )
    parts = [] if made.step.changed else [paper]  # what changes weights is named with its own source
    if made.step.command:
        parts += ["By the command", fenced("bash", made.step.command)]
    if len(made.lineage.steps) > 1:
        parts += ["In several steps, each after the one before it:", "\n".join(map(_step_in_words, made.lineage.steps))]
        kept = " and ".join(f"[{start}:{stop}]" for start, stop in made.lineage.ranges)
        parts.append(f"Of the {made.lineage.layers} layers of the first model it keeps {kept}.")
    if any(step.attention or step.mlp for step in made.lineage.steps):  # mergekit copies layers as they are
        return parts
    hub = made.facts.hub or made.lineage.base_model
    own = f"./{model_name(made.source)}"
    # a configuration resolves everywhere only from the hub, where the first of several models is
    name, revision = (hub, made.revision) if hub else (own, None)
    yaml = mergekit_yaml(made.lineage.ranges, name, revision) if hub else made.cut.mergekit_yaml(made.step.layers, own)
    where = "" if hub else f", run beside a folder {as_code(own)} with the source"
    whose = ", of its weights before they were quantized" if hub and made.quantized else ""
    changed = any(step.changed for step in made.lineage.steps)
    what = "The layers, not healed," if made.adapter else "The layers, not changed," if changed else "The layers"
    parts.append(f"{what} as a configuration of mergekit{where}{whose}:")
    return [*parts, fenced("yaml", yaml.rstrip())]


def _step_in_words(step: Step) -> str:
    more = [*(["healed"] if step.adapter else []), *(["weights that stay changed"] if step.changed else [])]
    more += [*([f"written in {step.dtype}"] if step.dtype else [])]
    said = ", ".join([step.cut.describe(step.layers), *more])
    return f"- {as_markdown(step.model)}{f' ({step.weights})' if step.weights else ''}: {said}"


def _source_card(made: Made) -> list[str]:
    """The source's own card, quoted; where that is one of ours, the card that it quotes."""
    text = made.facts.text
    if len(made.lineage.steps) > 1 and text:
        text = re.sub(r"^> ?", "", text.partition(KEPT_CARD)[2].strip(), flags=re.MULTILINE)
    if not text:
        return []
    return [KEPT_CARD, "\n".join(f"> {line}".rstrip() for line in text.splitlines())]


def fenced(language: str, text: str) -> str:
    """Lines of code in Markdown, whatever is in them."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def healing_in_words(adapter: Adapter) -> str:
    """What was added to the weights, and how it was trained, as far as the folder of adapters says so."""
    ranks = sorted({shapes["A"][0] for shapes in adapter.shapes.values()})
    modules = ", ".join(sorted({module.rpartition(".")[2] for module in adapter.shapes}))
    said = [
        f"Then healed: low-rank adapters of rank {', '.join(map(str, ranks))} (alpha {adapter.settings['lora_alpha']}) "
        f"on {modules} are added to the weights; all others are unchanged."
    ]
    if adapter.base is None:
        said.append("Of which base and cut the adapters are is not recorded beside them.")
    if course := adapter.healing:
        config, losses = course["config"], course["losses"]
        if config.get("objective") == "distill":
            warm = f"temperature {config['temperature']:g}"
            said.append(f"Distilled: it learned what the unpruned model expects ({warm}).")
        said.append(
            f"Trained on {course['tokens']:,} tokens of {course['text']} ({course['distinct_tokens']:,} distinct, "
            f"sequences of {config['sequence_length']:,}, {config['steps']:,} steps, learning rate "
            f"{config['learning_rate']:g}, seed {config['seed']}); the training loss went from {losses[0]:.3f} to "
            f"{losses[-1]:.3f} nats a token."
        )
        if config["quantization"]:
            said.append(
                f"They were trained over weights in {config['quantization']}, and are added here to the weights as the "
                "source has them, so that scores measured in that format are near, and not equal, to this checkpoint's."
            )
    return " ".join(said)
