"""Commands that are killed: started in forks, struck where they write, and compared afterwards."""

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qkv_jax.runtime.files import LOCK
from tests.support import cli_server
from tests.support.fault_cases import STUDY_CONFIG, TRAIN_CONFIG, Case, print_of
from tests.support.fault_points import Point, Points

LIMIT = 120  # seconds after which a child counts as stuck
RESUME, BAD_INPUT = 75, 2
ARMS = "separate|K=V|placebo|tune|eval"  # what happens to the files of one happens to all


@dataclasses.dataclass
class Ended:
    """What a child left behind; `code` is negative for a signal."""

    code: int
    out: str
    err: str


class Child:
    """A command in a process of its own, forked from this one.

    Args:
      command: module and arguments.
      before: called in the child before it starts.
    """

    def __init__(self, command: list[str], before: Callable[[], object]):
        self._texts = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115
        self.started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            for number, text in enumerate(self._texts, 1):
                os.dup2(text.fileno(), number)
            before()
            code = cli_server.run(*command[:1], command[1:])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        self._code: int | None = None

    @property
    def running(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() - self.started > LIMIT:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"process {self.pid} is stuck")
        return self._code is None

    def send(self, number: int) -> None:
        if self.running:
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        while self.running:
            time.sleep(0.002)
        texts = []
        for stream in self._texts:
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
            stream.close()
        return Ended(self._code, *texts)


