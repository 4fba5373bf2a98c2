"""README.md of a sliced checkpoint: how to use it, where it comes from, what was dropped and added, what was measured.

Its head is what the hub reads, made by the hub's own library. What the source says of itself (a folder in its
README.md, a GGUF file in its metadata) is passed on, and none of it is trusted: names are text, whatever is in them,
and the card of the source is kept below ours, as a quotation.
"""

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment

from deeper_layers.cuts import mergekit_yaml, ranges
from deeper_layers.export.adapter_files import Adapter
from deeper_layers.export.lineage import Lineage
from deeper_layers.files import read_plain
from deeper_layers.markup import as_code, as_markdown, visible
from deeper_layers.models.checkpoint_files import is_gguf, local_path, read_json
from deeper_layers.models.configuration import HUB_ID
from deeper_layers.models.packaged import PACKAGED
from deeper_layers.models.sources import find_model, model_name

LONGEST = 2**20  # bytes of a card that is read
# entries of a card's head that hold for what is made of the model too
PASSED_ON = ("language", "license", "license_name", "license_link", "pipeline_tag")
KEPT_CARD = "## The card of the source"
HEALED = """
Then healed: low-rank adapters of rank {{ ranks | join(", ") }} (alpha {{ adapter.settings.lora_alpha }}) on
{{ modules | join(", ") }} are added to the weights; all others are unchanged.
{%- if not adapter.base %} Of which base and cut the adapters are is not recorded beside them.{% endif %}
{%- if adapter.healing %}{% set run = adapter.healing %}{% set how = run.config %}
{%- if how.objective == "distill" %} Distilled: it learned what the unpruned model expects (temperature
{{ "%g" % how.temperature }}).{% endif %} Trained on {{ "{:,}".format(run.tokens) }} tokens of {{ run.text }}
({{ "{:,}".format(run.distinct_tokens) }} distinct, sequences of {{ "{:,}".format(how.sequence_length) }},
{{ "{:,}".format(how.steps) }} steps, learning rate {{ "%g" % how.learning_rate }}, seed {{ how.seed }}); the training
loss went from {{ "%.3f" % run.losses[0] }} to {{ "%.3f" % run.losses[-1] }} nats a token.
{%- if how.quantization %} They were trained over weights in {{ how.quantization }}, and are added here to the weights
as the source has them, so that scores measured in that format are near, and not equal, to this checkpoint's.
{%- endif %}{% endif %}
"""
WHAT = """
{{ step.model | markdown }}{% if revision %} at revision {{ revision | code }}{% endif %}
{%- if (step.weights or "").startswith("sha256:") %} (weights {{ step.weights }}){% endif %}; this checkpoint
{{ step.cut.describe(step.layers) }}.
{%- if step.changed %} Weights that stay are changed by the rule {{ step.changed | markdown }}.{% endif %}
{%- if adapter %} {{ healed }}{% elif not step.changed %} All other weights are its own.{% endif %}
{%- if step.attention or step.mlp %} No configuration leaves a sublayer out: zeros stand where it ends, so it runs and
adds nothing.{% endif %}
{%- if facts.quantized %} They were {{ facts.quantized | markdown }} in a GGUF file, and are {{ step.dtype }} here.
{%- elif step.dtype %} They are cast to {{ step.dtype }}.{% endif %}
{%- if predicting %} Layers for multi-token prediction, which come after the last one, are {{ predicting }}.{% endif %}
"""
CARD = """\
---
{{ head }}
---
# {{ lineage.steps[0].model | markdown }} without {{ lineage.layers - lineage.kept | length }} of its \
{{ lineage.layers }} layers{{ ", healed" if adapter }}

{{ what }}

## Use

In transformers:

```python
from transformers import {{ opens }}, AutoTokenizer

name = {{ quoted }}
tokenizer = AutoTokenizer.from_pretrained(name{{ ", trust_remote_code=True" if own_code }})
model = {{ opens }}.from_pretrained(name, dtype="auto"{{ ", trust_remote_code=True" if own_code }})
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20, do_sample=False)[0]))
```

In vLLM, as a server:

```bash
python -m vllm.entrypoints.openai.api_server --model {{ name }}{{ " --trust-remote-code" if own_code }}
```

In llama.cpp, by its converter and the wheel cyllama, which has it compiled (llama-cli takes -m, -p and -n too):

```bash
python convert_hf_to_gguf.py {{ name }} --outfile {{ file }}
cyllama generate -m {{ file }} -p "The capital of France is" -n 20 --temperature 0
```

## How it was made

{% if not step.changed %}
The method is that of Gromov et al., *The Unreasonable Ineffectiveness of the Deeper Layers* (arXiv 2403.17887).

{% endif %}
{% if step.command %}
By the command

```bash
{{ step.command | visible }}
```

{% endif %}
{% if lineage.steps | length > 1 %}
In several steps, each after the one before it:

{% for one in lineage.steps %}
- {{ one.model | markdown }}{{ " (" + one.weights + ")" if one.weights }}: {{ one.cut.describe(one.layers) }}
{{- ", healed" if one.adapter }}{{ ", weights that stay changed" if one.changed }}
{{- ", written in " + one.dtype if one.dtype }}
{% endfor %}

Of the {{ lineage.layers }} layers of the first model it keeps \
{% for start, stop in lineage.ranges %}{{ " and " if not loop.first }}[{{ start }}:{{ stop }}]{% endfor %}.

{% endif %}
{% if yaml %}
The layers{{ ", not healed," if adapter else ", not changed," if changed }} as a configuration of mergekit{{ where }}:

```yaml
{{ yaml }}
```

{% endif %}
{% if scores %}
## Scores

{{ scores }}

{% endif %}
{% if quoted_card %}
{{ kept_card }}

{{ quoted_card }}
{% endif %}
"""


