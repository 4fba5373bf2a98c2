"""Kernels that start at once: copies of one process that has loaded what every notebook loads.

A kernel of its own for each notebook keeps notebooks apart, and spends most of its time on loading the same packages.
So one process, the nursery, loads them once, and each kernel begins as a copy of it (a fork). Jupyter starts a
process for a kernel and watches it; that is a small one, which asks the nursery for a copy and lives as long as it.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

LOADED = (
    "ipykernel.kernelapp",
    "IPython.core.completer",
    "pandas",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "plotly.graph_objects",
    "scipy.stats",
    "pydantic",
)
SECOND = 1.0  # how often a process looks whether the build that it works for is still there


class Nursery:
    """The process that kernels are copies of, for as long as a `with` lasts."""

    def __init__(self, folder: str):
        self.address = f"{folder}/nursery"

    def __enter__(self) -> "Nursery":
        # -P: no module of this folder stands in the way of one of Python's own
        command = [sys.executable, "-P", __file__, "serve", self.address]
        self.process = subprocess.Popen(command, start_new_session=True)
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        self.process.wait()

    def manager(self) -> type:
        """The class of Jupyter's kernel managers whose kernels come from here."""
        from jupyter_client.manager import AsyncKernelManager

        address = self.address

        class Manager(AsyncKernelManager):
            def format_kernel_cmd(self, extra_arguments=None) -> list[str]:
                return [sys.executable, "-I", "-S", __file__, "ask", address, self.connection_file]

        return Manager


def serve(address: str) -> None:
    """Be the nursery: load what notebooks load, then become a kernel for everyone who asks, in a copy."""
    for name in LOADED:
        importlib.import_module(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{address}.new")
    server.listen(64)
    os.rename(f"{address}.new", address)  # whoever finds it can connect
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a kernel here
    started_by = os.getppid()
    server.settimeout(SECOND)
    while os.getppid() == started_by:  # else the build was killed
        try:
            asked, _ = server.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            server.close()
            become_a_kernel(asked)
        asked.close()


def become_a_kernel(asked: socket.socket) -> None:
    """In a copy of the nursery: the kernel of one notebook, until it is told to stop or who asked is gone."""
    request, streams, _, _ = socket.recv_fds(asked, 2**20, 2)
    request = json.loads(request)
    for stream, own in zip(streams, (1, 2)):
        os.dup2(stream, own)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.modules["numpy"].random.seed()  # not the same numbers in every copy
    threading.Thread(target=lambda: (asked.recv(1), os._exit(1)), daemon=True).start()
    from ipykernel.kernelapp import IPKernelApp

    try:
        # it ends, too, when the nursery does
        IPKernelApp.launch_instance(argv=["-f", request["connection"], f"--IPKernelApp.parent_handle={os.getppid()}"])
    finally:
        sys.stdout.flush()
        os._exit(0)


def ask(address: str, connection: str) -> None:
    """Be the process that Jupyter watches: ask for a kernel, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Jupyter interrupts a kernel before it shuts it down
    nursery = socket.socket(socket.AF_UNIX)
    started_by = os.getppid()
    while not os.path.exists(address) and os.getppid() == started_by:  # it is still loading
        time.sleep(0.05)
    nursery.connect(address)
    request = {"connection": connection, "folder": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(nursery, [json.dumps(request).encode()], [1, 2])
    nursery.settimeout(SECOND)
    while os.getppid() == started_by:  # else the build was killed
        try:
            nursery.recv(1)  # nothing comes: it is closed with the kernel's end
            return
        except TimeoutError:
            continue


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:4])
