"""The command that surveys a model: from a folder to a page, and refusals of one line."""

import json
import math
import re
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from qkv_jax.config import ConfigError
from qkv_jax.study.plan import Study
from qkv_jax.study.results import load_study
from qkv_jax.study.run.workdir import Workdir
from qkv_jax.survey.measure import KEYS
from qkv_jax.survey.remarks import select
from qkv_jax.survey.subjects import of_pretrained
from qkv_jax.training.checkpoint import Checkpoints, trainer_of
from tests.support import commands
from tests.support.folders import pretrained_folders

pytestmark = pytest.mark.slow

ANALYZE = "experiments.analyze"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run whose queries grow by half over 20 steps, a study, pretrained folders, and folders that
    are none of these."""
    folder = tmp_path_factory.mktemp("analyze")
    (folder / "text").write_bytes(b"the cat sat on the mat. " * 80)
    parts = {
        "task": {"kind": "masked_bytes",
                 "options": {"length": 16, "files": (str(folder / "text"),)}},
        "model": {"layers": 2, "width": 8, "heads": 2},
        "train": {"steps": 20, "report_every": 10, "batch_size": 8, "learning_rate": 0.01},
    }  # fmt: skip
    trainer = trainer_of(parts)
    state = jax.jit(trainer.init)(0, 0.01)
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(parts))
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    for step, factor in ((0, 1.0), (10, 1.25), (20, 1.5)):
        grown = jax.tree_util.tree_map_with_path(
            lambda path, leaf, factor=factor: leaf * (factor if "query" in str(path) else 1.0),
            state.params,
        )
        checkpoints.save(state.replace(step=jnp.int32(step), params=grown))
    checkpoints.close()

    relation = {"kind": "relation", "options": {"length": 4, "validation_examples": 30,
                                                "test_examples": 3}}  # fmt: skip
    config = {"name": "small", "tasks": {"relation": relation}, "model": parts["model"],
              "arms": {"separate": {}, "K=V": {"model": {"tie": "K=V"}}},
              "train": {"steps": 20, "report_every": 10, "batch_size": 4},
              "study": {"protocol": "fixed", "learning_rates": (0.001, 0.01)}}  # fmt: skip
    work = Workdir(folder / "study")
    work.open(Study(config).describe())
    study = load_study(folder / "study")
    params = jax.tree.map(lambda leaf: 2 * leaf, study.untrained("relation", "K=V", 3)["params"])
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    saved = safetensors.numpy.save({name: np.asarray(leaf) for name, leaf in flat.items()})
    work.write("checkpoints/relation/K=V/lr0.01_seed3.safetensors", saved)
    run = {"task": "relation", "arm": "K=V", "learning_rate": 0.01, "seed": 3, "status": "done"}
    scores = {"validation": 0.5, "test": 0.5, "steps_to_solve": math.nan, "seconds": 1.0}
    work.append_runs([run | scores | {"round": "evaluate", "metric": "accuracy", "steps": 1}])

    bert = pretrained_folders.CONFIGS["bert"]
    pretrained_folders.write(folder / "bert", bert)
    weights = pretrained_folders.tensors(bert)
    pretrained_folders.write(folder / "shape", bert | {"hidden_size": 15}, weights)
    (folder / "shard").mkdir()
    shutil.copy(folder / "bert" / "config.json", folder / "shard")
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (folder / "shard" / "model.safetensors.index.json").write_text(json.dumps(index))
    words = [f"w{i}" for i in range(30)]
    pretrained_folders.write(folder / "words", bert, tokenizer=False)
    pretrained_folders.write_tokenizer(folder / "words", words=words)
    pretrained_folders.write(folder / "vit", pretrained_folders.CONFIGS["vit"])
    (folder / "few").write_text("\n".join(pretrained_folders.TEXTS) + "\n")
    (folder / "blank").write_text("\n \n")
    (folder / "long").write_text("the cat\n" + "the " * 30 + "\n")
    for name in ("here", "none", "bare"):
        (folder / name).mkdir()
    (folder / "bare" / "config.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(*flags)` gives exit code, stdout and stderr."""
    with commands.server(place / "here") as run:
        yield lambda *flags: run(ANALYZE, *flags)


