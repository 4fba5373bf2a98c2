"""Machines by their vendors' data sheets: memory, bandwidth and matrix throughput of a device, and how many there are.

A sheet states what no program reaches. `REACHED` is the share of the matrix throughput that a prediction counts with:
0.4, about what training Llama 3.1 405B reached on H100s in bfloat16 (38 to 43%; Llama team 2024, arXiv 2407.21783,
table 4). The machine at hand ("this") is not in the table: what it reaches is tried. Needs no torch.
"""

import dataclasses
import re

from deeper_layers.checks import shown
from deeper_layers.errors import InputError

REACHED = 0.4
MOST = 100_000  # devices


@dataclasses.dataclass(frozen=True)
class Machine:
    """Equal devices.

    Attributes:
        name: as it is typed, like "h100x8".
        memory: bytes of one device.
        bandwidth: bytes a second that one device reads from its memory; 0 where it is not known.
        throughput: operations a second in products of matrices of one device, by data type, as far as it is reached.
        source: where the numbers are from.
        devices: how many there are.
    """

    name: str
    memory: int | float
    bandwidth: float
    throughput: dict[str, float]
    source: str
    devices: int = 1


def _sheet(
    name: str, gigabytes: int | float, terabytes: float, half: int | float, single: int | float, source: str
) -> Machine:
    """A device from its data sheet: GB, TB/s, and TFLOPS without sparsity in 16 bits and in float32."""
    throughput = {"bfloat16": half, "float16": half, "float32": single}
    reached = {dtype: REACHED * teraflops * 1e12 for dtype, teraflops in throughput.items()}
    return Machine(name, gigabytes * 1e9, terabytes * 1e12, reached, source)


# PyTorch multiplies float32 as such unless it is told otherwise: not in TF32
DEVICES = {
    machine.name: machine
    for machine in (
        _sheet("h100", 80, 3.35, 989.4, 67, "NVIDIA H100 Tensor Core GPU data sheet (SXM)"),
        _sheet("h200", 141, 4.8, 989.4, 67, "NVIDIA H200 Tensor Core GPU data sheet (SXM)"),
        _sheet("a100", 80, 2.039, 312, 19.5, "NVIDIA A100 Tensor Core GPU data sheet (80 GB, SXM)"),
        _sheet("l40s", 48, 0.864, 362, 91.6, "NVIDIA L40S data sheet"),
        _sheet("mi300x", 192, 5.3, 1307.4, 163.4, "AMD Instinct MI300X data sheet"),
        _sheet("rtx4090", 24, 1.008, 165.2, 82.6, "NVIDIA Ada GPU architecture white paper, appendix A"),
    )
}
WRITTEN = re.compile(rf"(?P<device>{'|'.join(DEVICES)})(?:x(?P<devices>[0-9]{{1,6}}))?")


def find_machine(name: str) -> Machine:
    """A machine by its name: a device of the table, and after an x how many. Raises InputError for any other."""
    found = WRITTEN.fullmatch(name)
    devices = int(found["devices"] or 1) if found else 0
    if found is None or not 1 <= devices <= MOST:
        raise InputError(
            f"machine is {shown(name)}, expected 'this' or one of {', '.join(DEVICES)}, and how many, like h100x8"
        )
    return dataclasses.replace(DEVICES[found["device"]], name=name, devices=devices)
