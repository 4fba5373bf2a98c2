"""The job that a notebook or a command makes for each published result has its key, and the name of its file."""

import json

import pytest

from deeper_layers.cuts import Cut
from deeper_layers.models.sources import Source
from deeper_layers.presets import HealingConfig
from deeper_layers_companion.jobs import job as jobs
from deeper_layers_companion.jobs import notebook_options as notebooks
from deeper_layers_companion.jobs.job import Job
from deeper_layers_companion.jobs.options import HealingParameters
from deeper_layers_companion.jobs.session import Session
from deeper_layers_companion.results.places import AROUND as ROOT
from deeper_layers_companion.results.store import find_result, read_results, result_path

pytestmark = pytest.mark.quick

PUBLISHED = read_results(ROOT / "results")
# made by hand: healed again in the same way, two rules of one file merged, and keys that say nothing of quantization
BY_HAND = {"repeat": 4, "two rules of a file": 1, "no quantization": 2}


def cuts_of(key: dict) -> dict[str, list[Cut]]:
    return {rule: [Cut.named(name) for name in names] for rule, names in key.get("cuts", {}).items()}


def tasks_of(key: dict) -> str:
    """The tasks as they are typed. The order of examples is asked for in another way."""
    parts = []
    for name, of in key["tasks"].items():
        shots = f":{of['shots']}" if of.get("shots") is not None else ""
        parts.append(f"{name}{shots}" + ("" if of["limit"] is None else f"@{of['limit']}"))
    return ", ".join(parts)


def options_of(kind: type, key: dict, folder):
    """The options of a class with the settings of a key; nothing is measured."""
    calibration = key.get("calibration") or key.get("choice", {}).get("calibration") or {}
    given = {"quantization": None, **key, **calibration, "model": "embedded", "measure": False, "results": str(folder)}
    given |= {
        "limit": None,
        "gguf_type": key["bits"] if "prompts" in key else "Q4_1",
        "steps": key.get("healing", {}).get("steps"),
    }
    texts = {name: of for name, of in given.pop("tasks", {}).items() if "length" in of}
    for name, of in texts.items():
        given |= {"text": name, "loss_sequences": of["limit"], "loss_length": of["length"] or 256}
    names_texts = kind in (notebooks.ScanParameters, notebooks.LastLayersParameters)  # among its tasks
    if "map" in key:
        given |= {"map_sequences": key["map"]["sequences"], "loss_length": key["map"]["length"]}
    if key.get("tasks", texts) != texts or names_texts:
        own = key["tasks"] if names_texts else key["tasks"].keys() - texts.keys()
        given["tasks"] = tasks_of({"tasks": {name: key["tasks"][name] for name in own}})
    return kind(**{name: value for name, value in given.items() if name in kind.model_fields})


def remake(result, folder) -> tuple[str, dict]:
    """The kind and key of what is asked for the same measurement."""
    key = result.key
    words = {"num_layers": result.details["num_layers"], "quantized": result.details["weights"], "folder": ""}
    source = Source(**key["model"], dtype=key["dtype"], **words)

    options = options_of(ASKED_BY[form_of(result)], key, folder)
    job = make_job(form_of(result), source, options, key)
    return job.kind, Session(options, source).find_key(job)


def form_of(result) -> str:
    return Job(result.kind, result.key).form


ASKED_BY = {
    "distances": notebooks.SimilarityParameters,
    "geometry": notebooks.WhichLayersParameters,
    "choice": notebooks.WhichLayersParameters,
    "changed": notebooks.WhichLayersParameters,
    "mapped": notebooks.LastLayersParameters,
    "healing": HealingParameters,
    "healed": HealingParameters,
    "rounded": notebooks.TakeAwayParameters,
    "file": notebooks.TakeAwayParameters,
    "scores": notebooks.ScanParameters,
}


def make_job(form: str, source: Source, options, key: dict) -> Job:
    cuts = cuts_of(key)
    ((rule, (*_, cut)), *_) = cuts.items() or [("", [Cut.named(key.get("cut", "0,0"))])]
    if form == "distances":
        return jobs.distances_job(source, options, by_sequence=key.get("by_sequence", False))
    if form == "geometry":
        return jobs.geometry_job(source, options)
    if form == "choice":
        return jobs.choice_job(source, options, key["choice"]["rule"], key["choice"]["sizes"])
    if form == "changed":
        choice = jobs.choice_job(source, options, rule, [])
        return jobs.chosen_job(source, options, *key["tasks"], cuts[rule], choice)
    if form == "mapped":
        (task,) = key["tasks"]
        return jobs.mapped_job(source, options, task, rule, cuts[rule], options.describe_map(rule))
    if form == "healing":
        config = HealingConfig(**key["healing"])
        return jobs.healing_job(source, cut, config, options.text, options.quantization)
    if form == "healed":
        return jobs.healed_job(source, options, cut, HealingConfig(**key["healing"]), [*cuts])
    if form == "rounded":
        return jobs.rounded_job(source, options, key["bits"], cuts)
    if form == "file":
        made = {"config": options.make_config(), "text": options.text, "bits": options.gguf_type}
        return jobs.file_job(source, options, rule, cut, **made)
    ((_, of), *_) = key["tasks"].items()
    prompt = {name: of[name] for name in ("shots", "order") if "order" in of}
    return jobs.scores_job(source, options, key["tasks"], cuts, prompt)


def test_every_published_result_has_the_key_and_the_name_of_the_job_that_is_made_for_it(tmp_path):
    by_hand = dict.fromkeys(BY_HAND, 0)
    for result in PUBLISHED:
        kind, made = remake(result, tmp_path)
        assert kind == result.kind
        made = {"data": result.key["data"]} | made
        json.dumps(made, allow_nan=False)  # literals
        if made == result.key:
            assert result_path(kind, made, tmp_path).name == result.path.name
        elif "repeat" in result.key:
            by_hand["repeat"] += 1
            assert made | {"repeat": result.key["repeat"]} == result.key
        elif "answer_tokens" in made:
            by_hand["two rules of a file"] += 1
            assert made | {"cuts": result.key["cuts"]} == result.key
            assert find_result(kind, made, ROOT / "results").path == result.path
        else:
            by_hand["no quantization"] += 1
            assert made == result.key | {"quantization": None}
            assert find_result(kind, made, ROOT / "results").path == result.path
    assert by_hand == BY_HAND and len(PUBLISHED) > 400
