"""The config files: each says how it is run, resolves as it stands, and all options run."""

import importlib
import pathlib
import subprocess
import sys

import pandas as pd
import pytest

from configs import big, depth, scaling, train, translation
from configs.options import OPTIONS, get_config
from configs.papers import courtois2024, kayyam2026
from qkv_jax.config import ConfigError
from qkv_jax.study.plan import Study
from qkv_jax.training.checkpoint import trainer_of
from qkv_jax.training.costs import measure

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for path in (ROOT / "configs").rglob("*.py")
    if path.name not in ("__init__.py", "train.py", "big.py", "translation.py")
)


# Each file with each of its sizes.
STUDIES = [
    (name, size)
    for name in FILES
    for size in getattr(importlib.import_module(name), "SIZES", (None,))
]


def config_of(name, size=None):
    return importlib.import_module(name).get_config(*[size] if size else [])


@pytest.mark.parametrize(("name", "size"), STUDIES)
def test_every_study_resolves_and_says_its_command(name, size):
    """Arms, cells and protocol are legal together; data is not read."""
    if name != "configs.reviews":  # its data is not there until it is fetched
        study = Study(config_of(name, size).to_dict())
        assert study.tasks and all(plan.arms for plan in study.tasks)
    doc = importlib.import_module(name).__doc__
    command = f"python -m experiments.ablate --config={name.replace('.', '/')}.py"
    assert f"{command} " in doc and "GPU" in doc
    if size and config_of(name, size)["name"] != config_of(name)["name"]:
        assert f"{command}:{size} " in doc or f"`:{size}`" in doc


@pytest.mark.parametrize("size", big.SIZES)
def test_every_big_run_is_a_run_of_the_size_that_its_name_says(size):
    """To a tenth; its mesh takes whatever number of chips there is."""
    values = big.get_config(size).to_dict()
    params = measure(trainer_of(values)).params
    named = {"100m": 1e8, "1b": 1e9, "7b": 7e9}[size]
    assert abs(params / named - 1) < 0.1, params
    assert -1 in values["mesh"].values()


def test_single_runs_say_their_command():
    for module in (train, big, translation):
        file = module.__name__.replace(".", "/")
        assert f"python -m experiments.train --config={file}.py" in module.__doc__
    assert all(f"configs/big.py:{size} " in big.__doc__ for size in ("1b", "7b"))
    with pytest.raises(ConfigError, match="size: given '2b'; allowed: 100m, 1b, 7b"):
        big.get_config("2b")


@pytest.mark.parametrize("name", sorted({name for name, size in STUDIES if size}))
def test_sizes_of_a_study_have_names_of_their_own_and_no_others_are_taken(name):
    """Their folders, runs/NAME, differ."""
    sizes = [size for other, size in STUDIES if other == name]
    assert len({config_of(name, size)["name"] for size in sizes}) == len(sizes) > 1
    with pytest.raises(ConfigError, match=f"size: given 'tiny'; allowed: {', '.join(sizes)}"):
        config_of(name, "tiny")


@pytest.mark.parametrize("module", [depth, scaling, courtois2024])
def test_the_small_size_of_a_study_runs_arms_of_the_whole(module):
    small, full = (module.get_config(size).to_dict()["arms"] for size in ("small", "full"))
    assert small.items() <= full.items()


def test_the_small_grid_of_a_paper_is_part_of_the_whole():
    cells = {
        grid: {plan.name: plan.arms for plan in Study(kayyam2026.get_config(grid).to_dict()).tasks}
        for grid in ("small", "full")
    }
    assert len(cells["full"]) == 5 * 3 * 2 * 2 * 3
    assert cells["small"].items() <= cells["full"].items()


# Options together, so that five programs run them all.
TOGETHER = {
    "A": {"preset": "courtois", "positions": "rotary", "qk_norm": True, "mlp": "swiglu",
          "scale": "learned_per_head"},
    "B": {"preset": "gao", "positions": "relative", "norm_position": "post", "use_bias": True,
          "kv_heads": 1, "frozen": ("query", "key")},
    "C": {"preset": "kowsher", "positions": "alibi", "diagonal_mask": True, "norm": "rms",
          "output_projection": False},
    "D": {"tie": "K=V", "latent_dim": 4, "positions": "sinusoidal", "dtype": "bfloat16"},
    "E": {"tie": "Q=K", "adapters": {"query": "lowrank:2"}, "positions": "none",
          "positions_2d": True},
    "F": {"tie": "K=V", "scheme": "rotated", "positions": "rotary", "rotary_dims": 2,
          "rotary_base": 100.0, "window": 4, "tied_embedding": True},
    "G": {"scheme": "mla", "latent_dim": 4, "positions": "rotary", "rotary_dims": 2},
    "H": {"tie": "K=V", "scheme": "grouped_tied", "positions": "rotary"},
    "I": {"scheme": "low_rank", "kv_heads": 1, "latent_dim": 4},
    "J": {"tie": "Q=K", "scheme": "exclusive", "mlp": "none"},
    "K": {"latent_dim": 4, "latent_kind": "slice", "layers": 2,
          "value_residual": True},
    "L": {"latent_dim": 4, "latent_kind": "frozen"},
}  # fmt: skip


def test_every_option_runs_through_ablate(tmp_path):
    """Tuned, evaluated and judged, each option of configs/options.py in one arm or another."""
    given = [pair for model in TOGETHER.values() for pair in model.items()]
    for name, option in OPTIONS.items():
        assert all(pair in given for pair in option.items()), name
    arms = {"separate": {}} | {name: {"model": model} for name, model in TOGETHER.items()}
    study = get_config().to_dict() | {"arms": arms}
    study["model"] |= {"width": 8}
    study["train"] |= {"steps": 10, "report_every": 10}
    study["study"] |= {"eval_seeds": 1, "learning_rates": (0.01,)}
    file = tmp_path / "study.py"
    text = "from qkv_jax.config_files import tree\ndef get_config():\n    return tree({})\n"
    file.write_text(text.format(study))
    command = [sys.executable, "-m", "experiments.ablate", f"--config={file}"]
    command.append(f"--workdir={tmp_path / 'run'}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    runs = pd.read_csv(tmp_path / "run" / "runs.csv")
    assert set(runs["arm"]) == {"separate", "placebo", *TOGETHER}
    assert (runs["status"] == "done").all()
    assert (tmp_path / "run" / "report.html").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert f"All {len(runs)} runs are there already; tables and report are" in again.stdout
