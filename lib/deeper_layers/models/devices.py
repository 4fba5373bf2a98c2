"""Where a model runs, and what that is called."""

import platform

import torch

from deeper_layers.checks import text
from deeper_layers.errors import InputError, first_line


def choose_device(name: str) -> str:
    """Where a model is put: what "auto" stands for, else the device of that name.

    Raises InputError for a device that is not there, or that holds no numbers.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(0, device=text("device", name)).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device is {name!r} ({first_line(error)}): use 'auto', 'cpu' or an existing one") from error
    return name


def device_name() -> str:
    """The accelerator, or else the processor and what it can do, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    # how 16-bit numbers are rounded on the way depends on what the processor can do
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return f"{platform.machine()} processor ({capability}), {threads} thread{'s' if threads > 1 else ''}"
