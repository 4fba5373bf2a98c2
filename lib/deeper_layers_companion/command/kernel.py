"""Kernels that are interrupted only while a cell runs.

jupyter_client interrupts every kernel before it asks it to end. papermill has just asked for its name: an interrupt
that comes too early makes it print "KeyboardInterrupt caught in kernel." at the end of a run that succeeded. While a
cell runs, the interrupt is what stops it.
"""

from jupyter_client import AsyncKernelManager


def interrupt_only_cells() -> dict:
    """Options of nbclient for one notebook, by which an idle kernel is asked to end without an interrupt."""
    running: set[int] = set()

    class KernelManager(AsyncKernelManager):
        async def _async_interrupt_kernel(self) -> None:
            if running:
                await super()._async_interrupt_kernel()

    def note_start(cell, cell_index: int) -> None:
        running.add(cell_index)

    def note_end(cell, cell_index: int, execute_reply) -> None:
        running.discard(cell_index)

    return {
        "kernel_manager_class": KernelManager,
        "on_cell_execute": note_start,
        "on_cell_executed": note_end,
    }
