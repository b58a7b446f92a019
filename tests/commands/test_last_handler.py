"""What nobody foresaw, who stops reading, and what a terminal cannot show, in every command.

The commands run as `__main__` in forks of one process that has imported JAX (cli_server.py).
"""

import json
import os
import pathlib
import re
import signal
import time

import pytest

import experiments.cli.outlets  # noqa: F401  (the error handler of codecs)
from experiments.cli import defects
from experiments.cli.paths import PathParser
from tests.support import commands

ROOT = pathlib.Path(__file__).parents[2]
COMMANDS = sorted(commands.FILES)
WORDS = {"benchmark": ["population"], "prepare": ["reviews"]}  # what has to be said first
STUDY = {
    "name": "tiny", "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 20, "report_every": 10, "batch_size": 8},
    "arms": {"separate": {"model": {"tie": "separate"}}},
    "tasks": {"one": {"kind": "reverse", "options": {"length": 6, "validation_examples": 8,
                                                     "test_examples": 8}}},
    "study": {"protocol": "fixed", "learning_rates": (1e-3, 1e-2), "tune_seeds": 1,
              "eval_seeds": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    (folder / "configs").symlink_to(ROOT / "configs")  # the default ones
    text = f"from qkv_jax.config_files import tree\ndef get_config():\n    return tree({STUDY})\n"
    (folder / "study.py").write_text(text)
    run = {"model": STUDY["model"], "train": STUDY["train"] | {"steps": 30}}
    run["task"] = STUDY["tasks"]["one"]
    run["seed"] = 0
    text = f"from qkv_jax.config_files import tree\ndef get_config():\n    return tree({run})\n"
    (folder / "run.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(name, *arguments, before="")` gives exit code, stdout and stderr."""
    with commands.server(place) as run:
        yield lambda name, *arguments, before="": run(
            f"!{before}", f"experiments.{name}", *WORDS.get(name, []), *arguments
        )


# --- what nobody foresaw


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_enters_by_the_door(name):
    """By one call at the end of its file, and nothing else there."""
    last = commands.FILES[name].read_text().split('if __name__ == "__main__":')[1]
    assert re.fullmatch(r"\s+entry\.enter(_one)?\(.*\)\s+", last)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_nobody_foresaw_is_one_line_and_a_file_in_every_command(name, command, place):
    """The file holds command, versions and the whole traceback."""
    code, out, err = command(name, before="blow(KeyError('lost'))")
    assert (code, out) == (1, "")
    message, file = re.fullmatch(r"error: (.*); details in (\S*)\n", err).groups()
    assert message == (
        "this looks like a defect of qkv_jax or of a library it uses: KeyError: 'lost'"
    )
    text = (place / file).read_text()
    assert text.startswith("command: ") and str(commands.FILES[name]) in text.splitlines()[0]
    assert "jax 0." in text and "Traceback (most recent call last)" in text
    assert text.endswith("KeyError: 'lost'\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("MemoryError('Unable to allocate 8 TiB')", "out of memory: Unable to allocate 8 TiB; what "
                                                    "was finished is intact"),
        ("MemoryError()", "out of memory: no more can be had; what was finished is intact"),
        ("OSError(28, 'No space left on device', 'runs/a')", "runs/a: No space left on device; "
                                                             "what was finished is intact"),
        ("OSError('no number')", "no number; what was finished is intact"),
        ("__import__('jax').errors.JaxRuntimeError('RESOURCE_EXHAUSTED: allocating 8 TiB\\nat x')",
         "out of memory on the device: RESOURCE_EXHAUSTED: allocating 8 TiB at x; a smaller model "
         "or batch, train.accumulate or model.remat need less; what was finished is intact"),
        ("KeyboardInterrupt()", None),
    ],
)  # fmt: skip
def test_memory_disk_and_an_interrupt_have_lines_of_their_own(error, line, command):
    code, _, err = command("explain", before=f"blow({error})")
    assert (code, err) == ((2, f"error: {line}\n") if line else (130, "interrupted\n"))


def test_details_lie_in_a_folder_that_has_a_study_or_run_and_never_block_another(
    tmp_path, monkeypatch
):
    """A file in a folder that is to become a study's would have it refused the next time."""
    monkeypatch.chdir(tmp_path)
    for record in ("study.json", "config.json", "thesis.txt", None):
        folder = tmp_path / f"holds {record}"
        if record:
            folder.mkdir()
            (folder / record).write_text("{}")
        defects.keep_in(folder)
        line = defects.describe(ValueError(), ["x"])
        assert line.startswith(
            "this looks like a defect of qkv_jax or of a library it uses: ValueError; details in "
        )
        is_ours = record in ("study.json", "config.json")
        assert len(list(folder.glob("defect-*.txt"))) == is_ours
        assert len(list(tmp_path.glob("defect-*.txt"))) == (not is_ours)
        for file in tmp_path.glob("defect-*.txt"):
            file.unlink()


# --- terminals and logs of any encoding


def test_what_an_encoding_lacks_is_written_as_the_nearest_that_it_has():
    """All signs that the sources print have one."""
    sources = [*ROOT.glob("qkv_jax/**/*.py"), *ROOT.glob("experiments/*.py")]
    signs = sorted({sign for file in sources for sign in file.read_text() if ord(sign) > 127})
    assert "≥" in signs and "ⱼ" in signs
    for sign in signs:
        assert "?" not in sign.encode("ascii", "legible").decode(), sign
    assert "Δ ≥ −0.5 … x² ╭".encode("ascii", "legible") == b"? >= -0.5 ... x2 ?"
    assert "²…".encode("latin-1", "legible") == b"\xb2..."
    assert os.fsdecode(b"a\xff").encode("utf-8", "legible") == b"a\\xff"


CHEAP = ["--protocol=fixed", "--outcome=solve"]


@pytest.mark.parametrize(
    ("name", "arguments", "encoding"),
    [
        ("ablate", ["--config=study.py", "--plan"], "latin-1"),
        ("explain", ["--text=naïve ≥ 1", "--tie=Q=K|copies"], "ascii"),
        ("calibrate", ["--studies=1", "--workers=1", *CHEAP], "ascii"),
    ],
)
def test_commands_speak_any_encoding(name, arguments, encoding, command):
    code, out, err = command(name, *arguments, before=f"speak({encoding!r})")
    assert (code, err) == (0, "")
    assert len(out) > 200


# --- readers that leave


TO_NOBODY = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)"


