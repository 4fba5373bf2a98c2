"""Pages of the models that results/ hold beside the embedded one: made of what was measured, typed by nobody."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path

import yaml
from sphinx.application import Sphinx
from sphinx.config import Config

from lib.evidence import Evidence
from lib.models import EMBEDDED
from lib.parameters import SETTINGS, HealingParameters, TakeAwayParameters
from lib.presets import PRESETS
from lib.pruning import Cut
from lib.results import RESULTS, ROOT, Unit, all_units, whole_units
from lib.selection import cuts_of_rule
from lib.similarity import distance_matrix

CAPTION = "Other models"
TOC = ROOT / "book" / "executed" / "_toc.yml"


@functools.cache
def pages_of_models(folder: Path = RESULTS) -> dict[str, dict]:
    """For each model its pages, as book/pages.yml has them: name, then notebook, title and parameters."""
    pages: dict[str, dict] = {}
    by_model: dict[str, list[Unit]] = {}
    for unit in all_units(folder):
        if unit.key["model"]["name"] != EMBEDDED.name:
            by_model.setdefault(unit.path.parent.name, []).append(unit)
    for slug, units in by_model.items():
        name = units[0].key["model"]["name"]
        units.sort(key=_is_quantized)  # the pages of the weights as they are first
        distances = [unit for unit in units if unit.kind == "similarity"]
        sweeps = [unit for unit in units if unit.kind == "sweep"]
        for number, group in enumerate(_alike(sweeps)):
            suffix = f"-{number + 1}" if number else ""
            parameters = {**_opened(group[0].key), **_distances(group[0], distances), **_asked(group)}
            titled = _titled(name, group[0].key)
            page = {"notebook": "02-question-answering", "title": titled, "parameters": parameters}
            pages[f"model-{slug}{suffix}"] = page
            if any(map(_is_written, group)):
                page = page | {"notebook": "04-reasoning", "title": f"{titled}: reasoning"}
                pages[f"model-{slug}-reasoning{suffix}"] = page
        if parameters := _healed(units, distances):
            page = {"notebook": "03-healing", "title": f"{name}: healing", "parameters": parameters}
            pages[f"model-{slug}-healing"] = page
        if parameters := _ablated(units, distances):
            page = {"notebook": "05-ablations", "title": f"{name}: what matters in healing", "parameters": parameters}
            pages[f"model-{slug}-ablations"] = page
        if parameters := _taken_away(units, distances):
            page = {"notebook": "08-take-away", "title": f"{name}: take it away", "parameters": parameters}
            pages[f"model-{slug}-take-away"] = page
        for number, group in enumerate(_prompts([unit for unit in units if unit.kind == "shots"])):
            suffix = f"-{number + 1}" if number else ""
            parameters = _opened(group[0].key) | _distances(group[0], distances) | _of_prompts(group)
            title = f"{_titled(name, group[0].key)}: examples in the prompt"
            page = {"notebook": "11-shots", "title": title, "parameters": parameters}
            pages[f"model-{slug}-shots{suffix}"] = page
        for number, unit in enumerate(distances):
            suffix = f"-{number + 1}" if number else ""
            parameters = _opened(unit.key) | _drawn(unit)
            title = f"{_titled(name, unit.key)}: layers"
            page = {"notebook": "01-similarity", "title": title, "parameters": parameters}
            pages[f"model-{slug}-layers{suffix}"] = page
    return pages


def add_models_to_contents(app: Sphinx, config: Config) -> None:
    """Before Sphinx reads the table of contents, append the pages of other models to it."""
    pages = pages_of_models()
    if not pages:
        return
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    part = {"caption": CAPTION, "chapters": [{"file": f"executed/{name}"} for name in pages]}
    contents["parts"].insert(1, part)
    TOC.parent.mkdir(parents=True, exist_ok=True)
    TOC.write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")
    config.external_toc_path = str(TOC)


def _alike(sweeps: list[Unit]) -> list[list[Unit]]:
    """Units that one page can show: opened alike, each task once, and cut alike where they have a size in common.

    Without those that are part of a group's, and the few packaged items of a data set that is there itself.
    """
    groups: list[list[Unit]] = []
    for unit in sorted(whole_units(sweeps), key=lambda unit: (_is_quantized(unit), -len(unit.key["cuts"]))):
        for group in groups:
            widest = group[0].key
            alike = all(widest[name] == unit.key[name] for name in ("dtype", "quantization", "rule"))
            same_cuts = all(cut in widest["cuts"] for cut in unit.key["cuts"])
            if alike and same_cuts and unit.key["task"] not in {other.key["task"] for other in group}:
                group.append(unit)
                break
        else:
            groups.append([unit])
    return [[unit for unit in group if not _is_there_itself(unit, group)] for group in groups]


def _is_there_itself(unit: Unit, group: list[Unit]) -> bool:
    """Whether a packaged sample's data set is among some units: the two would be named alike."""
    return unit.key["task"].removeprefix("embedded_") in {other.key["task"] for other in group if other is not unit}


