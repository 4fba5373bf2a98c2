"""What `deeper-layers plan --machine` adds: seconds, memory and bytes of distances, sweeps, healing; arithmetic."""

from deeper_layers import models
from deeper_layers.command.answers import table
from deeper_layers.cuts import UNPRUNED, Cut, simple_cut
from deeper_layers.errors import InputError
from deeper_layers.experiments import costs
from deeper_layers.experiments.parameters import SweepParameters
from deeper_layers.models.machines import REACHED, Machine, find_machine
from deeper_layers.models.sources import Source
from deeper_layers.presets import PRESETS


def predicted(
    content: dict, cuts: dict[str, dict[str, list[Cut] | None]], machine: str, preset: str,
    parameters: SweepParameters, source: Source,
) -> dict:  # fmt: skip
    """What a plan's work costs on a machine; `cuts` are those of each task and rule, None where they are not known.

    Raises InputError for an unknown machine or preset, or a model that can't be built without weights.
    """
    if preset not in PRESETS:
        raise InputError(f"heal is {preset!r}, expected one of {', '.join(map(repr, PRESETS))}")
    empty = models.empty_model(source, trust_remote_code=parameters.trust_remote_code)
    shape = costs.shape_of(empty)
    largest = max(size for task in parameters.task_list for size in parameters.size_list(shape.layers, task))
    healed = parameters.given_cut or simple_cut(shape.layers, largest)

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
            of_rules = cuts[task["task"]].values()
            known = {UNPRUNED}.union(*(of_rule for of_rule in of_rules if of_rule))
            unknown = [size for of_rule in of_rules if of_rule is None for size in task["sizes"] if size]
            of_task = task["tokens"], task["requests"], task["length"], source.dtype
            cost = costs.sweep_cost(shape, sorted(known), *of_task, unknown=unknown)
            rows.append((f"sweep of {task['task']}, {len(known) + len(unknown)} models", cost))
    found = [_row(what, cost, there, source.dtype) for what, cost in rows]
    try:
        if healed.attention or healed.mlp:
            raise InputError("the cut drops sublayers, and what heals lacks whole layers")
        cost = costs.healing_cost(shape, healed, config, source.dtype)
        found.append(_row(f"healing without {healed.size} layers, {preset}", cost, on(True), source.dtype))
    except InputError as error:
        found.append({"what": "healing", "unknown": str(error)})
    said = {"name": there.name, "devices": there.devices, "memory": there.memory, "source": there.source}
    return {"machine": said, "costs": found}


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
