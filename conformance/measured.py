"""measured.json: where it is, and what it holds. Needs no torch."""

import json
from pathlib import Path

MEASURED = Path(__file__).with_name("measured.json")


def read_measured() -> dict | None:
    """What was measured; None where it is missing or can't be read."""
    try:
        return json.loads(MEASURED.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
