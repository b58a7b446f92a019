"""The command: what it writes about a run, a model of a study and a pretrained one, and what it
refuses. The functions behind the figures are tested in test_geometry.py."""

import json

import numpy as np
import pandas as pd
import pytest
import small_models

ANALYZE = "experiments.analyze"
KEYS = ["layer", "head", "quantity", "roles"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = small_models.write(tmp_path_factory.mktemp("analyze"))
    (folder / "lines").write_text("the cat sat\n\nsat on the mat\n" * 4)
    (folder / "blank").write_text(" \n\n")
    (folder / "long").write_text("the cat\n" + "the " * 40 + "\n")
    (folder / "latin").write_bytes(b"the cat\n\xe9t\xe9\n")
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(*flags)` gives exit code, stdout and stderr."""
    with small_models.server(place / "here") as run:
        yield lambda *flags: run(ANALYZE, *flags)


REFUSED = [
    ([], "--run: given None; name a model: --run, --study or --pretrained"),
    (["--run={run}", "--pretrained={bert}"], "--pretrained: given '{bert}'; --run is given as "
     "well; choose one"),
    (["--run={run}", "--task=a"], "--task: given 'a'; is for --study"),
    (["--run={run}", "--step=7"], "--step: given 7; checkpoints there: 0, 10, 20"),
    (["--run={run}", "--sentences=0"], "--sentences: given '0'; allowed: a positive integer"),
    (["--run={none}"], "--run: given '{none}'; is no run of experiments.train: no config.json"),
    (["--run={bare}"], "--run: given '{bare}'; holds no checkpoint"),
    (["--study={none}"], "--task: given None; a study needs --task and --arm"),
    (["--study={none}", "--task=a", "--arm=b"], "--study: given '{none}'; no study there: No such "
     "file or directory"),
    (["--pretrained={lost}"], "--pretrained: given '{lost}'; is no folder"),
    (["--pretrained={shard}"], "--pretrained: given '{shard}/model-00001-of-00001.safetensors'; "
     "is missing; model.safetensors.index.json names it"),
    (["--pretrained={shapes}"], "--pretrained: given '{shapes}'; tensor embeddings.LayerNorm.bias: "
     "given (12,); must have the shape (24,), by config.json"),
    (["--pretrained={words}"], "--pretrained: given '{words}/tokenizer.json'; does not match: it "
     "has a token 33, the model's table 20 rows"),
    (["--pretrained={bert}", "--texts={lost}"], "--texts: given '{lost}'; cannot be read: No such "
     "file or directory"),
    (["--pretrained={bert}", "--texts={blank}"], "--texts: given '{blank}'; is empty; write a text "
     "a line"),
    (["--pretrained={bert}", "--texts={latin}"], "--texts: given '{latin}'; is not UTF-8 at byte "
     "8"),
    (["--pretrained={bert}", "--texts={long}"], "--texts: given "),
    (["--run={run}", "--workdir={full}"], "--workdir: given '{full}'; holds files already; name a "
     "new folder"),
]  # fmt: skip


def test_bad_input_is_one_line(command, place):
    """The flag, what was given, what is allowed; exit code 2; nothing is written."""
    for flags, line in REFUSED:
        names = {path.name: str(path) for path in place.iterdir()} | {"lost": str(place / "lost")}
        code, out, err = command(*(flag.format(**names) for flag in flags))
        assert (code, out, err.count("\n")) == (2, "", 1), err
        if line.endswith("given "):
            assert err.startswith(f"error: {line}") and "at most" in err and "line 2" in err
        else:
            assert err == f"error: {line.format(**names)}\n"
    assert not list((place / "here").iterdir())
    assert [path.name for path in (place / "full").iterdir()] == ["mine"]


def check(folder, out):
    """What every survey holds; returns its table of figures."""
    page = (folder / "report.html").read_text()
    assert "<script" not in page and 'src="http' not in page and "data:image" in page
    assert max(len(line) for line in out.splitlines() if "Report: " not in line) <= 100
    figures = pd.read_csv(folder / "figures.csv", dtype={"head": str})
    assert not figures.duplicated(KEYS).any()
    svg, png = ({p.stem for p in (folder / "figures").glob(f"*.{s}")} for s in ("svg", "png"))
    assert svg == png and svg
    assert json.loads((folder / "survey.json").read_text())["remarks"]
    return figures


def test_a_run_and_its_movement(command, place):
    """Parameters that were scaled by 1.5 since the start have moved by half; similarities and
    circuits are what they were, up to what the norms of the layers below make of it."""
    folder = place / "survey"
    code, out, err = command(f"--run={place / 'run'}", "--sentences=20", f"--workdir={folder}")
    assert (code, err) == (0, "")
    figures = check(folder, out)
    assert set(figures["layer"]) == {0, 1} and set(figures["head"]) == {"0", "1", "all"}
    moved = pd.read_csv(folder / "movement.csv").query("quantity == 'movement'")
    for step, by in ((0, 0.0), (10, 0.25), (20, 0.5)):
        np.testing.assert_allclose(moved[moved["step"] == step]["value"], by, atol=1e-6)
    invariant = ["antisymmetric_share", "copying", "circuit_rank"]
    circuits = figures[figures["quantity"].isin(invariant)]
    np.testing.assert_allclose(circuits["value"], circuits["null_untrained"], atol=1e-5)
    drawn = figures.query("quantity == 'weight_cosine'")
    inside = (drawn["null_rotation_low"] < 0) & (drawn["null_rotation_high"] > 0)
    assert inside.all()  # turned at random, the cosine of two matrices is about zero


def test_a_pretrained_model_on_texts_of_ones_own(command, place):
    flags = f"--pretrained={place / 'bert'}", f"--texts={place / 'lines'}"
    folder = place / "bert-survey"
    code, out, err = command(*flags, f"--workdir={folder}")
    assert (code, err) == (0, "")
    figures = check(folder, out)
    attention = figures.query("quantity == 'diagonal'")
    assert ((attention["value"] >= 0) & (attention["value"] <= 1)).all()
    code, _, err = command(*flags, f"--workdir={folder}")
    assert code == 2 and "holds files already" in err
