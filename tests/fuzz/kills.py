"""Steps that write, killed and failing at drawn calls, once or several times over, and then finished by a plain run.

    python -m tests.fuzz.kills 1000 500     # so many kills, so many faults

The suite tries every call once; here they come together. What is there at the end has to be what an undisturbed run
gives, with nothing beside it, and an error one line.
"""

import collections
import contextlib
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from deeper_layers.errors import InputError
from deeper_layers.export.gguf_files import slice_gguf
from deeper_layers.export.slicing import slice_checkpoint
from deeper_layers.models.sources import find_model
from tests.faults import FAULTS, calls_of, failing_at, killed_at, snapshot
from tests.fuzz import checkpoint_cases, gguf_cases
from tests.test_results import measured_by_parts, what_is_there

Step = Callable[[Path], object]


def steps(folder: Path) -> dict[str, tuple[Step, Callable[[Path], dict]]]:
    """What is done in a folder, and how what is there afterwards is told, by name."""
    checkpoint, file = folder / "checkpoint", folder / "model.gguf"
    checkpoint.mkdir()
    for name, content in checkpoint_cases.originals()["llama 60KB"].items():
        (checkpoint / name).write_bytes(content)
    file.write_bytes(gguf_cases.Parts().content())
    source = find_model(str(file))

    def unless_there(make: Callable[[Path], object]) -> Step:
        """A run that was killed after its end finds OUT, removes what is left beside it, and says that it exists."""

        def step(place: Path) -> None:
            there = (place / "out").exists()
            try:
                make(place / "out")
            except InputError as error:
                if not (there and "exists" in str(error)):
                    raise

        return step

    return {
        "slice": (unless_there(lambda out: slice_checkpoint(checkpoint, checkpoint_cases.CUT, out)), snapshot),
        "GGUF": (unless_there(lambda out: slice_gguf(source, gguf_cases.CUT, out)), snapshot),
        "unit": (measured_by_parts, what_is_there),
    }


def finished(step: Step, place: Path) -> bool:
    """Whether a plain run ends; one that finds OUT half-way to its name finishes that."""
    try:
        with warnings.catch_warnings(action="error"):
            step(place)
    except InputError as error:
        print("not finished:", error)
        return False
    return True


def main(kills: int, faults: int, seed: int = 0) -> None:
    draw, counts = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        known = {}
        for name, (step, there) in steps(Path(folder)).items():
            place = Path(folder) / f"{name} undisturbed"
            place.mkdir()
            known[name] = step, there, calls_of(lambda step=step, place=place: step(place)), there(place)
        number = 0
        while min(kills - counts["killed"], 1) + min(faults - counts["failed"], 1) > 0:
            number += 1
            name = draw.choice(list(known))
            step, there, calls, expected = known[name]
            place = Path(folder) / str(number)
            place.mkdir()
            for _ in range(draw.choice([1, 1, 2, 4])):
                at = draw.randrange(len(calls))
                if counts["killed"] < kills and (draw.random() < 0.7 or counts["failed"] >= faults):
                    counts["killed"] += killed_at(at, lambda step=step, place=place: step(place), draw.choice([0, 0.5]))
                elif counts["failed"] < faults:
                    with failing_at(at, draw.choice(FAULTS), draw.choice([1, 1000])), contextlib.suppress(InputError):
                        step(place)
                    counts["failed"] += 1
            same = finished(step, place) and there(place) == expected
            counts[f"{name}: {'same' if same else 'WRONG'}"] += 1
            if not same:
                print(f"seed {seed}, case {number}, {name}: {sorted(set(there(place)) ^ set(expected))}")
    print(json.dumps(counts, indent=1, sort_keys=True))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
