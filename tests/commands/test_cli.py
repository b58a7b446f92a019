"""The command line: whatever a user gets wrong is one line that says what, and exit code 2.

The commands run as `__main__` of their own process (tests/support/cli_server.py), in an empty
folder: a refusal must leave it, and every folder it was pointed at, as they were.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from qkv_jax.config import as_dict
from qkv_jax.config_files import find, put, tree
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.config import StudyFile
from qkv_jax.study.plan import Study
from qkv_jax.tasks import REGISTRY
from qkv_jax.tie import Tie
from tests.support import commands

ROOT = pathlib.Path(__file__).parents[2]
KINDS = ", ".join(sorted(REGISTRY))
TEMPLATE = "from qkv_jax.config_files import tree\ndef get_config():\n    return tree({})\n"

STUDY = {
    "name": "tiny",
    "model": {"tie": "separate", "layers": 1, "width": 8, "heads": 2, "kv_heads": 2,
              "positions": "learned", "frozen": (), "dropout": 0.0, "scale": "sqrt"},
    "train": {"steps": 20, "report_every": 10, "batch_size": 8, "decay": "linear"},
    "arms": {"separate": {"model": {"tie": "separate"}}, "shared": {"model": {"tie": "K=V"}}},
    "tasks": {"one": {"kind": "reverse", "options": {"length": 6, "margin": 0.01}}},
    "study": {"baseline": "separate", "learning_rates": (1e-3, 1e-2), "tune_seeds": 1,
              "eval_seeds": 5, "match": "none"},
}  # fmt: skip
RUN = {
    "task": {"kind": "masked_bytes", "options": {"length": 16, "files": ("text",)}},
    "model": STUDY["model"],
    "train": STUDY["train"] | {"learning_rate": 0.01},
    "seed": 0,
    "checkpoint_steps": (),
}
ABLATE_FLAGS = (
    "--workdir, --plan, --accept_changes, --config, --max_hours, --checkpoint_minutes, --launcher, "
    "--status, --part, "
    "--slurm_partition, --slurm_account, --slurm_gpus, --slurm_cpus, --slurm_hours, "
    "--slurm_parallel, --slurm_retries, --slurm_setup, --slurm_option, --slurm_poll"
)
ABLATE, TRAIN, BENCHMARK = (f"experiments.{name}" for name in ("ablate", "train", "benchmark"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder in which the commands run; configs and texts lie beside it, in `files`."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "here").mkdir()
    files = folder / "files"
    files.mkdir()
    template = TEMPLATE
    (files / "study.py").write_text(template.format(STUDY))
    (files / "run.py").write_text(template.format(RUN))
    texts = {"good": bytes(range(256)) * 40, "empty": b"", "short": b"abc", "middling": b"ab" * 50}
    for name, content in texts.items():
        (files / name).write_bytes(content)
        options = {"length": 16, "files": (str(files / name),)}
        tasks = {
            "fine": STUDY["tasks"]["one"],
            "text": {"kind": "masked_bytes", "options": options},
        }
        (files / f"{name}_study.py").write_text(template.format({**STUDY, "tasks": tasks}))
    broken = {
        "syntax": "\ndef get_config(:\n",
        "raises": "def get_config():\n    return {}['lost']\n",
        "divides": "def get_config():\n    return 1 / 0\n",
        "imports": "import no_such_package\n",
        "empty": "",
        "mapping": "def get_config():\n    return {'name': 'x'}\n",
        "tie": "from qkv_jax.study.plan import tie_arms\ndef get_config():\n    tie_arms('K=Z')\n",
    }
    for name, content in broken.items():
        (files / f"broken_{name}.py").write_text(content)
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(module, *arguments)` gives exit code, stdout and stderr."""
    with commands.server(place / "here") as run:
        yield run


@pytest.fixture
def refused(command, place):
    """The one line that a command says; all else about a refusal is checked here."""

    def line(module, *arguments):
        before = contents(place)
        code, out, err = command(module, *arguments)
        assert code == 2, err
        assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert out == ""
        assert contents(place) == before
        return err.removeprefix("error: ").rstrip("\n")

    return line


