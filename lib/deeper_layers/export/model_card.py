"""README.md of a sliced checkpoint: how to use it, where it comes from, what was dropped and added, what was measured.

Its head is what the hub reads, made by the hub's own library. Names are text, whatever is in them. The card of the
source is kept below ours, as a quotation.
"""

import json
import re
import shlex
from dataclasses import dataclass

from deeper_layers.cuts import mergekit_yaml
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.lineage import Lineage, Step
from deeper_layers.export.source_facts import Facts
from deeper_layers.markup import as_code, as_markdown, visible
from deeper_layers.models.sources import model_name

KEPT_CARD = "## The card of the source"
CARD = """\
---
{head}
---
# {title}

{what}

## Use

In transformers:

{fence}python
from transformers import {opens}, AutoTokenizer

name = {quoted}
tokenizer = AutoTokenizer.from_pretrained(name{python})
model = {opens}.from_pretrained(name, dtype="auto"{python})
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]))
{fence}

In vLLM, as a server:

{fence}bash
python -m vllm.entrypoints.openai.api_server --model {name}{flag}
{fence}

In llama.cpp, by its converter and the wheel cyllama, which has it compiled (llama-cli takes -m, -p and -n too):

{fence}bash
python convert_hf_to_gguf.py {name} --outfile {file}
cyllama generate -m {file} -p "The capital of France is" -n 20 --temperature 0
{fence}

## How it was made
"""
PAPER = (
    "The method is that of Gromov et al., *The Unreasonable Ineffectiveness of the Deeper Layers* (arXiv 2403.17887)."
)


@dataclass(frozen=True)
class Made:
    """What a card tells of a checkpoint."""

    source: str  # the model, as the user named it
    name: str  # by which the checkpoint is opened: its folder, or its repository on the hub
    facts: Facts
    lineage: Lineage  # all cuts up to this one
    config: dict  # of the checkpoint, as its config.json holds it
    quantized: str = ""  # kind of weights of a GGUF file that it was made of
    revision: str | None = None  # of a hub id
    adapter: Adapter | None = None  # what was added to the weights
    predicting: str = ""  # layers for multi-token prediction are "kept" or "left out"; nothing without any

    @property
    def step(self) -> Step:
        return self.lineage.steps[-1]


def model_card(made: Made, scores: str = "") -> str:
    """The card, with what results say of the cut, in Markdown, if they say anything."""
    from huggingface_hub import ModelCardData  # slow

    lineage, base = made.lineage, made.facts.hub or made.lineage.base_model
    # the hub knows adapters, merges, quantized and fine-tuned models: of these a healed one is the last
    relation = {"base_model_relation": "finetune"} if base and made.adapter else {}
    entries: dict = made.facts.entries | relation
    data = ModelCardData(library_name="transformers", tags=["layer-pruning"], base_model=base, **entries)
    title = f"{as_markdown(lineage.steps[0].model)} without {lineage.layers - len(lineage.kept)} of its "
    own_code, fence = "auto_map" in made.config, _fence(made.name)
    top = CARD.format(
        head=data.to_yaml(),
        title=f"{title}{lineage.layers} layers{', healed' if made.adapter else ''}",
        what=_what(made),
        fence=fence,
        opens="AutoModelForImageTextToText" if "vision_config" in made.config else "AutoModelForCausalLM",
        quoted=json.dumps(made.name) if made.name.isascii() else repr(made.name),  # JSON writes others as surrogates
        name=shlex.quote(visible(made.name)),
        file=shlex.quote(f"{visible(made.name).rpartition('/')[2]}.gguf"),
        python=", trust_remote_code=True" if own_code else "",
        flag=" --trust-remote-code" if own_code else "",
    )
    parts = [*_how(made), *(["## Scores", scores.strip()] if scores.strip() else []), *_source_card(made)]
    return top + "\n" + "\n\n".join(parts) + "\n"


