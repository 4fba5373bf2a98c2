"""A real SLURM of two virtual nodes on this machine: no systemd, no munge, no cgroups, no accounting.

Debian's slurmctld, slurmd and slurm-client, started as processes of ours and stopped by their numbers. SLURM is told of
its configuration by a link in /etc/slurm, since Snakemake takes SLURM_CONF away from its jobs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ETC = Path("/etc/slurm")
NODES = ("virtual1", "virtual2")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName={cluster}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/slurm
AuthInfo=use_client_ids,cred_expire=15
CredType=cred/slurm
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdTimeout=6
KillWait=2
MinJobAge=300
SchedulerParameters=bf_interval=2,sched_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why there can be no SLURM of ours on this machine; None where there can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{missing[0]} is not installed: apt-get install slurmctld slurmd slurm-client"
    if os.geteuid() != 0:
        return "SLURM is started by root alone"
    # a link that leads nowhere was left by a process of ours that was killed
    return f"{ETC}/slurm.conf is of another SLURM" if (ETC / "slurm.conf").exists() else None


class Cluster:
    """Two nodes of two cores; `folder` has what SLURM writes."""

    def __init__(self, folder: Path):
        self.folder, self.name, self.daemons = folder, f"virtual-{os.getpid()}", {}

    def start(self) -> None:
        controller, *ports = free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=16000"
            for name, port in zip(NODES, ports)
        ]
        asked = {"cluster": self.name, "folder": self.folder, "controller": controller, "nodes": "\n".join(nodes)}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**asked))
        (self.folder / "state").mkdir()
        key = self.folder / "slurm.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        ETC.mkdir(exist_ok=True)
        for name in ("slurm.conf", "slurm.key"):
            (ETC / name).unlink(missing_ok=True)
            (ETC / name).symlink_to(self.folder / name)
        self._daemon("slurmctld", ["slurmctld", "-D", "-i"])
        for name in NODES:
            self.start_node(name)
        self.wait_for(lambda: len(said(["sinfo", "-h", "-N", "-t", "idle"]).splitlines()) == len(NODES), "idle nodes")

    def start_node(self, name: str) -> None:
        """Until it is up: every slurmd makes /run/slurm/sack.socket anew, and of two that do so at once one dies."""
        log = self.folder / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        self._daemon(name, ["slurmd", "-D", "-N", name])
        self.wait_for(lambda: b"started on" in log.read_bytes()[before:], f"node {name}", 60)

    def kill_node(self, name: str) -> None:
        """A node and all that runs on it, at once, as when its plug is pulled."""
        for process in [self.daemons[name], *self.on_node(name)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.daemons.pop(name).wait()

    def on_node(self, name: str) -> list[psutil.Process]:
        """What runs on a node besides its daemon: jobs, by what SLURM puts into their environment, and their guards."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marks = process.environ()
                if (marks.get("SLURM_CLUSTER_NAME"), marks.get("SLURMD_NODENAME")) == (self.name, name):
                    found |= {one.pid: one for one in (process, process.parent()) if one and one.pid != os.getpid()}
        return [one for one in found.values() if one.pid not in {daemon.pid for daemon in self.daemons.values()}]

    def stop(self) -> None:
        """Whatever of it is left."""
        for name in set(NODES) & set(self.daemons):
            self.kill_node(name)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        for name in ("slurm.conf", "slurm.key"):
            (ETC / name).unlink(missing_ok=True)

    def running(self, rule: str = "") -> dict[str, str]:
        """The node of each job that runs, of a rule of the Snakefile or of all."""
        lines = said(["squeue", "-h", "-t", "RUNNING", "-o", "%i %N %k"]).splitlines()
        jobs = {job: (node, comment) for job, node, comment in (line.split(maxsplit=2) for line in lines)}
        return {job: node for job, (node, comment) in jobs.items() if comment.startswith(f"rule_{rule}")}

    def lose(self, name: str) -> None:
        """A node breaks down, which is noticed, and is mended."""
        self.kill_node(name)
        said(["scontrol", "update", f"nodename={name}", "state=down", "reason=killed"])
        self.start_node(name)
        said(["scontrol", "update", f"nodename={name}", "state=resume"])

    def wait_for(self, true, what: str, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not (found := true()):
            if time.monotonic() > until:
                logs = "\n".join(f"{path}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
                raise AssertionError(f"no {what} in {seconds} s\n{logs}")
            time.sleep(0.1)
        return found

    def _daemon(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.daemons[name] = subprocess.Popen(command, **quiet)


@contextlib.contextmanager
def started() -> Iterator[Cluster]:
    """A cluster, gone with all its processes at the end."""
    with tempfile.TemporaryDirectory(prefix="virtual-slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def said(command: list[str]) -> str:
    """What a command of SLURM printed; nothing where it could not be answered."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""