class Harness:
    """Runs cases with faults; counts what it did.

    Args:
      place: where it may write.
      seed: of all that is random.
    """

    def __init__(self, place: pathlib.Path, seed: int):
        self.place, self.dice = place, random.Random(seed)
        self.kills: dict[str, int] = {}
        self.finished = self._serial = 0
        text = place / "text"
        text.write_bytes(np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes())
        self.cases = []
        self.points: dict[str, list[Point]] = {}
        self.prints: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        for name, module, config in (
            ("train", "experiments.train", TRAIN_CONFIG),
            ("ablate", "experiments.ablate", STUDY_CONFIG),
        ):
            file = place / f"{name}.py"
            file.write_text(config.format(text=str(text)))
            self.cases.append(Case(name, module, file))

    def prepare(self) -> None:
        """One undisturbed run of each case: what the others must equal, and its points."""
        for case in self.cases:
            folder, listed = self.folder(case), self.place / f"{case.name}.points"
            descriptor = os.open(listed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

            def note(point: Point, count: int, descriptor=descriptor) -> bool:
                if count == 1:
                    os.write(descriptor, (json.dumps(point) + "\n").encode())
                return False

            watch = lambda folder=folder, note=note: Points(folder, note, ARMS)
            self.expect(self.child(case.command(folder), watch).wait(), 0)
            os.close(descriptor)
            lines = listed.read_text().splitlines()
            self.points[case.name] = [tuple(json.loads(line)) for line in lines]
            self.prints[case.name] = self.print(folder)
            # Once more with what is compiled by now.
            child = self.child(case.command(self.folder(case)))
            self.expect(child.wait(), 0)
            self.seconds[case.name] = time.monotonic() - child.started

    def folder(self, case: Case) -> pathlib.Path:
        self._serial += 1
        return self.place / f"{case.name}{self._serial}"

    def child(self, command: list[str], before: Callable[[], object] = lambda: None) -> Child:
        def start() -> None:
            # What one process compiles the others need not.
            jax.config.update("jax_compilation_cache_dir", str(self.place / "compiled"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
            before()

        return Child(command, start)

    def print(self, folder: pathlib.Path) -> dict[str, str]:
        """`print_of` in a child: JAX must not start in this process."""
        answer = self.place / "print"
        pid = os.fork()
        if not pid:
            try:
                answer.write_text(json.dumps(print_of(folder)))
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, f"{folder} cannot be read"
        return json.loads(answer.read_text())

    def expect(self, ended: Ended, code: int, line: str = "") -> None:
        message = ended.err.strip()
        assert ended.code == code, f"exit code {ended.code}, not {code}: {message}"
        assert line in message and (not line or message.count("\n") == 0), (
            f"said {message!r}, not {line!r}"
        )
        if code == 0:
            assert "Traceback" not in message and "warning: checkpoint" not in message, message

    def finish(self, case: Case, folder: pathlib.Path, check_only: bool = False) -> None:
        """Runs to the end without a fault; all must be as if there had been none."""
        if not check_only:
            self.expect(self.child(case.command(folder)).wait(), 0)
        ours, whole = self.print(folder), self.prints[case.name]
        wrong = sorted(n for n in {*ours, *whole} if ours.get(n) != whole.get(n))
        assert not wrong, f"{folder}: differs in {', '.join(wrong)}"
        self.finished += 1
        shutil.rmtree(folder)

    def blow(
        self, case: Case, folder: pathlib.Path, kind: str, strike: Callable[[Child], None],
        before: Callable[[], object] = lambda: None, refusal: str = "",
    ) -> bool:  # fmt: skip
        """One start that is to be killed; whether something is left to do. It may have ended before
        it was killed, or have refused to go on, if there may be a `refusal`."""
        saved = case.progress(folder)
        child = self.child(case.command(folder), before)
        strike(child)
        ended = child.wait()
        assert case.kept(saved, case.progress(folder)), f"{folder}: lost what was saved"
        if ended.code == -signal.SIGKILL:
            self.kills[kind] = self.kills.get(kind, 0) + 1
            return True
        if refusal and ended.code == BAD_INPUT:
            self.expect(ended, BAD_INPUT, refusal)
            return True
        self.expect(ended, 0)
        self.finish(case, folder, check_only=True)
        return False

    def kill_at(self, case: Case, folder: pathlib.Path, point: Point, nth: int) -> bool:
        """Kills at the nth time that a point is reached."""
        at = lambda here, count: here == point and count == nth
        before = lambda: Points(folder, at, ARMS)
        kind = {"write": "half way through a write"}.get(point[0], f"at a {point[0]}")
        return self.blow(case, folder, kind, lambda child: None, before)

    def kill_while_saving(self, case: Case, folder: pathlib.Path) -> bool:
        """Kills while a checkpoint has its temporary name."""

        def strike(child: Child) -> None:
            skip = self.dice.randrange(3)
            known = _being_saved(folder)
            while child.running:
                new = _being_saved(folder) - known
                known |= new
                if new and not skip:
                    time.sleep(self.dice.uniform(0, 0.02))
                    child.send(signal.SIGKILL)
                    break
                skip -= bool(new)
                time.sleep(0.0005)

        return self.blow(case, folder, "inside a checkpoint", strike)

    def kill_some_time(self, case: Case, folder: pathlib.Path, *clock: Any) -> bool:
        """Kills at a random time after the process has taken the folder."""

        def strike(child: Child) -> None:
            self.until_held(child, folder)
            time.sleep(self.dice.uniform(0, self.seconds[case.name]))
            child.send(signal.SIGKILL)

        return self.blow(case, folder, "at a random time", strike, *clock)

    def until_held(self, child: Child, folder: pathlib.Path) -> None:
        while child.running:
            try:
                if json.loads((folder / LOCK).read_text())["pid"] == child.pid:
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.001)

    def kill(self, kills: int) -> None:
        """Kills until there were so many more, half of each case: at points, two of three, as far
        as there are such, and then by time."""
        kills += sum(self.kills.values())
        for number, case in enumerate(self.cases):
            wanted = sum(self.kills.values()) + (kills - sum(self.kills.values())) // (2 - number)
            # In the order in which a run comes to them, several times over: the next one is
            # then mostly still ahead of a run that goes on.
            points = self.points[case.name]
            asked = min(len(points), (wanted - sum(self.kills.values())) * 2 // 3)
            chosen = sorted(self.dice.sample(range(len(points)), asked))
            passes = 1 + asked // 15
            points = [points[i] for n in range(passes) for i in chosen[n::passes]]
            folder, blows = self.folder(case), 0
            while sum(self.kills.values()) < wanted:
                blows += 1
                if points:
                    point = points[0]
                    # On a folder where nothing is left to do the point may not come any more.
                    fresh = not folder.exists()
                    nth = 1 if not fresh else self.dice.choice((1, 1, 2))
                    killed = self.kill_at(case, folder, point, nth)
                    if killed or fresh and nth == 1:
                        points.pop(0)
                elif blows % 2:
                    killed = self.kill_while_saving(case, folder)
                else:
                    killed = self.kill_some_time(case, folder)
                if not killed:
                    folder = self.folder(case)
            self.finish(case, folder)


def _being_saved(folder: pathlib.Path) -> set[str]:
    """The checkpoints, and parts of such, that have a temporary name just now."""
    return {
        os.path.join(place, name)
        for place, names, _ in os.walk(folder)  # does not mind what goes under its eyes
        for name in names
        if ".orbax-checkpoint-tmp" in name
    }
