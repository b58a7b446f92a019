"""Processes that are asked for one block at a time and sleep in between."""

import contextlib
import json
import os
import pathlib
import subprocess
import threading
from collections.abc import Iterator, Mapping
from typing import Any

_PATIENCE = 5  # seconds that a process has to end once nothing more is asked of it


class WorkerError(Exception):
    """What a worker says it cannot do."""


class Worker:
    """A process that answers each line of JSON with one."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def tell(self, question: Any) -> None:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError("its process has ended") from None

    def answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError("its process has ended")
        answer = json.loads(line)
        if isinstance(answer, Mapping) and "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def ask(self, question: Any) -> Any:
        self.tell(question)
        return self.answer()

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Ends the process if what is asked of it meanwhile takes longer, which is a WorkerError
        then and whenever it is asked again."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            yield
        except WorkerError as error:
            late = f"took longer than the {seconds:.0f} s that it had"
            raise WorkerError(late if timer.finished.is_set() else error) from None
        finally:
            timer.cancel()


@contextlib.contextmanager
def started(
    python: str, script: str, argument: object, environment: Mapping[str, str] | None = None
) -> Iterator[Worker]:
    """A worker that runs a script beside this file; it ends with the block."""
    file = pathlib.Path(__file__).parent / script
    with subprocess.Popen(
        # Isolated: the modules beside the script are none of its own.
        [python, "-I", str(file), str(argument)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            yield Worker(process)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