def check_folder(folder, out, sections):
    """All files are there, the page needs nothing else, and it says what the terminal says."""
    page = commands.Page((folder / "report.html").read_text())
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == sections
    assert all(p["src"].startswith("data:image/svg+xml") and p["alt"] for p in pictures)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    for suffix in ("svg", "png"):
        files = list((folder / "figures").glob(f"*.{suffix}"))
        assert len(files) == sections and all(file.stat().st_size > 2000 for file in files)
    printed = json.loads((folder / "survey.json").read_text())["remarks"]
    terminal, shown = " ".join(out.split()), " ".join(page.text.split())
    assert len(printed) >= 5 and all(line in terminal and line in shown for line in printed)
    found = pd.read_csv(folder / "figures.csv", dtype={"head": str})
    assert not found.duplicated(KEYS).any() and found["value"].notna().all()
    return found


def test_a_run(command, place):
    """Movement over its checkpoints, beside the untrained model; a second call loses nothing."""
    folder = place / "out-run"
    flags = (f"--run={place / 'run'}", f"--workdir={folder}", "--sentences=7")
    code, out, err = command(*flags)
    assert (code, err) == (0, "")
    assert re.match("On .*: comparing X, Q, K and V in .*\nDrawing the figures", out)
    found = check_folder(folder, out, sections=10)
    text = " ".join(out.split())
    assert "on 6 validation examples, 96 tokens" in text  # all that there are
    assert "W_Q by 0.50, W_K by 0.00" in text
    ratio = select(found, "norm_ratio", "XQ").query("layer == 0")  # above it X has changed as well
    np.testing.assert_allclose(ratio["value"], 1.5 * ratio["null_untrained"], rtol=1e-4)
    moved = pd.read_csv(folder / "movement.csv")
    assert set(moved["step"]) == {0, 10, 20}
    before = (folder / "figures.csv").read_bytes()
    code, out, err = command(*flags)
    assert (code, out) == (2, "")
    assert err == f"error: --workdir: given '{folder}'; holds files already; name a new folder\n"
    assert (folder / "figures.csv").read_bytes() == before


def test_the_first_step_of_a_run_has_neither_past_nor_untrained_twin(command, place):
    folder = place / "out-start"
    code, out, err = command(f"--run={place / 'run'}", "--step=0", f"--workdir={folder}",
                             "--sentences=1")  # fmt: skip
    assert (code, err) == (0, "")
    found = check_folder(folder, out, sections=8)
    assert found["null_untrained"].isna().all() and "untrained" not in out
    assert not (folder / "movement.csv").exists()


def test_a_model_of_a_study(command, place):
    """Its start is drawn again from its seed."""
    folder = place / "out-study"
    code, out, err = command(f"--study={place / 'study'}", "--task=relation", "--arm=K=V",
                             "--seed=3", f"--workdir={folder}")  # fmt: skip
    assert (code, err) == (0, "")
    found = check_folder(folder, out, sections=10)
    text = " ".join(out.split())
    assert "on 30 validation examples, 120 tokens" in text and "W_Q by 1.00" in text
    np.testing.assert_allclose(select(found, "cka", "KV")["value"], 1)


def test_a_pretrained_model(command, place):
    folder = place / "out-bert"
    code, out, err = command(f"--pretrained={place / 'bert'}", f"--texts={place / 'few'}",
                             f"--workdir={folder}")  # fmt: skip
    assert (code, err) == (0, "")
    check_folder(folder, out, sections=8)
    # Each text with its two special tokens, without padding.
    tokens = sum(len(text.split()) + 2 for text in pretrained_folders.TEXTS)
    printed = (
        f"on 3 texts, {tokens} tokens. 0.0 % of the tokens are unknown to the model's tokenizer."
    )
    assert printed in " ".join(out.split())


def words_and(unknown, known):
    return {"line 1": "zebra " * unknown + "cat " * known}