def contents(folder):
    """Every file with its bytes and the moment it was last written; every folder."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def arguments_of(place, module, flags):
    config = {ABLATE: "study.py", TRAIN: "run.py"}[module]
    return [f"--config={place / 'files' / config}", "--workdir=results", *flags]


MODEL, TRAINING = (f"tasks.one, arm 'separate': {part}" for part in ("model", "train"))
SHARED = "tasks.one, arm 'shared': model.tie"
FIELDS = ", ".join(field.name for field in dataclasses.fields(ModelConfig))
TIES = ", ".join(repr(str(tie)) for tie in Tie.all())

OVERRIDES = {
    # Names that are not there.
    "modle.width=8": "modle: given '8'; unknown key; did you mean 'model'? allowed: "
                     "name, tasks, arms, model, train, study, claims",
    "model.widht=8": "model.widht: given '8'; unknown key; did you mean 'width'? allowed: "
                     f"{FIELDS}",
    "model.bias=1": f"model.bias: given '1'; unknown key; did you mean 'use_bias'? allowed: "
                    f"{FIELDS}",
    "name.first=x": "name.first: given 'x'; there are no fields",
    "arms.third.model.tie=K=V": "arms.third: given 'K=V'; unknown key; allowed: separate, shared",
    "study.baseline=sepaarte": "study.baseline: given 'sepaarte'; arms: separate, shared",
    # Values of another type.
    "model.width=abc": "model.width: given 'abc'; must be a whole number",
    "model.width=8.5": "model.width: given '8.5'; must be a whole number",
    "model.width=": "model.width: given ''; must be a whole number",
    "model.dropout=much": "model.dropout: given 'much'; must be a number",
    "study.learning_rates=abc": "study.learning_rates[0]: given 'abc'; must be a number",
    # Words that are not in the list.
    "study.match=parms": "study.match: given 'parms'; did you mean 'params'? allowed: none, "
                         "params, flops",
    "model.positions=rotory": "model.positions: given 'rotory'; did you mean 'rotary'? allowed: "
                              "none, sinusoidal, learned, rotary, relative, alibi",
    "train.decay=linaer": "train.decay: given 'linaer'; did you mean 'linear'? allowed: "
                          "linear, cosine, constant",
    "tasks.one.kind=revers": "tasks.one.kind: given 'revers'; did you mean 'reverse'? allowed: "
                             f"{KINDS}",
    # Sizes, steps, seeds and rates that cannot be.
    "model.width=0": f"{MODEL}.width: given 0; must be a whole number above 0",
    "model.layers=-1": f"{MODEL}.layers: given -1; must be a whole number above 0",
    "model.dropout=1": f"{MODEL}.dropout: given 1.0; must be at least 0.0 and below 1.0",
    "train.steps=0": f"{TRAINING}.steps: given 0; must be a whole number above 0",
    "train.steps=25": f"{TRAINING}.steps: given 25; must be a multiple of report_every = 10",
    "train.batch_size=-8": f"{TRAINING}.batch_size: given -8; must be a whole number above 0",
    "train.learning_rate=nan": "train.learning_rate: given nan; the study tunes it in every cell; "
                               "give learning_rates",
    "study.tune_seeds=0": "study.tune_seeds: given 0; must be a whole number above 0",
    "study.eval_seeds=-5": "study.eval_seeds: given -5; must be a whole number above 0",
    "study.eval_seeds=1000001": "study.eval_seeds: given 1000001; at most 1000000: tuning seeds "
                                "start there",
    "study.learning_rates=(1e-3,1e400)": "study.learning_rates: given inf; each must be a finite "
                                         "number above 0",
    "study.learning_rates=(0.0,1e-3)": "study.learning_rates: given 0.0; each must be a finite "
                                       "number above 0",
    "study.learning_rates=(2e-3,1e-3)": "study.learning_rates: given (0.002, 0.001); must ascend, "
                                        "each rate once",
    "study.learning_rates=()": "study.learning_rates: given (); must hold at least one rate",
    "tasks.one.options.length=1": "tasks.one.options.length: given 1; must be at least 2",
    "tasks.one.options.margin=-1": "tasks.one.options.margin: given -1.0; must be a finite number "
                                   "above 0",
    "name=": "name: given ''; must not be empty or hold a slash",
    "name=../x": "name: given '../x'; must not be empty or hold a slash",
    # Combinations.
    "model.heads=3": f"{MODEL}.width: given 8; must be divisible by heads = 3",
    "arms.shared.model.tie=K=Z": f"{SHARED}: given 'K=Z'; 'K=Z' is not a tie; write one of "
                                 f"{TIES}, or 'copies' for the last",
    "arms.shared.model.tie=Q==K": f"{SHARED}: given 'Q==K'; 'Q==K' is not a tie; write one of "
                                  f"{TIES}, or 'copies' for the last",
    "arms.shared.model.tie=K=V*2|separate": f"{SHARED}: given 'K=V*2|separate'; 'K=V*2|separate' "
                                            "names 3 layers, but the model has 1",
    "model.frozen=('value',)": f"{SHARED}: given 'K=V'; layer 0: frozen source 'value': tie K=V "
                               "has the sources: query, key",
    "model.frozen=('kye',)": f"{MODEL}.frozen: given 'kye'; allowed: query, key, value",
    "model.scale=-2": f"{MODEL}.scale: given -2.0; must be a finite number above 0",
    "model.scale=root": f"{MODEL}.scale: given 'root'; allowed: sqrt, learned_per_head",
}  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_config_that_cannot_be_is_refused(override, refused, place):
    """The field, what was given, what is allowed; nothing is written."""
    message = refused(ABLATE, *arguments_of(place, ABLATE, [f"--config.{override}"]))
    assert message == OVERRIDES[override]


def test_grouped_heads_refuse_ties_that_need_all_heads(refused, place):
    """Two overrides, each fine alone, are refused together with the reason."""
    flags = ["--config.model.kv_heads=1", "--config.arms.shared.model.tie=Q=K"]
    assert refused(ABLATE, *arguments_of(place, ABLATE, flags)) == (
        "tasks.one, arm 'shared': model.tie: given 'Q=K'; layer 0: tie Q=K asks for Q=K, which "
        "needs as many key/value heads as query heads, not 1 and 2"
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.tie=K=Z", f"given 'K=Z'; 'K=Z' is not a tie; write one of {TIES}, or 'copies' for "
                          "the last"),
        ("model.width=9", "given 9; must be divisible by heads = 2"),
        ("seed=-1", "given -1; must be a whole number, 0 or above, below 2**32"),
        ("seed=4294967296", "given 4294967296; must be a whole number, 0 or above, below 2**32"),
        ("checkpoint_steps=(5,)", "given 5; must be a multiple of report_every = 10, at most 20"),
        ("train.learning_rate=inf", "given inf; must be a finite number above 0"),
        ("task.kind=mask", f"given 'mask'; did you mean 'images'? allowed: {KINDS}"),
        ("task.options.length=0", "given 0; must be a whole number above 0"),
        ("task.options.files=('lost',)", "given 'lost'; cannot be read: No such file or "
                                         "directory"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(override, line, refused, place):
    """The same of `experiments.train`."""
    message = refused(TRAIN, *arguments_of(place, TRAIN, [f"--config.{override}"]))
    assert message == f"{override.partition('=')[0]}: {line}"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--frobnicate"], "command line: given '--frobnicate'; no such flag; allowed: "
                           f"{ABLATE_FLAGS}"),
        (["--paln"], "command line: given '--paln'; no such flag; did you mean '--plan'? allowed: "
                     f"{ABLATE_FLAGS}"),
        (["--slurm_gpus=2"], "--slurm_gpus: given 2; needs --launcher=slurm"),
        (["--launcher=ssh"], "--launcher: given 'ssh'; value should be one of <local|slurm>"),
        (["--launcher=slurm", "--max_hours=1"], "--max_hours: given 1.0; not beside "
                                                "--launcher=slurm: --slurm_hours limits the jobs"),
        (["--launcher=slurm", "--slurm_hours=0"], "--slurm_hours: given '0'; allowed: number >= "
                                                  "0.016666666666666666"),
        (["--status", "--workdir=lost"], "--workdir: given 'lost'; no study there: No such file or "
                                         "directory"),
        (["--part=one/separate/tune/0.1", "--workdir=lost"],
         "--workdir: given 'lost'; no study there: No such file or directory"),
        (["stray"], "command line: given 'stray'; flags look like --name=value"),
        (["--plan", "a", "b"], "command line: given 'a b'; flags look like --name=value"),
        (["--plan=maybe"], "--plan: given 'maybe'; must be true or false"),
        (["--workdir"], "Missing value for flag --workdir"),
        (["--config"], "--config: given ''; no such file"),
        (["study.py"], "command line: given 'study.py'; did you mean --config=study.py? flags look "
                       "like --name=value"),
        (["--config=lost.py"], "--config: given 'lost.py'; no such file"),
        (["--config=."], "--config: given '.'; no such file"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_are_refused(flags, line, refused, place):
    """Unknown ones, stray words, values of another type, config files that are not there."""
    assert refused(ABLATE, *arguments_of(place, ABLATE, flags)) == line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("syntax", "line 2: SyntaxError: invalid syntax"),
        ("raises", "line 2: KeyError: 'lost'"),
        ("divides", "line 2: ZeroDivisionError: division by zero"),
        ("imports", "line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("empty", "must define get_config() that returns a ConfigDict"),
        ("mapping", "must define get_config() that returns a ConfigDict"),
        ("tie", f"line 3: TieError: 'K=Z' is not a tie; write one of {TIES}, or 'copies' for the "
                "last"),
    ],
)  # fmt: skip
def test_a_broken_config_file_is_named_with_the_line(name, message, refused, place):
    """Whatever the file raises, and without its traceback."""
    file = place / "files" / f"broken_{name}.py"
    assert refused(ABLATE, f"--config={file}") == f"--config: given {str(file)!r}; {message}"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "benchmark: given ''; allowed: population"),
        (["populaton"], "benchmark: given 'populaton'; allowed: population"),
        (["population", "--steps=5"], "--steps: given '5'; allowed: integer >= 10"),
        (["population", "--steps=x"], "--steps: given 'x'; allowed: integer >= 10"),
        (["population", "more"], "command line: given 'more'; flags look like --name=value"),
    ],
)
def test_a_benchmark_that_is_not_there_is_refused(flags, line, refused):
    """With the names of those that are."""
    assert refused(BENCHMARK, *flags) == line


def test_the_calibration_refuses_in_one_line_too(refused):
    """Its flags are read in the same way."""
    message = refused("experiments.calibrate", "--frobnicate")
    assert message == (
        "command line: given '--frobnicate'; no such flag; allowed: --studies, --seed, --workers, "
        "--outcome"
    )
    assert refused("experiments.calibrate", "--studies=0") == (
        "--studies: given '0'; allowed: a positive integer"
    )


# --- data


def test_texts_that_cannot_be_used_are_refused_before_anything_starts(refused, place):
    """Missing, empty and too short ones, named with their task, even where another task comes
    first: no study stops half way for them."""
    files = place / "files"
    for name, message in [
        ("empty", "is empty"),
        ("short", "holds 3 bytes; a sequence needs 16"),
        ("middling", "too short: the validation split (5 % of the text) must hold at least one "
                     "sequence of 16 bytes"),
    ]:  # fmt: skip
        line = refused(ABLATE, f"--config={files / name}_study.py", "--workdir=results")
        assert line == f"tasks.text.options.files: given {str(files / name)!r}; {message}"
    lost = f"--config.tasks.text.options.files=('{files / 'lost'}',)"
    line = refused(ABLATE, f"--config={files / 'good'}_study.py", "--workdir=results", lost)
    given = f"tasks.text.options.files: given {str(files / 'lost')!r}"
    assert line == f"{given}; cannot be read: No such file or directory"


def test_a_batch_larger_than_the_data_is_refused_before_anything_starts(refused, place):
    """MNIST-5k has 3500 images to train on."""
    config = place / "files" / "images.py"
    tasks = {"images": {"kind": "mnist5k"}}
    config.write_text(TEMPLATE.format({**STUDY, "tasks": tasks}))
    flags = [f"--config={config}", "--workdir=results", "--config.train.batch_size=3501"]
    assert refused(ABLATE, *flags) == (
        "tasks.images, arm 'separate': train.batch_size: given 3501; must be at most the 3500 "
        "examples"
    )


# --- names with signs in them

TIED = {"separate": {"model": {"tie": "separate"}}, "Q=K": {"model": {"tie": "Q=K"}},
        "Q=K=V, no. 1": {"model": {"tie": "Q=K=V", "heads": 2}}}  # fmt: skip


@pytest.fixture
def tied_study(place):
    """A study whose arms are named as ties are written."""
    file = place / "files" / "tied.py"
    study = {**STUDY, "arms": TIED}
    file.write_text(TEMPLATE.format(study))
    return f"--config={file}"


def test_arms_named_as_ties_are_written_can_be_overridden(command, tied_study):
    """The tie of both becomes that of `separate`, so that four arms are one program; a value
    may follow as a word of its own, and its number of heads is read as a number."""
    flags = ["--config.arms.Q=K.model.tie=separate", "--config.arms.Q=K=V, no. 1.model.heads=2",
             "--config.arms.Q=K=V, no. 1.model.tie", "separate"]  # fmt: skip
    for overrides, programs in ([], "3"), (flags, "1"):
        code, out, err = command(ABLATE, tied_study, "--plan", *overrides)
        assert (code, err) == (0, "")
        (row,) = (line for line in out.splitlines() if line.split()[1:2] == ["one"])
        assert [cell for cell in row.split() if cell.isdigit()][-1] == programs


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("arms.Q=K.model.tie=K=Z", "tasks.one, arm 'Q=K': model.tie: given 'K=Z'; 'K=Z' is not a "
                                   f"tie; write one of {TIES}, or 'copies' for the last"),
        ("arms.Q=K=V, no. 1.model.heads=x", "arms.Q=K=V, no. 1.model.heads: given 'x'; must be a "
                                            "whole number"),
        ("arms.Q=K=V, no. 1.model.wdth=8", "arms.Q=K=V, no. 1.model.wdth: given '8'; unknown key; "
                                           f"did you mean 'width'? allowed: {FIELDS}"),
        ("arms.Q=V.model.tie=K=V", "arms.Q=V: given 'K=V'; unknown key; did you mean 'Q=K'? "
                                   "allowed: separate, Q=K, Q=K=V, no. 1"),
    ],
)  # fmt: skip
def test_names_with_signs_are_said_whole_in_refusals(override, line, refused, tied_study):
    assert refused(ABLATE, tied_study, f"--config.{override}") == line


# No attributes of a ConfigDict: ml_collections takes those for attributes.
NAMES = st.text(st.characters(exclude_categories=["C"]), min_size=1)
NAMES = NAMES.filter(lambda name: not hasattr(ConfigDict(), name))


@given(outer=NAMES, inner=NAMES)
def test_every_name_is_found_whatever_signs_it_has(outer, inner):
    """The path leads to the field, and the value is left as it was."""
    published = {outer: {inner: 1, f"{inner}=": 2}}
    config = tree({"tasks": {outer: {"kind": "reverse", "published": published}}})
    place = find(config, StudyFile, f"tasks.{outer}.published.{outer}.{inner}=K=V")
    path = ("tasks", outer, "published", outer, inner)
    assert (place.path, place.kind, place.value) == (path, int, "K=V")
    put(config, StudyFile, place, 3)
    published[outer][inner] = 3
    assert config.to_dict()["tasks"][outer]["published"] == published


# --- folders


def start_study(folder, **changes):
    """A folder as `Workdir.open` leaves it for STUDY with some fields of study.json changed."""
    folder.mkdir(parents=True, exist_ok=True)
    record = dataclasses.replace(Study(STUDY).describe(), looks=(5,), **changes)
    (folder / "study.json").write_text(json.dumps(record.as_dict()))


@pytest.fixture
def wave():
    """The wave of the commands' own machine."""
    devices = len(os.sched_getaffinity(0))
    return {"devices": devices, "packing": 1, "size": devices}


