"""What faults.py runs, and what must be equal of the folders that it leaves behind."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import numpy as np
import pandas as pd
from tensorboardX.proto.event_pb2 import Event

from qkv_jax.runtime.files import LOCK
from qkv_jax.study.results import load_study
from qkv_jax.training.checkpoint import Checkpoints, trainer_of

TRAIN_CONFIG = """
from configs import train


def get_config():
    config = train.get_config()
    config.task.options = {{
        "files": ({text!r},), "length": 8, "device_limit_bytes": 1,
        "validation_examples": 4, "test_examples": 4,
    }}
    config.model.update(layers=1, width=8, heads=2, tie="K=V")
    config.train.update(steps=12, report_every=2, batch_size=4)
    config.update(checkpoint_steps=(4,), checkpoint_every=2, checkpoints_kept=2)
    return config
"""
STUDY_CONFIG = """
from qkv_jax.config_files import tree
from qkv_jax.study.plan import tie_arms


def get_config():
    small = {{"length": 6, "validation_examples": 32, "test_examples": 64}}
    return tree({{
        "name": "faults",
        "model": {{"layers": 1, "width": 8, "heads": 2}},
        "train": {{"steps": 6, "report_every": 2, "batch_size": 4}},
        "arms": tie_arms("separate", "K=V"),
        "tasks": {{"reverse": {{"kind": "reverse", "options": small}}}},
        "study": {{"protocol": "fixed", "learning_rates": (3e-3, 1e-2), "tune_seeds": 1,
                   "eval_seeds": 3}},
    }})
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that writes into a folder, and what must be equal when it has ended."""

    name: str
    module: str
    config: pathlib.Path

    def command(self, folder: pathlib.Path, *more: str) -> list[str]:
        flags = (f"--config={self.config}", f"--workdir={folder}", "--checkpoint_minutes=0")
        return [self.module, *flags, *more]

    def progress(self, folder: pathlib.Path) -> list[str]:
        """What is safe in the folder: it must never become less."""
        if self.name == "train":
            steps = _numbers(folder / "checkpoints")
            return [str(step) for step in steps[-1:]]
        file = folder / "runs.csv"
        return file.read_text().splitlines(keepends=True)[1:] if file.exists() else []

    def kept(self, before: list[str], after: list[str]) -> bool:
        if self.name == "train":
            return not before or bool(after) and int(after[0]) >= int(before[0])
        whole = [line for line in before if line.endswith("\n")]
        return after[: len(whole)] == whole


def _numbers(folder: pathlib.Path) -> list[int]:
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def print_of(folder: pathlib.Path) -> dict[str, str]:
    """What must be equal, by name: the files there are, and their content but for times."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if file.name == LOCK:  # of a process that was killed when all was done; it holds nothing
            continue
        if ".tfevents." in name:
            found[f"{name.partition('.tfevents.')[0]}"] = _hash(events_of(file.read_bytes()))
        elif name.startswith("checkpoints/") and folder.joinpath("result.json").exists():
            continue  # of Orbax: read below
        else:
            found[name] = _hash(_timeless(name, file))
    if (folder / "result.json").exists():
        found |= _checkpoints(folder)
    return found


def _timeless(name: str, file: pathlib.Path) -> object:
    if name == "runs.csv":
        return load_study(file.parent).runs.drop(columns="seconds").to_csv()
    if name == "summary.csv":
        return pd.read_csv(file).drop(columns=["step_time_ratio", "step_time_noise"]).to_csv()
    if name == "study.json":
        record = json.loads(file.read_text())
        return {key: record[key] for key in ("looks", "complete", "config", "tasks", "wave")}
    if name.startswith(("report", "figures/")):
        return None  # they show seconds
    return file.read_bytes()


def events_of(content: bytes) -> list[tuple[int, str, float]]:
    """What TensorBoard reads in a file: (step, tag, value)."""
    found, place = [], 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def _checkpoints(folder: pathlib.Path) -> dict[str, str]:
    trainer = trainer_of(json.loads((folder / "config.json").read_text()))
    shapes = jax.eval_shape(lambda: trainer.init(0, 0.0))
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    found = {}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step in checkpoints.steps:
            arrays, notes = checkpoints.restore(like, step), checkpoints.notes(step)
            curve = [{**row, "time": 0} for row in notes["curve"]]
            leaves = [leaf.tobytes() for leaf in jax.tree.leaves(arrays)]
            found[f"checkpoints/{step}"] = _hash([leaves, curve, notes["stream"]])
    others = {path.name for path in (folder / "checkpoints").iterdir()} - set(
        map(str, _numbers(folder / "checkpoints"))
    )
    return found | {f"checkpoints/{name}": "left over" for name in others}


def _hash(value: object) -> str:
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()
