"""What a study or run is, is in its folder: it goes on with the same data alone, and says which
are other ones before anything is trained."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from qkv_jax.config import ConfigError, first_difference
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.cluster.driver import merge
from qkv_jax.study.cluster.worker import PartWorkdir, run_part
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol.rounds import Part
from qkv_jax.study.report import headlines, wording
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.outcomes import write_tables
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.tasks.fingerprint import check_same_data
from qkv_jax.training.checkpoint import load_run, trainer_of
from qkv_jax.training.loop import train_run
from qkv_jax.training.population import Population, RunResult
from tests.study.test_names import VALUES

pytestmark = pytest.mark.slow

LETTERS = "abcdefgh"


def write_table(file, rows=40, flip=0, last="y"):
    """A table of texts; `flip` of its labels are the other one."""
    labels = [(i + (i < flip)) % 2 for i in range(rows)]
    names = ("x", "x" + last)
    lines = [f"{LETTERS[i % 8]}{i},{names[label]}" for i, label in enumerate(labels)]
    file.write_text("\n".join(["text,label", *lines]) + "\n")


def values_of(file, seeds=2):
    options = {"files": (str(file),), "length": 4}
    tasks = {"made": {"kind": "reverse", "options": {"length": 6, "test_examples": 64}},
             "table": {"kind": "text_classification", "options": options}}  # fmt: skip
    study = {"protocol": "fixed", "learning_rates": (1e-2,), "tune_seeds": 1, "eval_seeds": seeds}
    return VALUES | {"tasks": tasks, "study": study}


class Untrained(Population):
    """Stands for a population that is trained at once; tells how many waves were."""

    waves = 0

    def __init__(self, trainer, data, packing):
        self.trainer, self.data = trainer, data

    def train(self, wave, *, test, branch, on_report, saves):
        Untrained.waves += 1
        curve = np.full(2, 0.5)
        examples = sum(real for _, real in self.data.blocks["test"])
        scores = np.full(examples, 0.5) if test else None
        params = {"kernel": np.zeros(1, np.float32)} if test else None
        steps = np.array([4, 8])
        return [RunResult(w, steps, curve, curve, False, scores, params, 0.1) for w in wave]


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    monkeypatch.setattr(engine_module, "Population", Untrained)


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "table.csv"
    write_table(file)
    return file


def run(folder, values, checked=False):
    study, workdir = Study(values), Workdir(folder)
    if checked:  # as the commands do
        study.check_data()
    work = Engine(study, workdir, workdir.open(study.describe()), lambda event: None)
    work.run()
    write_tables(workdir)
    return work


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGES = {
    "a label": lambda file: write_table(file, flip=3),
    "rows more": lambda file: write_table(file, rows=48),
    "rows fewer": lambda file: write_table(file, rows=32),
    "the name of a class": lambda file: write_table(file, last="z"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_study_does_not_go_on_with_other_data(table, tmp_path, change):
    """More seeds, the same command again, a job: each names the file, trains nothing and leaves the
    folder as it was; with the data back it goes on."""
    folder = tmp_path / "study"
    run(folder, values_of(table))
    job = folder / "parts" / "table" / "copies.csv"
    before, waves = contents(folder), Untrained.waves
    known = table.read_text()
    CHANGES[change](table)
    part = Part.parse("table/copies/evaluate/0.01:2-3")  # one that is not done
    tries = [
        lambda: run(folder, values_of(table), checked=True),
        lambda: run(folder, values_of(table, seeds=5), checked=True),
        lambda: run(folder, values_of(table)),
        lambda: run_part(Study(values_of(table)), folder, part, StopSignal()),
    ]
    for once in tries:
        with pytest.raises(ConfigError) as refused:
            once()
        line = str(refused.value)
        assert line.startswith(f"tasks.table: data: given {str(table)!r}; has ")
        assert "started with other data; give it those, or name another folder" in line
        assert Untrained.waves == waves
    shutil.rmtree(folder / "parts")
    found = contents(folder)
    study = folder / "study.json"  # its fields may stand in another order
    assert json.loads(found.pop(study)) == json.loads(before.pop(study))
    assert found == before and not job.exists()
    table.write_text(known)
    run(folder, values_of(table, seeds=5), checked=True)
    assert load_study(folder).record.looks == (2, 5)


def test_data_that_change_while_a_study_is_under_way_are_seen_when_they_are_read(table, tmp_path):
    """Hours lie between the first look at the data and the training on them."""
    values = values_of(table)
    study, workdir = Study(values), Workdir(tmp_path / "study")
    study.check_data()
    work = Engine(study, workdir, workdir.open(study.describe()), lambda event: None)
    write_table(table, flip=3)
    with pytest.raises(ConfigError, match=r"tasks\.table: data: given .*table\.csv"):
        work.run()
    assert set(load_study(tmp_path / "study").runs["task"]) == {"made"}


def test_data_that_were_moved_are_the_same(table, tmp_path):
    """So are two files that change places in name, though not in content."""
    moved = tmp_path / "elsewhere" / "moved.csv"
    moved.parent.mkdir()
    shutil.move(table, moved)
    moved.touch()
    task = Study(values_of(moved)).tasks[1].task
    found = task.fingerprint(task.load())
    write_table(table)
    task = Study(values_of(table)).tasks[1].task
    check_same_data(task.fingerprint(task.load()), found, "task", "this run")


A, B, C = ({"bytes": n, "sha256": str(n) * 64} for n in (1, 2, 3))
ROWS, MORE = ({"rows": n, "sha256": "0" * 64} for n in (7, 8))


@pytest.mark.parametrize(
    ("known", "found", "message"),
    [
        ({"files": {"a": A, "b": B}}, {"files": {"a": B, "b": A}}, ""),
        ({"files": {"a": A}}, {"files": {"x": A}}, ""),
        ({"files": {"a": A, "b": B}}, {"files": {"a": A, "b": C}}, "given 'b'; has 3 bytes"),
        ({"files": {"a": A}}, {"files": {"a": A, "b": B}}, "given 'b'; is new, with 2 bytes"),
        ({"files": {"a": A, "b": B}}, {"files": {"a": A}}, "given 'b'; is gone, with 2 bytes"),
        ({"splits": {"test": ROWS}}, {"splits": {"test": MORE}},
         "given 'split test'; has 8 rows .SHA-256 000000000000…. and had 7 rows"),
        ({"splits": {}}, {"splits": {"test": MORE}}, "given .*; has 8 rows .* had no rows"),
        ({"classes": ["a"]}, {"classes": ["b"]}, r"given 'classes'; are \['b'\] and were \['a'\]"),
        (None, {"classes": ["b"]}, ""),
        ({"classes": ["b"]}, None, ""),
    ],
)  # fmt: skip
def test_what_has_changed_is_named(known, found, message):
    if not message:
        check_same_data(known, found, "task", "this run")
        return
    with pytest.raises(ConfigError, match=f"^task: data: {message}"):
        check_same_data(known, found, "task", "this run")


def test_a_study_records_the_data_of_each_task_and_the_packages_of_each_start(
    table, tmp_path, monkeypatch
):
    folder = tmp_path / "study"
    work = run(folder, values_of(table))
    known = json.loads((folder / "study.json").read_text())
    for plan in work.study.tasks:
        spec = known["tasks"][plan.name]
        assert spec["data"]["splits"]["test"]["rows"] > 0
    assert known["tasks"]["table"]["data"]["files"][str(table)]["bytes"] == len(table.read_bytes())
    assert len(known["versions"]) == 1
    run(folder, values_of(table))
    assert len(load_study(folder).record.versions) == 2
    monkeypatch.setattr(engine_module, "version", lambda name: "99")
    work = run(folder, values_of(table))
    first, again, last = (start.packages for start in load_study(folder).record.versions)
    assert first["jax"] == again["jax"] != "99" == last["jax"]
    rows = wording.all_rows(work.record, None)
    (message,) = [s for s in headlines.warnings(work.record, work.runs, rows) if "jax" in s]
    assert message.startswith("Packages changed while the study was under way: ")
    assert f"jax {first['jax']}, then 99" in message


def test_a_study_from_before_data_were_known_takes_note_of_them(table, tmp_path):
    folder = tmp_path / "study"
    run(folder, values_of(table))
    known = json.loads((folder / "study.json").read_text())
    for spec in known["tasks"].values():
        del spec["data"], spec["data_notes"], spec["resolved"]
    (start,) = known["versions"]
    known["versions"] = start["packages"]
    (folder / "study.json").write_text(json.dumps(known))
    run(folder, values_of(table))
    record = load_study(folder).record
    assert all(task.data and task.resolved for task in record.tasks.values())
    assert [start.packages for start in record.versions] == [start["packages"]] * 2


def test_jobs_of_another_machine_with_other_data_are_not_merged(table, tmp_path):
    """The rows of a job lie in its file; the command that would merge them is refused first."""
    folder = tmp_path / "study"
    values = values_of(table)
    study, workdir = Study(values), Workdir(folder)
    study.check_data()
    workdir.open(study.describe())
    part = Part.parse("table/copies/tune/0.01:1000000-1000000")
    run_part(Study(values), folder, part, StopSignal())
    assert len(PartWorkdir(folder, "table", "copies").runs()) == 1
    write_table(table, flip=3)
    other = Study(values)
    other.check_data()
    with pytest.raises(ConfigError, match=r"tasks\.table: data: given .*table\.csv"):
        merge(workdir, workdir.open(other.describe()))
    assert not (folder / "runs.csv").exists()


def run_config(file):
    task = {"kind": "text_classification", "options": {"files": (str(file),), "length": 4}}
    return {"task": task, "model": VALUES["model"], "train": VALUES["train"]}


def test_a_run_does_not_go_on_with_other_data(table, tmp_path):
    """Nor is anything of it changed; with the data back it ends."""
    folder, config = tmp_path / "run", run_config(table)
    stop_signal = StopSignal()

    def on_progress(row):
        stop_signal.stop("enough")

    trainer = trainer_of(config)
    with pytest.raises(Interrupted):
        train_run(trainer, 0, folder, config=config, stop_signal=stop_signal, on_report=on_progress)
    before, known = contents(folder), table.read_text()
    for change in CHANGES.values():
        change(table)
        with pytest.raises(ConfigError, match=r"^task: data: given '.*table\.csv'; has "):
            train_run(trainer_of(config), 0, folder, config=config)
        assert contents(folder) == before
    table.write_text(known)
    result = train_run(trainer_of(config), 0, folder, config=config)
    assert result["status"] == "done" and load_run(pathlib.Path(folder))


def test_a_field_that_is_not_given_is_not_one_that_is_none():
    known = {"model": {"tie": "K=V", "preset": None}}
    more = {"model": {"tie": "K=V", "preset": None, "qk_norm": True}}
    assert first_difference(known, more) == "it does not give model.qk_norm, now True"
    assert first_difference(more, known) == "its model.qk_norm is True, now not given"
    assert first_difference({"a": None}, {"a": 3}) == "its a is None, not 3"