def test_folders_with_other_things_in_them_are_refused(refused, place, wave):
    """Other files, another study, another machine's study, a damaged one, one with more seeds:
    each is named and stays as it is."""
    config = f"--config={place / 'files' / 'study.py'}"
    folders = place / "folders"
    other_files, study, damaged = (folders / name for name in ("files", "study", "damaged"))
    other_files.mkdir(parents=True)
    (other_files / "thesis.txt").write_text("mine")
    start_study(study, wave=wave)
    damaged.mkdir()
    (damaged / "study.json").write_text('{"format": 1, ')
    thesis = other_files / "thesis.txt"
    for folder, flag, message in [
        (other_files, "--noplan", "holds other files; name a new folder"),
        (thesis, "--noplan", "holds other files; name a new folder"),
        (study, "--config.train.steps=40", "holds another study (its train.steps is 20, not 40); "
                                           "name another folder"),
    ]:  # fmt: skip
        line = refused(ABLATE, config, f"--workdir={folder}", flag)
        assert line == f"--workdir: given {str(folder)!r}; {message}"
    for seeds, message in [
        (4, f"the study in {study} has 5; seeds can only be added"),
        (6, f"finish the study in {study} with 5 seeds first, then add more"),
    ]:
        flag = f"--config.study.eval_seeds={seeds}"
        line = refused(ABLATE, config, f"--workdir={study}", flag)
        assert line == f"study.eval_seeds: given {seeds}; {message}"
    assert "damaged JSON" in refused(ABLATE, config, f"--workdir={damaged}")
    start_study(study, complete=True, wave={"devices": 99, "packing": 1, "size": 99})
    more = "--config.study.eval_seeds=7"
    assert "same devices" in refused(ABLATE, config, f"--workdir={study}", more)
    assert "holds other files" in refused(
        TRAIN, f"--config={place / 'files' / 'run.py'}", f"--workdir={other_files}",
        f"--config.task.options.files=('{place / 'files' / 'good'}',)",
    )  # fmt: skip


