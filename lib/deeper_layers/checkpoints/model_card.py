"""README.md of a sliced checkpoint: where it comes from, what was dropped and added, what was measured of it."""

import re
from pathlib import Path

import pandas as pd

from deeper_layers.checkpoints.adapter_files import Adapter
from deeper_layers.cuts import Cut
from deeper_layers.models.sources import model_name
from deeper_layers.results.units import Unit, all_units


def model_card(
    source: str, revision: str | None, cut: Cut, layers: int, more: str = "", adapter: Adapter | None = None
) -> str:
    """The card of a checkpoint without the layers of a cut, with adapters added to its weights if there are any."""
    of = f" at revision {revision}" if revision else ""
    hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not Path(source).exists()
    name = model_name(source)
    front = ["---", *([f"base_model: {source}"] if hub else []), "tags: [layer-pruning]", "---"]
    return "\n".join([
        *front,
        f"# {name} without {cut.size} of its {layers} layers{', healed' if adapter else ''}",
        "",
        f"{name}{of}; this checkpoint {cut.describe(layers)}. "
        + (healing_in_words(adapter) if adapter else "All other weights are unchanged."),
        "",
        "The method is that of Gromov et al., *The Unreasonable Ineffectiveness of the Deeper Layers* "
        f"(arXiv 2403.17887). {'The cut as' if adapter else 'As'} a configuration of mergekit:",
        "",
        "```yaml",
        cut.mergekit_yaml(layers, name).rstrip(),
        "```",
        "",
        *([more, ""] if more else []),
    ])  # fmt: skip


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


def measured_card(key: dict, cut: Cut, results: Path | None = None, adapter: Adapter | None = None) -> str:
    """What results hold about a cut of a model, in Markdown: its distance, and the scores of its pruned model.

    With adapters, where they say how they were healed, also the scores of the healed one. `key` is that of a `Source`.
    """
    lines, found = [], []
    for unit in all_units(results, model=key["name"]):
        if unit.key["model"] != key or not {"start", "size"} <= set(unit.rows):
            continue
        how = f"{unit.key['dtype']}, {unit.key.get('quantization') or 'not quantized'}"
        if unit.kind == "similarity":
            of_cut = unit.rows[(unit.rows["start"] == cut.start) & (unit.rows["size"] == cut.size)]
            lines += [
                f"Angular distance of the dropped block: {value:.4f} (units of pi; {unit.name}, {how})."
                for value in of_cut["distance"]
            ]
        elif unit.kind in ("sweep", "loss") or _is_of(unit, cut, adapter):
            found.append(unit.rows.assign(how=how, healed=unit.kind == "healing"))
    if table := _scores(pd.concat(found), cut, adapter is not None) if found else []:
        lines += ["", *table]
    return "\n".join(lines)


def _is_of(unit: Unit, cut: Cut, adapter: Adapter | None) -> bool:
    """Whether a unit measured these adapters."""
    if unit.kind != "healing" or adapter is None or not adapter.healing:
        return False
    said = [cut.start, cut.size], adapter.healing["config"], adapter.healing["text"]
    return (unit.key["cut"], unit.key["healing"], unit.key["text"]) == said


def _scores(rows: pd.DataFrame, cut: Cut, healed: bool) -> list[str]:
    """A table with a line for each task, metric and way of measuring; empty where the cut was not scored."""
    kinds = [
        ("whole model", rows[~rows["healed"] & (rows["size"] == 0)]),
        ("pruned" if healed else "this one", _of(rows[~rows["healed"]], cut)),
        *([("healed, this one", _of(rows[rows["healed"]], cut))] if healed else []),
    ]
    keys = ["task", "metric", "items", "how"]
    values = [table.drop_duplicates(keys).set_index(keys)["value"] for _, table in kinds]
    names = [name for name, _ in kinds]
    lines = [
        f"| {task} | {metric} | {' | '.join(_number(column.get(key)) for column in values)} | {int(items):,} | {how} |"
        for key in values[-1].index
        for task, metric, items, how in [key]
    ]
    head = [f"| task | metric | {' | '.join(names)} | items | measured in |", f"|{'---|' * (len(names) + 4)}"]
    return [*head, *lines] if lines else []


def _of(rows: pd.DataFrame, cut: Cut) -> pd.DataFrame:
    return rows[(rows["start"] == cut.start) & (rows["size"] == cut.size)]


def _number(value: float | None) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.3f}"
