"""A real Slurm on this machine for the tests: two nodes, two partitions, everything in one folder.

    with slurm(folder) as cluster: cluster("squeue")

No systemd, cgroups, accounting database or system-wide configuration: munged, slurmctld and, for
each node, slurmd are started here, listen on 127.0.0.1 and are ended afterwards. Jobs of the
partition `high` preempt those of `low`, which are queued again. The names of the nodes must
resolve, since JAX takes the first one for its coordinator: where they do not, they stand in
/etc/hosts meanwhile.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

NODES = ("qkvn1", "qkvn2")
_PROGRAMS = ("munged", "munge", "unmunge", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
_HOSTS = pathlib.Path("/etc/hosts")

_CONF = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=10
MpiDefault=none
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60
"""


class Cluster:
    """Runs Slurm's commands on it; `environment` is for programs that do."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self, *options: str) -> list[tuple[str, str, str]]:
        """Id, state and reason of every job."""
        answer = self("squeue", "-h", "-r", *options, "-o", "%i|%T|%r")
        return [tuple(line.split("|", 2)) for line in answer.splitlines()]


def impossible() -> str:
    """Why there can be no Slurm here; empty if there can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in _PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (packages slurm-wlm and munge)"
    if os.getuid():
        return "slurmd has to be started by root"
    if not all(map(_resolves, NODES)) and not os.access(_HOSTS, os.W_OK):
        return f"{_HOSTS} cannot be written, and {NODES} do not resolve"
    return ""


def wait_for(what: Callable[[], object], seconds: float, about: str) -> object:
    """What it returns once that is true; asked twice a second.

    Raises:
      TimeoutError: saying `about`.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.5)
    raise TimeoutError(f"{about}: not within {seconds} seconds")


@contextlib.contextmanager
def slurm(folder: pathlib.Path) -> Iterator[Cluster]:
    """Starts Slurm in an empty folder, and ends it with all its jobs."""
    os.environ["PATH"] = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    ports = _free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=2"
        for node, port in zip(NODES, ports[1:], strict=True)
    )
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(folder=folder, ports=ports, user="root", nodes=nodes))
    cluster = Cluster(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_names())
        key, pipe = folder / "munge.key", f"{folder}/munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        folder.chmod(0o755)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        stack.enter_context(_daemon(folder, "munged", "-F", "--force", f"--socket={pipe}", *files))
        asked = f"munge -S {pipe} -n | unmunge -S {pipe}"
        answers = lambda: not subprocess.run(asked, shell=True, capture_output=True).returncode
        wait_for(answers, 20, "munge")
        config = ("-f", str(conf))
        stack.enter_context(_daemon(folder, "slurmctld", "-D", "-i", *config))
        for node in NODES:
            stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", node, *config))
        idle = lambda: cluster("sinfo", "-h", "-N", "-p", "low", "-o", "%T", check=False).split()
        wait_for(lambda: idle() == ["idle"] * len(NODES), 60, f"idle nodes, see {folder}/*.log")
        try:
            yield cluster
        finally:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                cluster("scancel", "--user=root")
                wait_for(lambda: not cluster.jobs(), 40, "an empty queue")


@contextlib.contextmanager
def _daemon(folder: pathlib.Path, *command: str) -> Iterator[None]:
    """A daemon in the foreground, ended by SIGTERM, or SIGKILL if it does not mind."""
    with (folder / f"{command[0]}.out").open("a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@contextlib.contextmanager
def _names() -> Iterator[None]:
    """The names of the nodes resolve."""
    line = f"127.0.0.1 {' '.join(NODES)}\n"
    added = not all(map(_resolves, NODES))
    if added:
        with _HOSTS.open("a") as hosts:
            hosts.write(line)
    try:
        yield
    finally:
        if added:  # in place: where it is mounted it cannot be replaced
            _HOSTS.write_text(_HOSTS.read_text().replace(line, ""))


def _resolves(name: str) -> bool:
    try:
        socket.gethostbyname(name)
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