def test_folders_that_cannot_be_written_are_refused(refused, place):
    """A read-only place is named, by both commands."""
    files = place / "files"
    good = f"--config.task.options.files=('{files / 'good'}',)"
    for module, flags in ((ABLATE, []), (TRAIN, [good])):
        flags = arguments_of(place, module, [*flags, "--workdir=/proc/nothing/here"])
        assert refused(module, *flags).startswith("/proc/nothing")


def test_a_full_disk_is_named_and_leaves_what_is_finished(command, place, wave):
    """The kernel's own refusal, through /dev/full: the file is named and the study stays whole."""
    study = place / "full"
    start_study(study, wave=wave)
    (study / "costs.json.part").symlink_to("/dev/full")
    config = f"--config={place / 'files' / 'study.py'}"
    code, _, err = command(ABLATE, config, f"--workdir={study}")
    assert code == 2
    file = study / "costs.json"
    assert err == f"error: {file}: No space left on device; what was finished is intact\n"
    assert json.loads((study / "study.json").read_text())["config"] == as_dict(Study(STUDY).file)
    assert not file.exists()


# --- what is not refused


def test_the_plan_writes_nothing(command, place):
    """It prints runs, compilations and minutes; results of the default folder stay away."""
    before = contents(place)
    code, out, err = command(ABLATE, f"--config={place / 'files' / 'study.py'}", "--plan")
    assert (code, err) == (0, "")
    for word in ("one", "programs", "minutes", "Nothing was started"):
        assert word in out
    assert contents(place) == before


