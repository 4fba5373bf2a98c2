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

LINKS = [Path("/etc/slurm", name) for name in ("slurm.conf", "slurm.key")]
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
StateSaveLocation={folder}
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
NODE = "NodeName={} NodeHostname=localhost NodeAddr=127.0.0.1 Port={} CPUs=2 RealMemory=16000"


def why_not() -> str | None:
    """Why there can be no SLURM of ours on this machine; None where there can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{missing[0]} is not installed: apt-get install slurmctld slurmd slurm-client"
    if os.geteuid() != 0:
        return "SLURM is started by root alone"
    # a link that leads nowhere was left by a process of ours that was killed
    return f"{LINKS[0]} is of another SLURM" if LINKS[0].exists() else None


class Cluster:
    """Two nodes of two cores; `folder` has what SLURM writes."""

    def __init__(self, folder: Path):
        self.folder, self.name, self.daemons = folder, f"virtual-{os.getpid()}", {}

    def start(self) -> None:
        asked = {"cluster": self.name, "folder": self.folder, "controller": free_port()}
        nodes = "\n".join(NODE.format(name, free_port()) for name in NODES)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(nodes=nodes, **asked))
        (self.folder / "slurm.key").touch(mode=0o600)
        (self.folder / "slurm.key").write_bytes(os.urandom(1024))
        for link in LINKS:
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.folder / link.name)
        self.run("slurmctld", "slurmctld", "-D", "-i")
        for name in NODES:
            self.start_node(name)
        self.wait_for(lambda: len(said("sinfo", "-h", "-N", "-t", "idle")) == len(NODES), "idle nodes")

    def run(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.daemons[name] = subprocess.Popen(command, **quiet)

    def start_node(self, name: str) -> None:
        """Until it is up: every slurmd makes /run/slurm/sack.socket anew, and of two that do so at once one dies."""
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        self.run(name, "slurmd", "-D", "-N", name)
        self.wait_for(lambda: b"started on" in log.read_bytes(), f"node {name}", 60)

    def kill_node(self, name: str) -> None:
        """A node and all that runs on it, at once, as when its plug is pulled: jobs, by what SLURM puts into their
        environment, and their guards."""
        daemons = {daemon.pid for daemon in self.daemons.values()} | {os.getpid()}
        self.daemons[name].kill()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marks = process.environ()
                if (marks.get("SLURM_CLUSTER_NAME"), marks.get("SLURMD_NODENAME")) == (self.name, name):
                    for one in {process.parent(), process} - {None}:
                        if one.pid not in daemons:
                            one.send_signal(signal.SIGKILL)
        self.daemons.pop(name).wait()

    def lose(self, name: str) -> None:
        """A node breaks down, which is noticed, and is mended."""
        self.kill_node(name)
        said("scontrol", "update", f"nodename={name}", "state=down", "reason=killed")
        self.start_node(name)
        said("scontrol", "update", f"nodename={name}", "state=resume")

    def stop(self) -> None:
        """Whatever of it is left."""
        for name in set(NODES) & set(self.daemons):
            self.kill_node(name)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()
        for link in LINKS:
            link.unlink(missing_ok=True)

    def running(self, rule: str) -> dict[str, str]:
        """The node of each job that runs, of a rule of the Snakefile."""
        jobs = [line.split(maxsplit=2) for line in said("squeue", "-h", "-t", "RUNNING", "-o", "%i %N %k")]
        return {job: node for job, node, comment in jobs if comment.startswith(f"rule_{rule}")}

    def wait_for(self, true, what: str, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not (found := true()):
            if time.monotonic() > until:
                logs = "\n".join(f"{path}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))
                raise AssertionError(f"no {what} in {seconds} s\n{logs}")
            time.sleep(0.1)
        return found


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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def said(*command: str) -> list[str]:
    """The lines that a command of SLURM printed; none where it could not be answered."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines() if done.returncode == 0 else []


if __name__ == "__main__":  # until Ctrl-C
    with contextlib.suppress(KeyboardInterrupt), started():
        print("sinfo, sbatch and squeue speak to it", flush=True)
        signal.pause()
