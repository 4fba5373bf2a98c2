"""What is done of a sweep: its bar, and its finished parts, which an interrupted one finds again."""

import hashlib
import itertools
import json
import sys
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from deeper_layers.results.shards import Shards

FIRST_WRITTEN = 500_000  # shards of log-likelihoods are numbered from 0, those of written answers from here


class Parts(tqdm):
    """A measurement part by part, with a bar; what ran out of memory is done again, and counted once."""

    def __init__(self, shards: Shards | None, what: str, total: int, unit: str, first: int = 0):
        self.shards, self.numbers = shards, itertools.count(first)
        how = {"unit": unit, "unit_scale": total > 10**5, "mininterval": 5, "miniters": 0, "file": sys.stderr}
        super().__init__(desc=what, total=total, **how)

    def update(self, n: float | int | None = 1):
        return super().update(min(n or 0, self.total - self.n))

    def finished(self, asked: tuple, steps: float | int, run: Callable[[], list]) -> list:
        """What `run` gives, as JSON has it: from the next shard where it is of what is asked, else run and kept.

        `steps` are those of the bar, which what is run counts itself.
        """
        if self.shards is None:
            return run()
        number, same = next(self.numbers), {"asked": np.array(hashlib.sha256(repr(asked).encode()).hexdigest())}
        kept = self.shards.get(number, same)
        if kept is not None:
            self.initial += steps  # the time that it says is left is that of the work that is left
            self.update(steps)
            return json.loads(kept["found"].tobytes())
        found = run()
        self.shards.put(number, same | {"found": np.frombuffer(json.dumps(found).encode(), dtype=np.uint8)})
        return found
