"""What nobody foresaw, in every command: one line, exit code 1, and a file for who is to mend it.

The commands run as `__main__` of a process of their own, forked from one that has imported JAX.
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = sorted(
    file.stem
    for file in (ROOT / "experiments").glob("*.py")
    if '__name__ == "__main__"' in file.read_text()
)
WORDS = {"benchmark": ["population"], "prepare": ["reviews"]}  # what has to be said first


def blow(module, error):
    """Raises at the first call into a command's own file after it has come to the door."""
    file, at_the_door = str(ROOT / "experiments" / f"{module}.py"), []

    def hear(frame, event, _):
        if event != "call":
            return
        if frame.f_code.co_filename.endswith("experiments/door.py"):
            at_the_door.append(frame.f_code.co_name.startswith("enter"))
        elif frame.f_code.co_filename == file and any(at_the_door):
            sys.setprofile(None)
            raise error

    sys.setprofile(hear)


def forked(act):
    """Exit code, stdout and stderr of `act` in a fork of this process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            code = 99
            with contextlib.suppress(BaseException):
                for number, file in enumerate((out, err), 1):
                    os.dup2(file.fileno(), number)
                sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
                code = act()
                sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return code, *said


def command(name, *arguments, before=lambda: None):
    """A command in a fork, as `python -m` runs it."""
    import door_server

    def act():
        before()
        return door_server.run(f"experiments.{name}", [*WORDS.get(name, []), *arguments])

    return forked(act)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(ROOT / "tests")
    # Their default config files lie beside them.
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_enters_by_the_door(name):
    """By one call at the end of its file, and nothing else there."""
    last = (ROOT / "experiments" / f"{name}.py").read_text().split('if __name__ == "__main__":')[1]
    assert re.fullmatch(r"\s+door\.enter(_one)?\(.*\)\s+", last)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_nobody_foresaw_is_one_line_and_a_file_in_every_command(name, here):
    """The file holds command, versions and the whole traceback."""
    code, out, err = command(name, before=lambda: blow(name, KeyError("a lost key\nand more")))
    assert code == 1
    assert err.count("\n") == 1 and out == "" and "Traceback" not in err
    said, file = re.fullmatch(r"error: (.*); details in (.*)\n", err).groups()
    assert said == (
        "this looks like a defect of qkv_jax or of a library it uses: "
        "KeyError: 'a lost key\\nand more'"
    )
    text = (here / file).read_text()
    assert text.startswith("command: ") and name in text.splitlines()[0]
    assert "jax 0." in text and "Traceback (most recent call last)" in text
    assert "in app.run" in text or "app.run(" in text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 8 TiB"), "out of memory: Unable to allocate 8 TiB; what "
                                                  "was finished is intact"),
        (MemoryError(), "out of memory: no more can be had; what was finished is intact"),
        (OSError(28, "No space left on device", "runs/a"), "runs/a: No space left on device; what "
                                                           "was finished is intact"),
        (OSError("no number"), "no number; what was finished is intact"),
    ],
)  # fmt: skip
def test_memory_and_disk_have_lines_of_their_own(error, line, here):
    code, _, err = command("explain", before=lambda: blow("explain", error))
    assert (code, err) == (2, f"error: {line}\n")
    assert [path.name for path in here.iterdir()] == ["configs"]


def test_a_device_without_memory_has_a_line_of_its_own(here):
    import jax

    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore")
    code, _, err = command("explain", before=lambda: blow("explain", error))
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("error: out of memory on the device: RESOURCE_EXHAUSTED: Out of memory")


def test_the_details_lie_in_the_folder_of_a_study_and_nowhere_that_would_be_refused(here):
    """A folder with a study or run in it has room for them; an empty one would then be another's
    folder the next time."""
    from experiments import defects

    for record, at in (("study.json", "work"), ("config.json", "work"), ("thesis.txt", "")):
        folder = here / record.replace(".", "_")
        folder.mkdir()
        (folder / record).write_text("{}")
        before = set(folder.iterdir())
        defects.keep_in(folder)
        line = defects.describe(ValueError(), ["x"])
        assert line.startswith(
            "this looks like a defect of qkv_jax or of a library it uses: ValueError; details in "
        )
        assert len(set(folder.iterdir()) - before) == (at == "work")
    assert len(list(here.glob("defect-*.txt"))) == 1
