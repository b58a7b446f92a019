"""The smallest study that is one, which tests vary by what they are about."""

from qkv_jax.study.plan import Study, tie_arms
from qkv_jax.study.run.engine import Engine
from qkv_jax.study.run.outcomes import write_tables
from qkv_jax.study.run.workdir import Workdir

SIZES = {"length": 6, "validation_examples": 32, "test_examples": 64}
TINY = {
    "name": "tiny",
    "model": {"layers": 1, "width": 8, "heads": 2},
    "train": {"steps": 8, "report_every": 4, "batch_size": 4},
    "arms": tie_arms("separate", "copies"),
    "tasks": {"reverse": {"kind": "reverse", "options": SIZES}},
    "study": {
        "protocol": "fixed",
        "learning_rates": (1e-3, 1e-2, 1e-1),
        "tune_seeds": 1,
        "eval_seeds": 5,
    },
}


def run(folder, values=TINY, listener=lambda event: None):
    """Starts or resumes a study; the engine."""
    study, workdir = Study(values), Workdir(folder)
    work = Engine(study, workdir, workdir.open(study.describe()), listener)
    work.run()
    write_tables(workdir)
    return work