def _what(made: Made) -> str:
    """Source, cut, and what became of the weights that stay."""
    step = made.step
    of = f" at revision {as_code(made.revision)}" if made.revision else ""
    weights = f" (weights {step.weights})" if (step.weights or "").startswith("sha256:") else ""
    said = [f"{as_markdown(step.model)}{of}{weights}; this checkpoint {step.cut.describe(step.layers)}."]
    if step.changed:
        said.append(f"Weights that stay are changed by the rule {as_markdown(step.changed)}.")
    if made.adapter:
        said.append(healing_in_words(made.adapter))
    elif not step.changed:
        said.append("All other weights are its own.")
    if step.attention or step.mlp:
        said.append("No configuration leaves a sublayer out: zeros stand where it ends, so it runs and adds nothing.")
    if made.quantized:
        said.append(f"They were {as_markdown(made.quantized)} in a GGUF file, and are {step.dtype} here.")
    elif step.dtype:
        said.append(f"They are cast to {step.dtype}.")
    if made.predicting:
        said.append(f"Layers for multi-token prediction, which come after the last one, are {made.predicting}.")
    return " ".join(said)


def _how(made: Made) -> list[str]:
    """Source of the method, command, earlier cuts, and the layers as a configuration of mergekit."""
    step, lineage = made.step, made.lineage
    parts = [] if step.changed else [PAPER]  # what changes weights is named with its own source
    if step.command:
        parts += ["By the command", _fenced("bash", step.command)]
    if len(lineage.steps) > 1:
        kept = " and ".join(f"[{start}:{stop}]" for start, stop in lineage.ranges)
        parts += ["In several steps, each after the one before it:", "\n".join(map(_step_in_words, lineage.steps))]
        parts.append(f"Of the {lineage.layers} layers of the first model it keeps {kept}.")
    if any(one.attention or one.mlp for one in lineage.steps):  # mergekit copies layers as they are
        return parts
    if hub := made.facts.hub or lineage.base_model:
        yaml = mergekit_yaml(lineage.ranges, hub, made.revision)
        where = ", of its weights before they were quantized" if made.quantized else ""
    else:  # a configuration resolves everywhere only from the hub, where the first of several models is
        own = f"./{model_name(made.source)}"
        yaml = step.cut.mergekit_yaml(step.layers, own)
        where = f", run beside a folder {as_code(own)} with the source"
    changed = ", not changed," if any(one.changed for one in lineage.steps) else ""
    what = f"The layers{', not healed,' if made.adapter else changed}"
    return [*parts, f"{what} as a configuration of mergekit{where}:", _fenced("yaml", yaml.rstrip())]


def _step_in_words(step: Step) -> str:
    more = [*(["healed"] if step.adapter else []), *(["weights that stay changed"] if step.changed else [])]
    more += [f"written in {step.dtype}"] if step.dtype else []
    said = ", ".join([step.cut.describe(step.layers), *more])
    return f"- {as_markdown(step.model)}{f' ({step.weights})' if step.weights else ''}: {said}"


def _source_card(made: Made) -> list[str]:
    """The source's own card, quoted; where that is one of ours, the card that it quotes."""
    text = made.facts.text
    if len(made.lineage.steps) > 1:
        text = re.sub(r"^> ?", "", text.partition(KEPT_CARD)[2].strip(), flags=re.MULTILINE)
    return [KEPT_CARD, "\n".join(f"> {line}".rstrip() for line in text.splitlines())] if text else []


def _fence(text: str) -> str:
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def _fenced(language: str, text: str) -> str:
    """Lines of code in Markdown, whatever is in them."""
    return f"{_fence(text)}{language}\n{text}\n{_fence(text)}"


def healing_in_words(adapter: Adapter) -> str:
    """What was added to the weights, and how it was trained, as far as the folder of adapters says so."""
    ranks = ", ".join(map(str, sorted({shapes["A"][0] for shapes in adapter.shapes.values()})))
    modules = ", ".join(sorted({module.rpartition(".")[2] for module in adapter.shapes}))
    said = [
        f"Then healed: low-rank adapters of rank {ranks} (alpha {adapter.settings['lora_alpha']}) on {modules} are "
        "added to the weights; all others are unchanged."
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
