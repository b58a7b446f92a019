"""Kills the commands that train, time and again, and looks at what is left: `make faults`.

    python tests/stress/faults.py --kills=120

A run of `experiments.train` (streamed data, many checkpoints) and a study of `experiments.ablate`
(waves saved at every report) are started, killed with SIGKILL, and started again with the same
command until they end; then all that they wrote must equal, timing columns apart, what an
undisturbed one wrote. Kills come at every kind of point where a process changes its folder (see
fault_points.py), in the middle of writes, while a checkpoint is being written, and at random times.
Then: a full disk, a read-only folder, clocks that jump, two processes on one folder, signals.

One process imports JAX and forks the others before any backend starts: each costs a second or two.
"""

import argparse
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script

import grain  # noqa: F401  (forked with the rest)

from qkv_jax.runtime.files import LOCK
from tests.stress.fault_harness import BAD_INPUT, RESUME, Harness
from tests.support.fault_cases import Case


class Faults(Harness):
    """Kills as far as asked, and faults of other kinds; each says how many there were."""

    def full_disk(self) -> str:
        """Each command on a file system that is full after a part of what it needs: it refuses in
        one line with exit code 2; with more room the same command ends as if nothing had been."""
        refused = 0
        for case in self.cases:
            disk = self.place / "disk"
            folder = disk / "run"
            need = self.used(case)
            with self.mounted(disk) as remount:
                if remount is None:
                    return "full disk not tested (cannot mount)"
                for share in (0.03, 0.2, 0.5, 0.8):
                    remount(f"size={max(8192, int(need * share)) // 4096 * 4096}")
                    ended = self.child(case.command(folder)).wait()
                    if ended.code:
                        self.expect(ended, BAD_INPUT, "No space left on device")
                        assert f"error: {folder}" in ended.err, f"no file named: {ended.err}"
                        refused += 1
                assert refused, "no disk was full"
                remount("size=64m")
                self.finish(case, folder)
        return f"{refused} full disks"

    def read_only(self) -> str:
        """A folder that cannot be written, new and half done: one line, exit code 2."""
        for case in self.cases:
            folder = self.place / "disk" / "run"
            with self.mounted(self.place / "disk") as remount:
                if remount is None:
                    return "read-only folders not tested (cannot mount)"
                remount("ro")
                ended = self.child(case.command(folder)).wait()
                self.expect(ended, BAD_INPUT, "Read-only file system")
                remount("rw")
                self.kill_some_time(case, folder)
                remount("ro")
                ended = self.child(case.command(folder)).wait()
                # A run that had ended before it was killed answers from what it holds.
                if ended.code or not (folder / "result.json").exists():
                    self.expect(ended, BAD_INPUT, "Read-only file system")
                remount("rw")
                self.finish(case, folder)
        return f"{2 * len(self.cases)} read-only folders"

    @contextlib.contextmanager
    def mounted(self, disk: pathlib.Path) -> Iterator[Callable[[str], None] | None]:
        """A file system of its own in memory, and what changes its options; None without rights."""
        disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "faults", str(disk)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            yield None
            return
        try:
            yield lambda options: _run("mount", "-o", f"remount,{options}", str(disk))
        finally:
            _run("umount", str(disk))

    def used(self, case: Case) -> int:
        """Bytes of whole pages that an undisturbed run occupies."""
        with self.mounted(self.place / "disk") as remount:
            if remount is None:
                return 0
            folder = self.place / "disk" / "run"
            self.expect(self.child(case.command(folder)).wait(), 0)
            room = os.statvfs(folder)
            return (room.f_blocks - room.f_bfree) * room.f_frsize

    def jumping_clocks(self) -> str:
        """Clocks that are set by years, back and forth, at one look in ten; and kills on top."""

        def set_clock() -> None:
            dice, now, now_ns, offset = random.Random(os.getpid()), time.time, time.time_ns, 0.0

            def jump() -> float:
                nonlocal offset
                if dice.random() < 0.1:
                    offset = dice.uniform(-1e8, 1e8)
                return offset

            time.time = lambda: now() + jump()
            time.time_ns = lambda: now_ns() + int(1e9 * jump())

        for case in self.cases:
            folder = self.folder(case)
            for _ in range(3):
                # Orbax takes a leap for a time-out, and the command says so and ends.
                if not self.kill_some_time(case, folder, set_clock, "timed out"):
                    folder = self.folder(case)
            self.finish(case, folder)
        return f"{len(self.cases)} jumping clocks"

    def two_processes(self) -> str:
        """The second is refused while the first lives, stopped or not; a dead one holds nothing."""
        for case in self.cases:
            folder = self.folder(case)
            first = self.child(case.command(folder))
            self.until_held(first, folder)
            first.send(signal.SIGSTOP)
            holder = f"is in use by process {first.pid} on "
            for _ in range(2):
                self.expect(self.child(case.command(folder)).wait(), BAD_INPUT, holder)
            first.send(signal.SIGKILL)
            first.wait()
            assert (folder / LOCK).exists(), "the dead process gave its lock back"
            self.finish(case, folder)
        return f"{2 * len(self.cases)} second processes refused"

    def signals(self) -> str:
        """SIGTERM, SIGINT and a time limit: one line, exit code 75, and it goes on; a second SIGINT
        ends the process at once."""
        stops = 0
        for case in self.cases:
            folder = self.folder(case)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                saved = case.progress(folder)
                child = self.child(case.command(folder))
                self.until_held(child, folder)
                time.sleep(self.dice.uniform(0, self.seconds[case.name] / 3))
                child.send(number)
                ended = child.wait()
                assert case.kept(saved, case.progress(folder))
                if ended.code == 0:  # it was over before
                    self.finish(case, folder, check_only=True)
                    folder = self.folder(case)
                    continue
                line = f"interrupted by {number.name}; the same command goes on from here"
                self.expect(ended, RESUME, line)
                assert not (folder / LOCK).exists()
                stops += 1
            ended = self.child(case.command(folder, "--max_hours=0")).wait()
            self.expect(ended, RESUME, "time limit of 0 hours reached; the same command goes on")
            child = self.child(case.command(folder))
            self.until_held(child, folder)
            for _ in range(20):
                child.send(signal.SIGINT)
                time.sleep(0.005)
            assert child.wait().code in (-signal.SIGINT, 0)
            self.finish(case, folder)
        return f"{stops} signals"


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=120, help="how many times to kill -9")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--few", action="store_true", help="8 kills and two processes, no more")
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults") as place:
        harness = Faults(pathlib.Path(place), given.seed)
        harness.prepare()
        stages = [harness.two_processes]
        if not given.few:
            stages += [
                harness.full_disk, harness.read_only, harness.jumping_clocks, harness.signals,
            ]  # fmt: skip
        for stage in stages:
            print(stage(), flush=True)
        harness.kill(8 if given.few else given.kills)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(harness.kills.items()))
    print(f"{sum(harness.kills.values())} kills: {kinds}")
    print(
        f"all {harness.finished} runs that were disturbed ended equal to undisturbed ones: nothing "
        f"lost, nothing doubled ({time.monotonic() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