def _prompts(units: list[Unit]) -> list[list[Unit]]:
    """Units that differ in their prompt, or in the task, and in nothing else."""
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        how = {k: v for k, v in unit.key.items() if k not in ("task", "num_fewshot", "order", "limit", "data")}
        groups.setdefault(json.dumps(how, sort_keys=True), []).append(unit)
    return list(groups.values())


def _of_prompts(units: list[Unit]) -> dict:
    """What notebook 11 was asked for: the prompt with the most examples, and those beside it.

    Where none is beside it, the notebook's own numbers and orders, so that they show as missing.
    """
    limits = {unit.key["task"]: unit.key["limit"] for unit in units}
    most = max(unit.key["num_fewshot"] for unit in units)
    numbers = {unit.key["num_fewshot"] for unit in units if not unit.key["order"]} - {most}
    orders = {unit.key["order"] for unit in units} - {0}
    beside = {"numbers": ", ".join(map(str, sorted(numbers))), "orders": ", ".join(map(str, sorted(orders)))}
    return {
        "tasks": ", ".join(_task(task, None, limit) for task, limit in limits.items()),
        "rules": units[0].key["rule"],
        "sizes": ", ".join(map(str, _sizes(units[0]))),
        "limit": None,
        "num_fewshot": most,
        **{name: listed for name, listed in beside.items() if listed},
    }


def _is_quantized(unit: Unit) -> bool:
    return unit.key.get("quantization") is not None  # units in several kinds of weights have none


def _titled(name: str, key: dict) -> str:
    """A model's name, with the quantization that sets a page of it apart from others."""
    return f"{name} in {key['quantization']}" if key["quantization"] else name


def _opened(key: dict) -> dict:
    names = {"model": key["model"]["name"], "dtype": key["dtype"], "quantization": key["quantization"]}
    return names | {"measure": False}


def _drawn(unit: Unit) -> dict:
    """How the text of a unit of distances was drawn."""
    return {name: unit.key[name] for name in ("corpus", "samples", "sequence_length", "seed")}


def _distances(unit: Unit, distances: Iterable[Unit]) -> dict:
    """Of the distances that a sweep can stand on, the latest."""
    latest = _latest([d for d in distances if _opened(d.key) == _opened(unit.key)])
    return _drawn(latest) if latest else {}


def _latest(units: Iterable[Unit]) -> Unit | None:
    return max(units, key=lambda unit: unit.provenance["measured"], default=None)


def _asked(units: list[Unit]) -> dict:
    """Tasks, rules and sizes of units that one page shows, the first of them with the most sizes."""
    tasks, every = [], _sizes(units[0])
    for unit in units:
        shots, limit, sizes = unit.key["num_fewshot"], unit.key["limit"], _sizes(unit)
        of_sizes = "" if sizes == every else f"/{'+'.join(map(str, sizes))}"
        tasks.append(_task(unit.key["task"], shots, limit) + of_sizes)
    return {
        "tasks": ", ".join(tasks),
        "rules": units[0].key["rule"],
        "sizes": ", ".join(map(str, every)),
        "limit": None,
    }


def _healed(units: list[Unit], distances: Iterable[Unit]) -> dict:
    """What notebook 03 was asked for when it healed the most pruned models; empty where it did not."""
    healed = next(iter(Evidence(units).ways.values()), {})
    if not healed:
        return {}
    key = next(iter(healed.values())).key
    # the notebook scores before it heals: the same cuts, by the rules that chose them
    swept = [
        unit for unit in units
        if unit.kind == "sweep" and _opened(unit.key) == _opened(key)
        and set(healed) <= {Cut(*cut) for cut in unit.key["cuts"]}
    ]  # fmt: skip
    asked = _asked_of_healing(key)
    if not asked or not swept:
        return {}
    sizes = ", ".join(map(str, sorted({cut.size for cut in healed})))
    return asked | {"rules": swept[0].key["rule"], "sizes": sizes} | _distances(swept[0], distances)


def _ablated(units: list[Unit], distances: list[Unit]) -> dict:
    """What notebook 05 was asked for: healings that differ in seed or rank alone; empty where there are none."""
    evidence = Evidence(units)
    alike = {"ranks": evidence.alike_but("rank"), "seeds": evidence.alike_but("seed")}
    compared = {cut for values in alike.values() for of_cut in values.values() for cut in of_cut if cut.size}
    usual = next((of_cut for of_cut in evidence.ways.values() if compared <= set(of_cut)), {})
    if not compared or not usual:
        return {}
    unit = next(iter(usual.values()))
    own = {"ranks": unit.key["healing"]["rank"], "seeds": unit.key["healing"]["seed"]}
    values = {name: ", ".join(map(str, alike[name] or [own[name]])) for name in own}
    opened = [d for d in distances if _opened(d.key) == _opened(unit.key)]
    chosen = _chosen(compared, unit.details["num_layers"], opened)
    asked = _asked_of_healing(unit.key)
    return asked | values | chosen if asked and chosen else {}


