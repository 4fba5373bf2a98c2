"""The two files that are measured: where they are, and what they hold. Needs no torch."""

import json
from pathlib import Path

MEASURED = Path(__file__).with_name("measured.json")  # what each engine made of each family
OPEN_IN = Path(__file__).with_name("open_in.json")  # real models answering in each engine


def read_measured(path: Path = MEASURED) -> dict | None:
    """What was measured; None where it is missing or can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
