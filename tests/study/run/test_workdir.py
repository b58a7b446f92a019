"""A study's folder: every table and JSON file reads back as it was written, whatever its arms are
called; what a notebook asks of it is right or refused in one line; and it stops when asked to."""

import dataclasses
import json
import math
import os
import re

import numpy as np
import pandas as pd
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import json_text
from qkv_jax.runtime.stopping import Interrupted, StopSignal
from qkv_jax.study.plan import Study
from qkv_jax.study.protocol import selection
from qkv_jax.study.protocol.fixed import MAX_REPEATS
from qkv_jax.study.report import estimate, page
from qkv_jax.study.report.ledger import ledger_context
from qkv_jax.study.results import load_study
from qkv_jax.study.run import engine as engine_module
from qkv_jax.study.run import outcomes
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.rows import append_runs, read_runs
from qkv_jax.study.run.tables import read_table
from qkv_jax.study.run.workdir import _MOST_POINTS, Workdir
from qkv_jax.training.speed import USUAL
from tests.study.test_names import VALUES
from tests.support.studies import made_population

made = made_population.made


NAMES = ("None", "NA", "01", "nan", "true")
ARMS = ("separate", *NAMES, "placebo")
TIES = dict(zip(NAMES, ("K=V", "Q=K", "Q=V", "copies", "Q=X"), strict=True))
OPTIONS = {"length": 6, "test_examples": 32, "outcome_kind": "mean"}
EVIDENCE = {"a": {"task": "NA", "arm": "None", "expect": "equivalent"},
            "b": {"task": "01, width=8", "arm": "NA", "expect": "above", "measure": "antisymmetry",
                  "margin": 0.1, "null": 0.1, "control": True}}  # fmt: skip
ODD = VALUES | {
    "name": "null",
    "arms": {"separate": {}} | {name: {"model": {"tie": tie}} for name, tie in TIES.items()},
    "tasks": {
        "NA": {"kind": "reverse", "options": OPTIONS},
        "01": {"kind": "reverse", "options": OPTIONS,
               "axes": {"model.width": (8, 16)}},
    },
    "claims": {"None": {"text": "nothing", "evidence": EVIDENCE}},
}  # fmt: skip


def run(folder, values=ODD, stop_signal=None, listener=lambda event: None):
    """As the command does: study, tables, report."""
    study, workdir = Study(values), Workdir(folder)
    record = dataclasses.replace(workdir.open(study.describe()), command="make")
    work = Engine(study, workdir, record, listener, stop_signal)
    work.run()
    found, _ = page.write_outcomes(workdir, pause=work.stop_if_asked)
    return work, found.summary


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "study"
    return folder, *run(folder)


# --- what is written is read


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def test_every_json_file_is_strict_and_every_table_reads_back_equal(study, tmp_path):
    folder, work, summary = study
    files = [file for file in folder.rglob("*") if file.is_file()]
    seen = {file.name for file in files}
    assert {"study.json", "costs.json", "claims.json", "runs.csv", "summary.csv", "families.csv",
            "claims.csv", "measures.csv"} <= seen  # fmt: skip
    tables = 0
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="ascii"), parse_constant=refuse)
        if file.name == "runs.csv":
            append_runs(tmp_path / "again.csv", read_runs([file]).to_dict("records"))
            assert (tmp_path / "again.csv").read_bytes() == file.read_bytes()
        elif file.suffix == ".csv" and file.parent == folder:
            # Whole numbers are written as such or as floats, by what else is in their column.
            text = re.sub(r"\.0(?=[,\n])", "", read_table(file).to_csv(index=False))
            assert text == re.sub(r"\.0(?=[,\n])", "", file.read_text(encoding="utf-8"))
            tables += 1
        elif file.suffix == ".csv" and file.parent.name != "tables":  # those hold text
            assert read_table(file).to_csv(index=False) == file.read_text()
    assert tables == 4
    read = load_study(folder)
    pd.testing.assert_frame_equal(read.runs, work.runs, check_dtype=False, check_exact=True)
    words = summary.assign(verdict=summary.verdict.map(str), note=summary.note.map(str))
    pd.testing.assert_frame_equal(read.summary, words, check_dtype=False, check_exact=True)