def test_long_work_goes_on_when_nobody_reads_it_and_a_hang_up_saves_it(command, place):
    """The pipe is closed before the first line: one line says so on stderr. SIGHUP is as SIGTERM:
    exit code 75 and one line; the step that had just ended is saved."""
    before = (
        f"{TO_NOBODY}\nimport signal, qkv_jax.training.loop as l\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests themselves may run under nohup
        "add = l._Curve.add\n"
        "l._Curve.add = lambda *row: [add(*row), row[1]['step'] == 20 and "
        "os.kill(os.getpid(), signal.SIGHUP)]"
    )
    assert command("train", "--config=run.py", "--workdir=hung", before=before) == [
        75, "", "warning: stdout: Broken pipe; the work goes on, and prints nothing more\n"
        "interrupted by SIGHUP; the same command goes on from here\n",
    ]  # fmt: skip
    steps = [int(path.name) for path in (place / "hung" / "checkpoints").iterdir()]
    assert sorted(steps) == [0, 20]


def test_what_prints_alone_ends_quietly_with_its_reader_and_says_that_a_disk_is_full(command):
    """Its output is all that it has to give."""
    to = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    assert command("explain", before=to) == [
        2, "", "error: stdout: No space left on device; what was finished is intact\n"
    ]  # fmt: skip
    assert command("explain", before=TO_NOBODY) == [0, "", ""]


@pytest.mark.parametrize(
    ("name", "number"),
    [("ablate", signal.SIGTERM), ("ablate", signal.SIGINT), ("train", signal.SIGHUP)],
)
def test_a_command_that_has_not_begun_ends_at_once(number, name, command):
    """Loading, checking and compiling before anything is trained hold nothing that could be lost:
    nobody waits for them."""
    config = {"ablate": "study.py", "train": "run.py"}[name]
    before = (
        "import os, time, signal, qkv_jax.study.plan as p, qkv_jax.training.loop as l\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"def slow(*_): os.kill(os.getpid(), {int(number)}); time.sleep(60)\n"
        "p.first_batch = l.first_batch = slow"
    )
    began = time.monotonic()
    message = command(name, f"--config={config}", f"--workdir=early_{name}", before=before)
    assert message == [
        75, "", f"interrupted by {number.name}; the same command goes on from here\n"
    ]  # fmt: skip
    assert time.monotonic() - began < 50


def test_a_hang_up_that_is_to_be_ignored_is(command):
    """As under nohup."""
    before = (
        "import os, signal, qkv_jax.study.plan as p; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "def blow_up(*_): os.kill(os.getpid(), signal.SIGHUP); raise KeyError('reached')\n"
        "p.first_batch = blow_up"
    )
    code, _, err = command("ablate", "--config=study.py", "--workdir=nohup", before=before)
    assert code == 1 and "KeyError: 'reached'" in err


# --- paths

