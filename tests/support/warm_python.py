"""A `python` for many short commands: they share one import of JAX, see `cli_server.py`.

`python warm_python.py SOCKET CONFIGS` serves; `warm_python` starts that and writes an executable,
used like `python -m MODULE …`, `python FILE …` or `python -c …`. A command gets the folder, the
environment and the open files of whoever calls it, in a fork of its own.
"""

import contextlib
import json
import os
import pathlib
import runpy
import socket
import subprocess
import sys
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]  # also through a link to tests/
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
sys.exit(int(server.makefile().read() or 1))
"""


@contextlib.contextmanager
def warm_python(executable: pathlib.Path, configs: pathlib.Path):
    """Writes the executable, which works until the end; `--config=NAME` is NAME.py of `configs`."""
    address = str(executable.with_suffix(".socket"))
    executable.write_text(CLIENT.format(python=sys.executable, address=address))
    executable.chmod(0o755)
    command = [sys.executable, __file__, address, str(configs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        server.stdout.readline()  # it listens
        try:
            yield
        finally:
            server.terminate()


def _serve(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            caller, _ = server.accept()
            with caller:
                size, files, *_ = socket.recv_fds(caller, 4, 3)
                request = caller.makefile("rb").read(int.from_bytes(size, "big"))
                child = os.fork()
                if not child:
                    _become(files, *json.loads(request))
                for file in files:
                    os.close(file)
                _, status, used = os.wait4(child, 0)
                code = os.waitstatus_to_exitcode(status)
                if "WARM_LOG" in os.environ:
                    with open(os.environ["WARM_LOG"], "a") as log:
                        print(round(used.ru_utime + used.ru_stime, 1), request[:150], file=log)
                caller.sendall(str(code).encode())


def _become(files: list[int], arguments: list[str], folder: str, environment: dict) -> None:
    """Runs one command in this process, to its end."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, folder)
    what, *arguments = arguments
    code = 1
    try:
        if what == "-m":
            code = cli_server.run(arguments[0], arguments[1:])
        else:
            sys.argv = [what, *arguments]
            if what == "-c":
                exec(compile(arguments[0], "-c", "exec"), {"__name__": "__main__"})
            else:
                runpy.run_path(what, run_name="__main__")
            code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import configs  # noqa: F401
    import qkv_jax.surgery.damage
    import qkv_jax.survey.page  # noqa: F401
    from experiments.cli import place
    from tests.support import cli_server

    place.CONFIGS = pathlib.Path(sys.argv[2])
    _serve(sys.argv[1])