def test_a_study_may_be_given_another_title(study):
    """It is what its report is called, not what it is."""
    workdir = Workdir(study[0])
    asked = Study(ODD | {"title": "Other", "question": "What now?"}).describe()
    opened = workdir.open(asked)
    assert (opened.title, opened.question, opened.complete) == ("Other", "What now?", True)
    workdir.open(Study(ODD).describe())


def test_names_that_look_like_nothing_or_a_number_stay_names_everywhere(study):
    read = load_study(study[0])
    tasks = ("NA", "01, width=8", "01, width=16")
    for table in (read.runs, read.summary):
        assert tuple(dict.fromkeys(table["task"])) == tasks
        assert tuple(dict.fromkeys(table["arm"])) == ARMS
    assert tuple(read.families["arm"]) == ARMS and set(read.families["family"]) == {"01"}
    assert read.claims["claim"].tolist() == ["None"] * 2
    assert read.claims["arm"].tolist() == ["None", "NA"]
    assert read.claims["control"].tolist() == [False, True]  # truths, not their names
    assert read.claims[~read.claims["control"]]["evidence"].tolist() == ["a"]
    assert (read.summary["edge"] == "").all() and read.summary["note"].str.len().any()
    (claim,) = ledger_context(study[0])
    assert [row["control"] for row in claim["rows"]] == [False, True]
    for arm in ARMS:
        assert read.examples("NA", arm, range(5)).shape == (5, 32)
        assert len(read.curve("NA", arm, seed=0))
        assert read.model("NA", arm, 0)[1]["params"]
    page = (study[0] / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ARMS)


def test_what_is_no_number_is_null_in_json_and_names_are_as_they_were():
    values = {"a": [math.nan, 1.5, (math.inf,)], "b": {"NaN": -math.inf, "é": None}}
    text = json_text(values)
    assert json.loads(text, parse_constant=refuse) == {
        "a": [None, 1.5, ["inf"]], "b": {"NaN": "-inf", "é": None}}  # fmt: skip
    assert text.isascii()


@pytest.mark.parametrize("name", ["summary.csv", "study.json", "runs.csv", "claims.csv"])
@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b'a,"b\n', b"[]", b"\0\0\0\n"])
def test_a_damaged_file_is_named_in_one_line(study, tmp_path, name, damage):
    for file in study[0].glob("*.*"):
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_bytes(damage)
    if (name, damage) == ("runs.csv", b"[]"):  # a row that was cut off
        assert not len(load_study(tmp_path).runs)
        return
    with pytest.raises(ConfigError) as refused:
        load_study(tmp_path)
    assert name in str(refused.value) and "\n" not in str(refused.value)


# --- what a notebook asks for


WRONG = (None, "", "nope", 3, -1, 0.5, True, b"NA", math.nan, ("NA",), ["NA"], {"NA": 1}, np.nan)
RIGHT = {"task": "NA", "arm": "NA", "learning_rate": 1e-2, "seed": 0}
CALLS = {
    "curve": ("task", "arm", "learning_rate", "seed"),
    "examples": ("task", "arm", "seeds"),
    "model": ("task", "arm", "seed"),
    "untrained": ("task", "arm", "seed"),
    "find": ("task", "arm"),
}


@pytest.mark.parametrize(("call", "names"), CALLS.items())
def test_wrong_arguments_are_refused_by_name(study, unchecked, call, names):
    """Whatever is given for any of them, with the checks of annotations off."""
    read = load_study(study[0])
    right = RIGHT | {"seeds": [0, 1]}
    getattr(read, call)(*(right[name] for name in names))
    for name in names:
        good = {"seed": (3, None) if call == "curve" else (3,), "learning_rate": (None,)}
        good = good.get(name, ())
        for value in WRONG:
            if any(value is one or (type(value) is type(one) and value == one) for one in good):
                continue
            given = right | {name: value}
            with pytest.raises(ConfigError) as refused:
                getattr(read, call)(*(given[n] for n in names))
            assert refused.value.field in (name, "seed"), (name, value)
            assert "\n" not in str(refused.value)
    for seed in (2**32, 10**30, np.int64(-1)) if call == "untrained" else ():
        with pytest.raises(ConfigError, match="seed: given"):
            read.untrained("NA", "NA", seed)
    if call == "examples":
        seeds = (np.arange(2), (s for s in (0, 1)), {0: 1, 1: 2})
        assert all(read.examples("NA", "NA", some).shape == (2, 32) for some in seeds)


