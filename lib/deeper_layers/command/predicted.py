"""What `deeper-layers plan --machine` adds: seconds, memory and bytes of distances, sweeps, healing; arithmetic."""

from deeper_layers import models
from deeper_layers.command.answers import table
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import costs
from deeper_layers.experiments.parameters import QuestionAnsweringParameters
from deeper_layers.healing.presets import PRESETS
from deeper_layers.models.machines import REACHED, Machine, find_machine
from deeper_layers.models.sources import Source


def predicted(
    content: dict, machine: str, preset: str, parameters: QuestionAnsweringParameters, source: Source
) -> dict:
    """What a plan's work costs on a machine.

    Raises InputError for an unknown machine or preset, or a model that can't be built without weights.
    """
    if preset not in PRESETS:
        raise InputError(f"heal is {preset!r}, expected one of {', '.join(map(repr, PRESETS))}")
    empty = models.empty_model(source, trust_remote_code=parameters.trust_remote_code)
    shape = costs.shape_of(empty)
    size = max(size for task in parameters.task_list for size in parameters.size_list(shape.layers, task))

    def on(training: bool) -> Machine:
        if machine != "this":
            return find_machine(machine)
        from deeper_layers.command.probe import this_machine  # slow

        return this_machine(empty, source.dtype, parameters.device, training=training)

    there, config = on(False), PRESETS[preset]
    tokens = parameters.samples * parameters.sequence_length
    rows = [("distances", costs.distances_cost(shape, tokens, parameters.sequence_length, source.dtype))]
    for task in content["tasks"]:
        if task.get("requests"):
            cuts = _cuts(task, shape.layers)
            of_task = task["tokens"], task["requests"], task["length"], source.dtype
            rows.append((f"sweep of {task['task']}, {len(cuts)} models", costs.sweep_cost(shape, cuts, *of_task)))
    found = [_row(what, cost, there, source.dtype) for what, cost in rows]
    try:
        cost = costs.healing_cost(shape, simple_cut(shape.layers, size), config, source.dtype)
        found.append(_row(f"healing without {size} layers, {preset}", cost, on(True), source.dtype))
    except InputError as error:
        found.append({"what": "healing", "unknown": str(error)})
    said = {"name": there.name, "devices": there.devices, "memory": there.memory, "source": there.source}
    return {"machine": said, "costs": found}


def _cuts(task: dict, layers: int) -> list[Cut]:
    """The pruned models of a task; those of a rule that are not known yet as if they shared nothing."""
    sizes = [size for size in task["sizes"] if size]
    cuts = [simple_cut(layers, size) if rule == "simple" else Cut(0, size) for rule in task["rules"] for size in sizes]
    return list(dict.fromkeys([UNPRUNED, *cuts]))


def _row(what: str, cost: costs.Cost, machine: Machine, dtype: str) -> dict:
    return {
        "what": what, "seconds": cost.seconds(machine, dtype), "operations": cost.operations, "memory": cost.memory,
        "weights": cost.weights, "devices": cost.devices(machine),
    }  # fmt: skip


def in_words(found: dict) -> str:
    """The prediction as a person reads it."""
    machine = found["machine"]
    rows = [
        {
            "on " + machine["name"]: row["what"],
            "about": costs.duration(row["seconds"]),
            "operations": f"{row['operations']:.1e}",
            "memory": f"{row['memory'] / 1e9:,.1f} GB",
            "weights": f"{row['weights'] / 1e9:,.1f} GB",
            "devices": str(row["devices"]),
        }
        for row in found["costs"]
        if "unknown" not in row
    ]
    notes = [f"{row['what']}: not known ({row['unknown']})" for row in found["costs"] if "unknown" in row]
    if machine["name"] == "this":
        notes.append(f"Predicted from two layers that were {machine['source']}.")
    else:
        notes.append(f"Arithmetic, not measured: {REACHED:.0%} of the matrix throughput of the {machine['source']}.")
    notes.append("Devices are what one copy of the model needs; as many copies as there is room for share the work.")
    return "\n".join([table(rows), *notes])
