"""How much energy a measurement took, estimated from its seconds, its processors and its memory.

Source: Lannelongue et al. 2021 (Green Algorithms, Advanced Science 8, 2100707): hours x (processors x watts of one +
memory x watts of a GB) x what a data centre takes beside. The watts are that work's defaults for a processor that is
not known better, all of it in use. Nothing was measured with a meter.
"""

import re

WATTS, WATTS_OF_GB, BESIDE = 12.0, 0.3725, 1.67
THREADS = re.compile(r"processor.*, (\d+) threads?")


def processors(device: str) -> int | None:
    """How many processors a device in words is, as a unit's provenance has it; None for an accelerator."""
    found = THREADS.search(device)
    return int(found[1]) if found else None


def watt_hours(seconds: int | float, device: str, memory: int | float) -> float | None:
    """The estimate, for bytes of memory; None where the device is an accelerator, of which no watts are known here."""
    if (number := processors(device)) is None:
        return None
    return seconds / 3600 * (number * WATTS + memory / 1e9 * WATTS_OF_GB) * BESIDE
