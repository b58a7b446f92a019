"""Orbax checkpoints, of lone runs and of waves under way; and the one call that loads a model back.

A checkpoint is a tree of arrays (parameters, optimiser, step, seed, ...) and notes, which are JSON:
the curve so far and where the stream of data is. It is written in the background into a folder that
is renamed when it is whole, so that a crash leaves all of it or nothing.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as ocp_managers

from qkv_jax import arguments
from qkv_jax.config import ConfigError, build
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.seq2seq import Model
from qkv_jax.runtime import quiet
from qkv_jax.runtime.distributed import any_process, is_primary
from qkv_jax.tasks import make_task
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

Kept = Callable[[Sequence[int]], Collection[int]]
_NO_RUN = "is no run of experiments.train: no config.json"


class Checkpoints:
    """The checkpoints in a folder, by step; a context manager.

    Args:
      folder: where they are; made if it is not there.
      kept: which of the steps there (in order) are to stay when another was added. Whoever gives
        it is the one writer of the folder: what an earlier one left half written is removed.
    """

    def __init__(self, folder: str | os.PathLike, kept: Kept | None = None):
        self.folder = pathlib.Path(folder).absolute()
        if kept and is_primary() and self.folder.exists():
            for unfinished in self.folder.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(kept) if kept else ocp_managers.LatestN(n=None),
            enable_async_checkpointing=True,
            async_options=_patience(),
        )
        self._failed = False  # whether anything has: from then on late answers come at any time
        quiet.ORBAX.begin()
        try:
            self._manager = ocp.CheckpointManager(
                self.folder, item_names=("arrays", "notes"), options=options
            )
        except BaseException:
            quiet.ORBAX.end()
            raise

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, arrays: Any, notes: Any = None, step: int | None = None) -> None:
        """Starts to write a checkpoint, of the arrays' own step by default; waits for the one
        before. The arrays may be used up as soon as this returns; the notes must not be changed.

        Raises:
          OSError: if this one or the one before cannot be written, naming the folder.
        """
        step = int(arrays.step) if step is None else step
        with self._naming():
            self._manager.wait_until_finished()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes)
                ),
                force=True,
            )

    def wait(self) -> None:
        """Returns when all that was saved is on the disk.

        Raises:
          OSError: if it cannot be written, naming the folder.
        """
        with self._naming():
            self._manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The arrays at `step` (the last by default), with the shapes and types of `like`, on the
        devices that it names by its shardings, or on one; whatever devices they were saved from.
        NumPy arrays come back for NumPy arrays.

        Raises:
          ConfigError: if there is no such checkpoint.
        """
        step = max(self.steps, default=None) if step is None else step
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise ConfigError("checkpoint step", step, f"checkpoints there: {known}")
        arguments = ocp.args.StandardRestore(jax.tree.map(_target, like))
        with self._failing():
            return self._manager.restore(step, args=ocp.args.Composite(arrays=arguments)).arrays

    def notes(self, step: int) -> Any:
        """What was saved beside the arrays."""
        arguments = ocp.args.Composite(notes=ocp.args.JsonRestore())
        with self._failing():
            return self._manager.restore(step, args=arguments).notes

    def restore_last(self, like: Callable[[int], Any]) -> tuple[int, Any, Any] | None:
        """Step, arrays and notes of the newest checkpoint that is whole; None if there is none.

        Newer ones that are not (a file cut off or missing, other shapes) are removed, with a line
        on stderr for each: the run comes to their steps again.

        Args:
          like: the arrays that are expected at a step, as for `restore`.

        Raises:
          ConfigError: if there are checkpoints and none is whole; they stay as they are.
        """
        with quiet.threads():
            return self._restore_last(like)

    def _restore_last(self, like: Callable[[int], Any]) -> tuple[int, Any, Any] | None:
        broken: dict[int, str] = {}
        for step in reversed(self.steps):
            found = None
            try:
                found = step, self.restore(like(step), step), self.notes(step)
            except Exception as error:  # what Orbax raises depends on what is broken
                broken[step] = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            if not any_process(found is None):
                self._remove(broken)
                return found
            broken.setdefault(step, "another process cannot read it")
        if not broken:
            return None
        listed = "; ".join(f"step {step}: {reason}" for step, reason in broken.items())
        allowed = f"none of the checkpoints there can be restored ({listed}); nothing was changed"
        raise ConfigError("checkpoints", str(self.folder), allowed[:600])

    def _remove(self, broken: dict[int, str]) -> None:
        for step, reason in broken.items():
            if is_primary():
                line = f"checkpoint {self.folder / str(step)} is skipped and removed: {reason}"
                print(f"warning: {line}", file=sys.stderr)
            self._manager.delete(step)

    def keep_only(self, steps: Collection[int]) -> None:
        """Removes all other checkpoints."""
        for step in set(self.steps).difference(steps):
            self._manager.delete(step)

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          OSError: if it cannot be written, naming the folder.
        """
        with self._naming():
            self._manager.close()
        if not self._failed:
            quiet.ORBAX.end()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Notes a failure."""
        try:
            yield
        except Exception:
            self._failed = True
            raise

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """What the system says of a write as an OSError, whoever wraps it."""
        try:
            with self._failing():
                yield
        except OSError as error:
            where = error.filename or self.folder
            code = error.errno or errno.ETIMEDOUT  # Orbax's own TimeoutError has none
            raise OSError(code, os.strerror(code), str(where)) from None
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's way
            if not code:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(self.folder)) from None