def test_a_notebook_shows_a_study_and_gets_a_batch_of_a_task(study):
    """Every arm on every task, none for the placebo's own; a batch is what models read."""
    read = load_study(study[0])
    assert re.fullmatch(r"<.+ 7 arms on NA, 01, width=8, 01, width=16; \d+ runs>", repr(read))
    found = read.matrix()
    assert [*found.index] == [*read.record.arms] and "2 cells" in found.columns[1]
    for arm, verdict in zip(found.index, found.iloc[:, 0], strict=True):
        own = read.summary[(read.summary.task == "NA") & (read.summary.arm == arm)]
        assert str(own.verdict.iloc[0]) in verdict
    assert "<table" in read._repr_html_()
    inputs, batch = read.batch("NA", size=3)
    encoder, variables = read.find("NA", "NA")[1].trainer.model, read.untrained("NA", "NA")
    logits = encoder.apply(variables, **inputs)
    assert logits.shape[0] == len(batch["targets"]) == 3
    with pytest.raises(ConfigError, match="task: given 'N'"):
        read.batch("N")
    with pytest.raises(ConfigError, match="size: given 0"):
        read.batch("NA", 0)


def test_what_is_no_study_is_refused(study, tmp_path, unchecked):
    (tmp_path / "file").write_text("")
    for value in (None, 3, 0.5, ["a"], b"NA", "a\0b", tmp_path, tmp_path / "file", tmp_path / "no"):
        with pytest.raises(ConfigError) as refused:
            load_study(value)
        assert refused.value.field == "workdir" and "\n" not in str(refused.value)
    assert load_study(os.fspath(study[0])).record.name == "null"


@pytest.mark.parametrize(("given", "meant"), [("quik", True), ("none", False)])
def test_a_study_beside_it_is_named_if_its_own_name_is_near(tmp_path, given, meant):
    """However long a path both share."""
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "study.json").write_text("{}")
    with pytest.raises(ConfigError) as refused:
        load_study(tmp_path / given)
    assert str(refused.value).endswith(f"did you mean {str(tmp_path / 'quick')!r}?") == meant


# --- it stops when asked to


