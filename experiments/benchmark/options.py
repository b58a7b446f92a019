"""The flags of all benchmarks."""

from absl import flags

from ..cli.paths import path_flag
from .sizes import SizesParser

REPEATS = flags.DEFINE_integer("repeats", 7, "Times each side is run.", lower_bound=3)
STEPS = flags.DEFINE_integer(
    "steps", 100, "Training steps of a block, at most; less where they are long.", lower_bound=10
)
PACKING = flags.DEFINE_integer("packing", None, "Replicas per device.", lower_bound=1)
SIZES = flags.DEFINE(
    SizesParser(), "sizes", None,
    "WIDTH/LENGTH/BATCH or WIDTH/LENGTH/BATCH/LAYERS, comma by comma, in place of the usual ones.",
)  # fmt: skip
CONTEXT = flags.DEFINE_integer("context", 8192, "Tokens in the cache of a row.", lower_bound=1024)
OUT = path_flag("out", "runs/benchmark", "Folder of the tables and figures.")
TORCH = path_flag(
    "torch", ".venv-benchmark/bin/python", "The Python of an environment with PyTorch and NumPy."
)
STUDY_CONFIG = path_flag("study_config", "smoke", "The study that `study` runs.")