_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of folders that are not yet whole


class _Kept(ocp_managers.PreservationPolicy):
    """`Kept` as Orbax asks for it."""

    def __init__(self, kept: Kept):
        self._kept = kept

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = set(self._kept(sorted(info.step for info in checkpoints)))
        return [info.step in kept for info in checkpoints]


def _target(leaf: Any) -> Any:
    """What Orbax is told of an array to be restored."""
    if not hasattr(leaf, "sharding"):
        return leaf
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or here)


def _patience() -> ocp.AsyncOptions | None:
    """How long a save may take. Orbax measures by a clock that may be set, ten minutes by default;
    where no other process has to be waited for, it need not give up."""
    return ocp.AsyncOptions(timeout_secs=10**9) if jax.process_count() == 1 else None


def trainer_of(values: dict[str, Any]) -> Trainer:
    """The program that a run's config describes: `task`, `model`, `train`; and `mesh`, if any.

    Raises:
      ConfigError: naming the field, for anything that cannot be run.
    """
    task = values["task"]
    mesh = build(MeshConfig, values.get("mesh") or {}, "mesh")
    return Trainer(
        build(ModelConfig, values.get("model", {}), "model"),
        make_task(task.get("kind"), task.get("options", {}), "task"),
        build(TrainConfig, values.get("train", {}), "train"),
        "by_leaf" if mesh.is_given else "joined",
    )


def run_steps(folder: pathlib.Path) -> list[int]:
    """The steps that a run of `experiments.train` has checkpoints of.

    Raises:
      ConfigError: if there is none.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError("run", str(folder), _NO_RUN)
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    steps = sorted(int(name) for name in names if name.isdecimal())
    if not steps:
        raise ConfigError("run", str(folder), "holds no checkpoint")
    return steps


def run_trainer(folder: pathlib.Path) -> Trainer:
    """What a run in a folder trains: task, model and hyperparameters.

    Raises:
      ConfigError: if its config.json cannot be read, or says what cannot be run; or if there are no
        checkpoints beside it.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        allowed = f"its config.json cannot be read: {error.strerror}"
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            allowed = _NO_RUN
        if (folder / "study.json").exists():
            allowed = "is a study's folder; name a run of experiments.train"
        raise ConfigError("run", str(folder), allowed) from None
    except (ValueError, RecursionError) as error:
        damage = f"{type(error).__name__}: {error}"
        raise ConfigError("run", str(folder), f"its config.json is damaged: {damage}") from None
    if not (folder / "checkpoints").is_dir():
        raise ConfigError("run", str(folder), "holds no checkpoints")
    try:
        return trainer_of(values)
    except ConfigError as error:
        damage = str(error)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        damage = f"{type(error).__name__}: {error}"
    raise ConfigError("run", str(folder), f"its config.json is damaged: {damage}")


def encoder_trainer(folder: pathlib.Path) -> Trainer:
    """The same, for those who look into the layers of an `Encoder`.

    Raises:
      ConfigError: `run`, for a run of an encoder-decoder as well.
    """
    trainer = run_trainer(folder)
    if not isinstance(trainer.model, Encoder):
        what = "is of an encoder-decoder, and models with cross-attention are not measured"
        raise ConfigError("run", str(folder), what)
    return trainer


def load_run(workdir: str | os.PathLike, step: int | None = None) -> tuple[Model, dict]:
    """The model of a run of `experiments.train`: `encoder.apply(variables, inputs)`.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the last by default, 0 is the untrained model.

    Raises:
      ConfigError: if the folder holds no run or no such checkpoint, or if one of the two is
        damaged, naming the folder.
    """
    folder = arguments.path("run", workdir)
    if step is not None:
        step = arguments.whole("step", step)
    trainer = run_trainer(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        found = max(checkpoints.steps, default=None) if step is None else step
        if found is None:
            raise ConfigError("run", str(folder), "holds no checkpoint")
        like = jax.eval_shape(lambda: trainer.init(0, 0.0))
        try:
            with quiet.threads():
                state = checkpoints.restore(like, found)
        except ConfigError:
            raise
        except Exception as error:  # what Orbax raises depends on what is broken
            what = error.args[0] if isinstance(error, KeyError) and error.args else error
            problem = f"the checkpoint of step {found} cannot be read"
            allowed = f"{problem} (damaged, or written by another version): {what}"
            raise ConfigError("run", str(folder), " ".join(allowed.split())[:300]) from None
    return trainer.model, {"params": state.params}