NO_PATHS = {  # flags whose texts name no file
    "task", "arm", "text", "tie", "positions", "steps", "part", "method", "layers", "compile_only",
    "coordinator", "slurm_partition", "slurm_account", "slurm_setup", "slurm_option", "config",
    "prompt", "source", "stop", "tasks", "arms",
}  # fmt: skip
LIST_FLAGS = """
import experiments.cli.entry as entry
def list_flags(*_):
    found = {flag.name: flag.parser for flag in entry._own_flags()}
    print(json.dumps({name: parser.flag_type() for name, parser in found.items()}))
entry.enter = entry.enter_one = list_flags
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_that_names_a_file_is_read_as_a_path_of_this_machine(name, command, place):
    """What cannot be one is refused by its own name before anything is made."""
    _, out, _ = command(name, before=LIST_FLAGS)
    kinds = json.loads(out)
    texts = {flag for flag, kind in kinds.items() if "string" in kind and "enum" not in kind}
    assert texts <= NO_PATHS
    paths = [flag for flag, kind in kinds.items() if kind == "path"]
    assert paths or name == "calibrate"
    before = sorted(place.rglob("*"))
    for flag in paths:
        for given, allowed in [
            ("gs://bucket/run", "must be a path of this machine, not gs:/"),
            ("file:///tmp/x", "must be a path of this machine, not file:/"),
            ("", "must name a file or folder"),
            ("~nobody-of-that-name/x", "there is no such user"),
        ]:
            code, out, err = command(name, f"--{flag}={given}")
            assert (code, out) == (2, "")
            assert err.startswith(f"error: --{flag}: given {given!r}; {allowed}")
            assert err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_a_tilde_is_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert PathParser().parse("~/run") == "/home/me/run"
    assert PathParser().parse("a/~/run") == "a/~/run"
    assert PathParser().parse("a:b") == "a:b"


@pytest.mark.parametrize(
    ("name", "flag", "arguments"),
    [
        ("ablate", "workdir", ["--config=study.py"]),
        ("train", "workdir", []),
        ("explain", "html", []),
        ("prepare", "out", ["--sdist=study.py"]),
        ("export", "out", ["--run=lost"]),
        ("analyze", "workdir", ["--run=lost"]),
        ("surgery", "workdir", ["--run=lost"]),
    ],
)
def test_what_somebody_else_wrote_is_not_written_over(name, flag, arguments, command, place):
    """A file where one is to be written, a folder with other files, a file in place of a folder."""
    thesis = place / f"thesis_{name}_{flag}"
    thesis.write_text("mine\n")
    for path in (thesis, thesis / "below"):
        code, _, err = command(name, *arguments, f"--{flag}={path}")
        assert (code, err.count("\n")) == (2, 1), err
        assert thesis.read_text() == "mine\n"
    if flag == "workdir":
        folder = place / f"other_{name}"
        folder.mkdir()
        thesis.rename(folder / "thesis")
        code, _, err = command(name, *arguments, f"--{flag}={folder}")
        assert code == 2 and "files" in err
        assert [file.name for file in folder.iterdir()] == ["thesis"]


def test_a_page_of_its_own_is_written_anew(command, place):
    """And so is one that was left unfinished."""
    own = place / "own.html"
    head = (ROOT / "qkv_jax/explain/explain.html.jinja").read_text()[:1000]
    own.write_text(head)
    code, _, err = command("explain", "--html=own.html")
    assert (code, err) == (0, "")
    assert own.read_text().startswith(head[:300]) and len(own.read_text()) > 10_000


# --- None


def test_none_can_be_given_where_a_field_is_optional(command):
    """As a word of its own as well; the last one counts; where the file has a text it is one."""
    run = ["train", "--config=configs/train.py", "--workdir=none"]
    kv = "--config.model.kv_heads"
    before = (
        "import qkv_jax.training.checkpoint as c\n"
        "def failing(values): raise KeyError(str(values['model']['kv_heads']))\n"
        "c.trainer_of = failing"
    )
    for given, found in [
        ([f"{kv}=None"], "None"), ([kv, "None"], "None"), ([f"{kv}=2"], "2"),
        ([f"{kv}=2", f"{kv}=None"], "None"), ([f"{kv}=None", f"{kv}=2"], "2"),
        ([f"{kv}=None", "--config.mesh.data=None", "--config.model.qk_norm"], "None"),
    ]:  # fmt: skip
        code, _, err = command(*run, *given, before=before)
        assert code == 1 and f"KeyError: {found!r}" in err, err
    for given, line in [
        ("model.width=None", "model.width: given 'None'; must be a whole number"),
        ("model.mlp=None",
         "model.mlp: given 'None'; did you mean 'none'? allowed: gelu, gelu_exact, relu, swiglu, "
         "none"),
        ("seed=None", "seed: given 'None'; must be a whole number"),
    ]:  # fmt: skip
        assert command(*run, f"--config.{given}") == [2, "", f"error: {line}\n"]