def _asked_of_healing(key: dict) -> dict:
    """A healing's model, text, tasks and settings as notebooks have them; empty where no preset is like it."""
    limits = key.get("limits", {})
    parameters = {
        **_opened(key),
        "text": key["text"],
        "loss_sequences": key["loss"]["sequences"],
        "loss_length": key["loss"]["sequence_length"],
        "tasks": ", ".join(_task(task, shots, limits.get(task)) for task, shots in key["tasks"].items()),
        "limit": key["limit"],
    }  # fmt: skip
    settings = {name: key["healing"][setting] for name, setting in SETTINGS.items()}
    presets = ({"preset": preset} | settings for preset in PRESETS)
    like = [p for p in presets if HealingParameters(**parameters, **p).config().settings == key["healing"]]
    return parameters | like[0] if like else {}


def _taken_away(units: list[Unit], distances: list[Unit]) -> dict:
    """What notebook 08 was asked for when it ran last; empty where it did not."""
    found = [unit for unit in units if unit.kind in ("bits", "take-away")]
    if not found:
        return {}
    tasks = _latest(found).key["tasks"], _latest(found).key["limits"]
    found = [unit for unit in found if (unit.key["tasks"], unit.key["limits"]) == tasks]
    bits, way = ([unit for unit in found if unit.kind == kind] for kind in ("bits", "take-away"))
    gone = {Cut(*_latest(way).key["cut"])} if way else set()
    cuts = {Cut(*cut) for cut in _latest(bits).key["cuts"]} if bits else gone
    chosen = _chosen(cuts | gone, _latest(found).details["num_layers"], distances)
    if not chosen:
        return {}
    kinds = [unit for unit in bits if {Cut(*cut) for cut in unit.key["cuts"]} == cuts]
    kinds = [unit.key["bits"] for unit in sorted(kinds, key=lambda unit: -unit.rows["bytes"].max())]  # heaviest first
    parameters = {
        "model": found[0].key["model"]["name"],
        "measure": False,
        "tasks": ", ".join(_task(task, shots, tasks[1][task]) for task, shots in tasks[0].items()),
        "limit": None,
        "drop": max(cut.size for cut in cuts),  # of the way to a file, which begins at GGUF: there may be none
        **({"bits": ", ".join(kinds)} if kinds else {}),
        **chosen,
        "sizes": ", ".join(map(str, sorted({cut.size for cut in cuts}))),
    }
    if last := _latest(way):
        parameters |= {"drop": last.key["cut"][1], "gguf_type": last.key["type"], "text": last.key["text"]}
        parameters |= {"steps": last.key["healing"]["steps"]}
        presets = ({"preset": preset} for preset in PRESETS)
        settings = {preset["preset"]: TakeAwayParameters(**parameters, **preset).healing() for preset in presets}
        like = [p for p, healing in settings.items() if healing.config().settings == last.key["healing"]]
        parameters |= {"preset": like[0]} if like else {}
    return parameters


def _chosen(cuts: set[Cut], layers: int, distances: list[Unit]) -> dict:
    """Sizes, rule and distances that choose most of some cuts; empty where none chooses any."""
    sizes = sorted({cut.size for cut in cuts})
    ways: list[tuple[int, dict]] = []
    latest_first = sorted(distances, key=lambda unit: unit.provenance["measured"], reverse=True)
    for unit in sorted(latest_first, key=_is_quantized):
        by_rule = cuts_of_rule("similarity", sizes, layers, distance_matrix(unit.rows))
        opened = {name: unit.key[name] for name in ("dtype", "quantization")}
        ways.append((len(cuts & set(by_rule)), {"rules": "similarity"} | opened | _drawn(unit)))
    ways.append((len(cuts & set(cuts_of_rule("simple", sizes, layers))), {"rules": "simple"}))
    most, chosen = max(ways, key=lambda way: way[0])
    return chosen | {"sizes": ", ".join(map(str, sizes))} if most else {}


def _task(name: str, shots: int | None, limit: int | None) -> str:
    """A task as the parameter `tasks` has it."""
    return name + ("" if shots is None else f":{shots}") + ("" if limit is None else f"@{limit}")


def _sizes(unit: Unit) -> list[int]:
    return sorted({size for _, size in unit.key["cuts"]})


def _is_written(unit: Unit) -> bool:
    """Whether a task's answers are generated, not chosen."""
    return unit.rows["metric"].str.startswith("exact_match").any()