class Facts(NamedTuple):
    """What a source says of itself that is passed on."""

    entries: dict  # of the head of its card
    hub: str | None = None  # hub id of the source, or of the model that it is a copy of, as far as it says so
    text: str = ""  # of its card
    quantized: str = ""  # kind of weights of a GGUF file


def read_facts(source: str, folder: Path) -> Facts:
    """What is known of a source, as the user named it; `folder` holds its checkpoint."""
    path, task = local_path(source), {"pipeline_tag": "text-generation"}
    if known := PACKAGED.get(source):
        return Facts({"license": known.license} | task, known.hub, quantized=known.quantized)
    if is_gguf(path):
        from deeper_layers.models.gguf_header import read_gguf  # slow

        header, found = read_gguf(path), find_model(source, hashed=False)
        said = {"license": header.get("general.license"), "language": header.get("general.languages")}
        return Facts(task | _passed_on(said), quantized=found.quantized)
    head, text = _read_card(folder / "README.md")
    if "vision_config" in read_json(folder / "config.json"):
        task = {"pipeline_tag": "image-text-to-text"}
    hub = source if HUB_ID.fullmatch(source) and not path.exists() else head.get("base_model")
    return Facts(task | _passed_on(head), hub if isinstance(hub, str) and HUB_ID.fullmatch(hub) else None, text)


def _read_card(path: Path) -> tuple[dict, str]:
    """The head of a card and its text; empty where it can't be read."""
    from huggingface_hub import ModelCard  # slow

    try:
        card = ModelCard(read_plain(path, LONGEST).decode("utf-8"), ignore_metadata_errors=True)
        return card.data.to_dict(), card.text.strip()
    except Exception:  # whatever a YAML of strangers raises: the card is not needed
        return {}, ""


def _passed_on(said: dict) -> dict:
    """Those of PASSED_ON that are a text, or a list of such."""
    lists = {name: said[name] if isinstance(said[name], list) else [said[name]] for name in PASSED_ON if said.get(name)}
    return {name: said[name] for name, texts in lists.items() if all(isinstance(text, str) for text in texts)}


def model_card(
    source: str,
    name: str,
    lineage: Lineage,
    facts: Facts,
    config: dict,
    *,
    revision: str | None = None,
    adapter: Adapter | None = None,
    predicting: str = "",
    scores: str = "",
) -> str:
    """The card of a checkpoint, in Markdown.

    Args:
        source: the model, as the user named it.
        name: by which the checkpoint is opened: its folder, or its repository on the hub.
        lineage: all cuts up to this one.
        facts: of the source.
        config: of the checkpoint, as its config.json holds it.
        revision: of a hub id.
        adapter: what was added to the weights.
        predicting: layers for multi-token prediction are "kept" or "left out"; nothing without any.
        scores: what results say of the cut.
    """
    from huggingface_hub import ModelCardData  # slow

    step, hub, text = lineage.steps[-1], facts.hub or lineage.base_model, facts.text
    # the hub knows adapters, merges, quantized and fine-tuned models: of these a healed one is the last
    entries: dict = facts.entries | ({"base_model_relation": "finetune"} if hub and adapter else {})
    data = ModelCardData(library_name="transformers", tags=["layer-pruning"], base_model=hub, **entries)
    if hub:
        yaml = mergekit_yaml(lineage.ranges, hub, revision)
        where = ", of its weights before they were quantized" if facts.quantized else ""
    else:  # a configuration resolves everywhere only from the hub, where the first of several models is
        own = f"./{model_name(source)}"
        yaml = mergekit_yaml(ranges(step.cut.kept(step.layers)), own)
        where = f", run beside a folder {as_code(own)} with the source"
    if any(one.attention or one.mlp for one in lineage.steps):  # mergekit copies layers as they are
        yaml = ""
    if len(lineage.steps) > 1:  # the source's card is one of ours: the card that it quotes
        text = re.sub(r"^> ?", "", text.partition(KEPT_CARD)[2].strip(), flags=re.MULTILINE)
    told = {"lineage": lineage, "step": step, "facts": facts, "adapter": adapter, "revision": revision}
    told |= {"predicting": predicting, "healed": healing_in_words(adapter) if adapter else ""}
    return (
        _rendered(
            CARD,
            **told,
            head=data.to_yaml(),
            what=" ".join(_rendered(WHAT, **told).split()),
            opens="AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM",
            own_code="auto_map" in config,
            quoted=json.dumps(name) if name.isascii() else repr(name),  # JSON writes others as surrogates
            name=shlex.quote(visible(name)),
            file=shlex.quote(f"{visible(name).rpartition('/')[2]}.gguf"),
            changed=any(one.changed for one in lineage.steps),
            yaml=yaml.rstrip(),
            where=where,
            scores=scores.strip(),
            kept_card=KEPT_CARD,
            quoted_card="\n".join(f"> {line}".rstrip() for line in text.splitlines()),
        ).rstrip()
        + "\n"
    )


def healing_in_words(adapter: Adapter) -> str:
    """What was added to the weights, and how it was trained, as far as the folder of adapters says so."""
    ranks = sorted({len(a) for a, _ in adapter.factors.values()})
    modules = sorted({module.rpartition(".")[2] for module in adapter.factors})
    return " ".join(_rendered(HEALED, adapter=adapter, ranks=ranks, modules=modules).split())


def _rendered(template: str, **told) -> str:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters |= {"markdown": as_markdown, "code": as_code, "visible": visible}
    return environment.from_string(template).render(told)
