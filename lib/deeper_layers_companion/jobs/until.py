"""Until when the items of a task are asked, where that may not be the last one: as it is typed and as a job has it."""

import re
from typing import NamedTuple

UNITS = {"s": 1, "min": 60, "h": 3600}
DURATION = r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?(s|min|h)"


class Until(NamedTuple):
    """Until when items are asked, in a random order; see report/stopping.py. It is in no key: what is asked for later
    goes on from what was measured."""

    precision: float | None  # that is wanted; None: stop by the clock or the limit alone
    decides: str  # HALF_GONE or ACCURACY, whichever has to be so precise
    limit: int | None  # the most items of a task, and on average of each task of a group
    seconds: float | None  # by the clock


def parse_seconds(text: str) -> float:
    """The seconds of a duration like "90s", "2min" or "1.5h"."""
    number, unit = re.split(r" ?(?=[a-z])", text, maxsplit=1)
    return float(number) * UNITS[unit]