def test_unknown_tokens_are_counted_warned_of_and_refused(place):
    """Of those that are not special; above a twentieth with a warning, above half not at all."""
    folder = place / "bert"
    found = [of_pretrained(folder, words_and(*counts), 0).note for counts in ((0, 3), (1, 9))]
    assert found == [
        "0.0 % of the tokens are unknown to the model's tokenizer.",
        "Warning: 10.0 % of the tokens are unknown to the model's tokenizer. Does the tokenizer "
        "suit these texts?",
    ]
    assert of_pretrained(folder, words_and(5, 5), 0).note.startswith("Warning: 50.0 % ")
    with pytest.raises(ConfigError) as caught:
        of_pretrained(folder, words_and(6, 5), 0)
    assert str(caught.value) == (
        "texts: given '1 texts'; 54.5 % of the tokens are unknown to the model's tokenizer; "
        "allow_unknown measures them all the same"
    )
    allowed = of_pretrained(folder, words_and(6, 5), 0, allow_unknown=True)
    assert allowed.note.startswith("Warning: 54.5 % ")


REFUSED = [
    ([], "--run: given None; name a model: --run, --study or --pretrained"),
    (["--run={run}", "--pretrained={bert}"], "--pretrained: given '{bert}'; --run is given as "
     "well; choose one"),
    (["--run={none}"], "--run: given '{none}'; is no run of experiments.train: no config.json"),
    (["--run={bare}"], "--run: given '{bare}'; holds no checkpoint"),
    (["--run={run}", "--step=5"], "--step: given 5; checkpoints there: 0, 10, 20"),
    (["--run={run}", "--arm=K=V"], "--arm: given 'K=V'; is for --study"),
    (["--run={run}", "--texts={few}"], "--texts: given '{few}'; is for --pretrained"),
    (["--run={run}", "--allow_unknown"], "--allow_unknown: given True; is for --pretrained"),
    (["--run={run}", "--sentences=0"], "--sentences: given '0'; allowed: a positive integer"),
    (["--run={run}", "--workdir={few}"], "--workdir: given '{few}'; holds files already; name a "
     "new folder"),
    (["--study={study}", "--task=relation"], "--arm: given None; a study needs --task and --arm"),
    (["--study={none}", "--task=a", "--arm=b"], "--study: given '{none}'; no study there: it holds "
     "no study.json"),
    (["--study={study}", "--task=sort", "--arm=K=V"], "--task: given 'sort'; this study has: "
     "relation"),
    (["--study={study}", "--task=relation", "--arm=Q=K"], "--arm: given 'Q=K'; this study has: "
     "separate, K=V, placebo"),
    (["--study={study}", "--task=relation", "--arm=K=V"], "--seed: given 0; no such "
     "checkpoint: {study}/checkpoints/relation/K=V/lr0.01_seed0.safetensors; runs that are tested "
     "keep theirs"),
    (["--pretrained={none}"], "--pretrained: given '{none}'; holds no config.json; there: nothing"),
    (["--pretrained={bert}", "--texts={lost}"], "--texts: given '{lost}'; cannot be read: No such "
     "file or directory"),
    (["--pretrained={bert}", "--texts={blank}"],
     "--texts: given '{blank}'; is empty; write one text per line"),
    (["--pretrained={bert}", "--texts={long}"], "--texts: given 'the the the the the the the the "
     "the the …'; line 2 is 32 tokens; at most 16"),
    (["--pretrained={vit}", "--texts={few}"], "--pretrained: given '{vit}'; holds no "
     "tokenizer.json, so it cannot read texts"),
    (["--pretrained={shard}", "--texts={few}"], "--pretrained: given "
     "'{shard}/model-00001-of-00002.safetensors'; is missing; model.safetensors.index.json names "
     "it"),
    (["--pretrained={words}", "--texts={few}"], "--pretrained: given '{words}/tokenizer.json'; "
     "does not match: it has a token 33, the model's table 20 rows"),
    (["--pretrained={shape}", "--texts={few}"], "tensor "
     "embeddings.LayerNorm.bias: given (12,); must have the shape (15,), by config.json"),
]  # fmt: skip


def test_bad_input_is_one_line(command, place):
    """The flag or file, what was given, what is allowed; exit code 2; nothing is written."""
    names = ("run", "none", "bare", "study", "bert", "few", "blank", "long", "lost", "shard",
             "words", "vit", "shape")  # fmt: skip
    names = {name: str(place / name) for name in names}
    for flags, line in REFUSED:
        code, out, err = command(*(flag.format(**names) for flag in flags))
        assert (code, out, err) == (2, "", f"error: {line.format(**names)}\n")
    assert not list((place / "here").iterdir())
