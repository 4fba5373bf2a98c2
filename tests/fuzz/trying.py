"""What all fuzzers of damaged files share: cases by number, what came of each, and the command that tries many.

`python -m tests.fuzz.NAME 5000` tries so many, and `python -m tests.fuzz.NAME 5000 1000` leaves out the first 1000.
"""

import collections
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

GOOD = ("clear", "harmless")  # refused in words, or damaged where it does not matter
# for each number what was damaged and what came of it: one of GOOD, or what was wrong
Outcomes = Callable[[Iterable[int], Path], Iterator[tuple[int, str, str]]]


def counted(found: Iterable[tuple[int, str, str]]) -> tuple[collections.Counter, list[tuple[int, str, str]]]:
    """How many cases came to what, and those that came to nothing good."""
    found = list(found)
    counts = collections.Counter(came if came in GOOD else "bad" for _, _, came in found)
    return counts, [case for case in found if case[2] not in GOOD]


def main(outcomes: Outcomes) -> None:
    """Print each case that came to nothing good, and how many of each kind came to what."""
    end, start = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    counts: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, what, came in outcomes(range(start, end), Path(folder)):
            counts[what, came if came in GOOD else "bad"] += 1
            if came not in GOOD:
                print(f"---- case {number}, {what}\n{came}", flush=True)
    for (what, came), number in sorted(counts.items()):
        print(f"{what}: {number} {came}")
    totals = collections.Counter({came: 0 for came in (*GOOD, "bad")})
    for (_, came), number in counts.items():
        totals[came] += number
    print(dict(totals))
    sys.exit(bool(totals["bad"]))
