"""Where a figure's numbers come from, in one line."""

import collections

from deeper_layers.results import Unit


def origin(*units: Unit) -> str:
    """One line that traces a figure's numbers back: model, weights, data type, data, files and commits."""
    first = units[0]
    model = first.key["model"]
    weights = f"{first.details.get('weights', '')} weights {model['weights'][:19]}".strip()
    # the wheel or the hash of the documents; the files hold the rest
    data = ", ".join(dict.fromkeys(str(unit.key["data"]).partition(", ")[0] for unit in units))
    files = ", ".join(unit.path.name for unit in units)
    if len(units) > 6:  # the page of all measurements lists them
        counts = collections.Counter(unit.kind for unit in units)
        files = ", ".join(f"{number} unit{'s' * (number != 1)} {kind}-*.json" for kind, number in counts.items())
    commits = ", ".join(dict.fromkeys((unit.provenance["commit"] or "unknown")[:10] for unit in units))
    changed = ", with uncommitted changes" if any(unit.provenance["dirty"] for unit in units) else ""
    folder = f"{first.path.parent.parent.name}/{first.path.parent.name}"
    opened = f", opened in {how}" if (how := first.key.get("quantization")) else ""
    opened = f"{first.key['dtype']}{opened}"
    return f"{model['name']}, {weights}, {opened}. Data: {data}. {folder}: {files}. Commit {commits}{changed}."
