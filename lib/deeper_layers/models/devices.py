"""Where a model runs, and what that is called."""

import contextlib
import os
import platform
from pathlib import Path

import psutil
import torch

from deeper_layers.checks import text
from deeper_layers.errors import InputError, first_line


def choose_device(name: str) -> str:
    """Where a model is put: what "auto" stands for, else the device of that name.

    Raises InputError for a device that is not there, or that holds no numbers.
    """
    if name == "auto":
        if torch.cuda.is_available():
            # of several processes started together (torchrun), each has its own
            return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.empty(0, device=text("device", name)).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, ImportError) as error:
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


def free_memory(device: str) -> int:
    """Bytes that are free where a model is put; in a container no more than it may have."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError):  # no Linux
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, kind, path = line.split(":", 2)
            root, limit = ("", "memory.max") if number == "0" else (kind, "memory.limit_in_bytes")
            # a container sees its own group as the root
            for file in (f"/sys/fs/cgroup/{root}/{path}/{limit}", f"/sys/fs/cgroup/{root}/{limit}"):
                with contextlib.suppress(OSError, ValueError):  # none is there, or it says "max"
                    free = min(free, int(Path(file).read_text()))
    return free
