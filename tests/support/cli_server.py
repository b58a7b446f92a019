"""Runs commands as `python -m` does, one after the other, for the price of importing JAX once.

Reads a line of JSON, [module, arguments...], from stdin; forks, before any JAX backend has started,
and runs the module as `__main__`; answers [exit code, stdout, stderr]. A first word that begins
with "!" is Python to be run before that. For test_cli.py and its like; faults.py forks likewise.
"""

import io
import json
import os
import runpy
import sys
import tempfile
import traceback

# What the commands need, imported before the forks.
import experiments.cli.entry
import qkv_jax.explain.page
import qkv_jax.explain.terminal
import qkv_jax.study.report.page
import qkv_jax.study.report.progress
import qkv_jax.training.loop  # noqa: F401


def run(module: str, arguments: list[str]) -> int:
    """The exit code of `python -m module arguments...`, as the interpreter finds it."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return exit.code or 0
        print(exit.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def blow(error: BaseException) -> None:
    """Has the error raised at the first call into a command's own file once it is running."""
    main = []

    def on_progress(frame, event, _):
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and file == experiments.cli.entry.__file__ and name.startswith("enter"):
            main.append(sys.argv[0])
        elif event == "call" and file in main:
            sys.setprofile(None)
            raise error

    sys.setprofile(on_progress)


def speak(encoding: str) -> None:
    """stdout and stderr as under PYTHONIOENCODING."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = open(number, "wb", closefd=False)  # noqa: SIM115
        setattr(sys, name, io.TextIOWrapper(raw, encoding))


def serve() -> None:
    """Answers lines until stdin ends."""
    for line in sys.stdin:
        before, module, *arguments = ["", *json.loads(line)]
        if module.startswith("!"):
            before, module, *arguments = [module[1:], *arguments]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                exec(before, globals())
                code = run(module, arguments)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode(errors="surrogateescape"))
        print(json.dumps([code, *texts]), flush=True)


if __name__ == "__main__":
    serve()