def test_numbers_of_the_config_reach_the_plan(command, place):
    """3 arms (with the placebo) of 2 rates on 3 tuning seeds, and on 7 evaluation seeds."""
    flags = ["--plan", "--config.study.eval_seeds=7", "--config.study.tune_seeds=3"]
    _, out, _ = command(ABLATE, f"--config={place / 'files' / 'study.py'}", *flags)
    (row,) = (line for line in out.splitlines() if line.split()[1:2] == ["one"])
    assert [cell for cell in row.split() if cell.isdigit()] == ["3", "18", "21", "20", "2"]


def test_overrides_may_stand_before_the_file_that_they_override(command, place):
    """Written as one word or as two, the file is read first, and the last one that is named."""
    file, flags = str(place / "files" / "study.py"), ("--plan", "--config.study.eval_seeds=7")
    _, expected, _ = command(ABLATE, f"--config={file}", *flags)
    assert "7" in expected
    for named in ([f"--config={file}"], ["--config", file], ["--config=lost.py", "--config", file]):
        assert command(ABLATE, *flags, *named) == [0, expected, ""]


@pytest.mark.parametrize("name", ["smoke", "quick", "full"])
def test_the_configs_that_come_with_it_are_sound(name, monkeypatch):
    """Each is a study, whose texts and images are there; a few of its programs are traced."""
    monkeypatch.setattr("qkv_jax.study.plan._TRACED", 5)
    config = importlib.import_module(f"configs.{name}").get_config()
    study = Study(config.to_dict())
    study.check_data()
    assert study.file.name == name


def test_the_plan_of_the_full_study_can_be_printed(command):
    """All its arms can be counted, those without any parameter of attention as well; and what is
    chosen for the machine, the packing, can be set."""
    few = "!import qkv_jax.study.plan; qkv_jax.study.plan._TRACED = 5"
    config = f"--config={ROOT / 'configs' / 'full.py'}"
    code, out, err = command(few, ABLATE, config, "--plan", "--config.study.packing=3")
    assert (code, err) == (0, "") and "3 per device" in out


def test_commands_exit_with_2_and_no_traceback(tmp_path):
    """Two of the refusals again as plain processes: exit code and stderr as the shell sees them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    config = f"--config={ROOT / 'configs' / 'train.py'}"
    for arguments, line in [
        ([TRAIN, config, "--config.model.tie=K=Z"], "error: model.tie: given 'K=Z'"),
        ([BENCHMARK, "lattice"], "error: benchmark: given 'lattice'; allowed: population"),
    ]:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