class Stopping(StopSignal):
    """Is asked to stop at its n-th poll."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def poll(self):
        self.place -= 1
        if not self.place:
            self.stop("interrupted by SIGTERM")
        return super().poll()


# Fewer arms: what is looked at is where it stops.
SMALL = ODD | {"arms": {name: ODD["arms"][name] for name in ("separate", "None", "NA")}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "study"
    return folder, *run(folder, SMALL)


def tables_of(folder):
    timing = ["step_time_ratio", "step_time_noise"]
    return {
        file.name: read_table(file).drop(columns=timing, errors="ignore").to_csv()
        for file in folder.glob("*.csv") if file.name != "runs.csv"
    }  # fmt: skip


STAGES = {
    "the data": (Study, "facts"),
    "costs": (engine_module, "write_costs"),
    "loading": (Engine, "_describe_data"),
    "an extension": (selection, "extension_needed"),
    "measures": (engine_module, "measure"),
    "the summary": (outcomes, "summary_of"),
    "families": (outcomes, "family_table"),
    "the ledger": (outcomes, "write_ledger"),
    "the first figures": (page, "draw_task"),
    "figures of families": (page, "draw_family"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_study_stops_at_whatever_it_is_and_goes_on(small, tmp_path, monkeypatch, stage):
    """SIGTERM while it does not train: it ends before the next thing, everything that was done is
    there, and the same command ends with the same tables."""
    owner, name = STAGES[stage]
    stop_signal, doing = StopSignal(), getattr(owner, name)

    def asked(*args, **options):
        stop_signal.stop("interrupted by SIGTERM")
        return doing(*args, **options)

    folder = tmp_path / "study"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, asked)
        with pytest.raises(Interrupted, match="SIGTERM"):
            run(folder, SMALL, stop_signal=stop_signal)
    assert not (folder / "report.html").exists()
    rows = len(load_study(folder).runs)
    run(folder, SMALL)
    assert tables_of(folder) == tables_of(small[0]) and rows <= len(load_study(folder).runs)


def test_no_loop_of_a_study_is_without_an_end(tmp_path, monkeypatch):
    """Should the extension of grids ever be wrong: it ends, and says so."""
    asked = iter(range(1, 100))
    with monkeypatch.context() as patch:
        wrong = lambda *_: [float(f"{next(asked)}e-9")]
        patch.setattr(selection, "extension_needed", wrong)
        with pytest.raises(RuntimeError, match="NA: extend goes on without an end"):
            run(tmp_path / "study", SMALL)
    assert next(asked) == MAX_REPEATS + 2


def test_a_study_of_finished_waves_alone_can_be_stopped_between_any_two(small):
    """As an endless one was: nothing was missing, so nobody asked."""
    folder, work, _ = small
    counting = StopSignal()
    count = 0

    def counted():
        nonlocal count
        count += 1
        return StopSignal.poll(counting)

    counting.poll = counted
    run(folder, SMALL, stop_signal=counting)
    waves = work.progress.waves_done
    assert count > waves
    for place in (2, 5, waves // 2, waves):
        with pytest.raises(Interrupted):
            run(folder, SMALL, stop_signal=Stopping(place))


def test_a_disk_that_is_full_leaves_the_old_report(study):
    """Figures and pages are replaced as a whole or not at all."""
    folder, work, summary = study
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    picture = next((folder / "figures").iterdir())
    for name in ("report.md", "report.html", f"figures/{picture.name}"):
        part = folder / f"{name}.part"
        part.symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left on device") as full:
            page.write_report(folder, work.record, work.runs, summary, work.workdir.curve)
        assert full.value.filename == str(folder / name)
        part.unlink()
        assert all(file.read_bytes() == content for file, content in before.items())


def test_the_plan_says_what_to_know_of_the_data_and_of_arms_that_are_one(monkeypatch, capsys):
    values = VALUES | {"arms": {"separate": {}, "twin": {"model": {"head_dim": 4}}}}
    study = Study(values)
    notes = ("12 % of the test texts are in training",)
    monkeypatch.setattr(type(study.tasks[0].task), "notes", lambda task, data: notes, raising=False)
    estimate.print_plan(study, USUAL)
    out = capsys.readouterr().out
    assert "one: 12 % of the test texts are in training\n" in out
    assert "one: arm 'twin' is the program of 'separate'\n" in out


@pytest.mark.parametrize("reports", [1, 5, _MOST_POINTS, 3000])
def test_points_are_those_of_the_curve_and_few_of_a_long_one(tmp_path, reports):
    """To the bit, from the first report to the last, and no number where there is none."""
    workdir, rng = Workdir(tmp_path), np.random.default_rng(reports)
    curve = pd.DataFrame({"step": 10 * np.arange(1, reports + 1), "train_loss": rng.random(reports),
                          "value": rng.random(reports)})  # fmt: skip
    curve.loc[curve.index[1:2], "value"] = np.nan
    assert workdir.points("task", "arm", 3e-3, 1) is None
    workdir.write("curves/task/arm/lr0.003_seed1.csv", curve.to_csv(index=False))
    steps, values = workdir.points("task", "arm", 3e-3, 1)
    whole = workdir.curve("task", "arm", 3e-3, 1).set_index("step")["value"]
    assert len(steps) <= _MOST_POINTS and (np.diff(steps) > 0).all()
    assert (steps[0], steps[-1]) == (10, 10 * reports)
    assert np.array_equal(values, whole.loc[steps.astype(int)], equal_nan=True)
    if reports <= _MOST_POINTS:
        assert len(steps) == reports


@pytest.mark.parametrize("text", ["", "step,train_loss\n1,2\n", "step,train_loss,value\n1,2\n"])
def test_points_of_a_damaged_curve_name_the_file(tmp_path, text):
    workdir = Workdir(tmp_path)
    workdir.write("curves/task/arm/lr0.003_seed1.csv", text)
    with pytest.raises(ConfigError, match="lr0.003_seed1.csv.*a damaged file"):
        workdir.points("task", "arm", 3e-3, 1)
