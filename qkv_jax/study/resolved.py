"""The configs that a study's programs were built from, defaults and all, as study.json keeps them.

A config file states what differs from the defaults; what was trained depends on the defaults as
well. So the resolved configs are kept, and a study goes on with those alone.
"""

import json
from collections.abc import Mapping, Sequence

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.runtime.files import json_text
from qkv_jax.study.record import Change, Config, StudyRecord, TaskRecord
from qkv_jax.training.step import Trainer


def describe_resolved(trainers: Mapping[str, Trainer]) -> dict[str, Config]:
    """{arm: config}: of the first arm all of it, of every other what differs from the first's.

    The learning rate is not in it: a study gives each run its own.
    """
    full = {name: _config(trainer) for name, trainer in trainers.items()}
    first, *others = full
    found = {first: full[first]}
    for name in others:
        found[name] = {
            part: {f: value for f, value in fields.items() if value != full[first][part][f]}
            for part, fields in full[name].items()
        }
    return found


def resolved_config(task: TaskRecord, arm: str) -> Config:
    """The whole config of an arm on a task that has kept them."""
    first, own = task.resolved[task.arms[0]], task.resolved[arm]
    return {part: fields | own[part] for part, fields in first.items()}


def changes(known: StudyRecord, asked: StudyRecord) -> list[Change]:
    """What two records of the same study do not agree on, of the fields that both know: one that
    a later version has added stands for what the earlier one did without it."""
    found = []
    for name, task in known.tasks.items():
        for arm in task.arms if task.resolved is not None else ():  # from before they were kept
            before = resolved_config(task, arm)
            now = json.loads(json_text(resolved_config(asked.tasks[name], arm)))
            found += [
                Change(f"tasks.{name}, arm {arm!r}: {part}.{field}", value, now[part][field])
                for part, fields in before.items()
                for field, value in fields.items()
                if field in now[part] and now[part][field] != value
            ]
    return found


def refuse_changes(found: Sequence[Change]) -> None:
    """Refuses to go on with other programs than those that a study was started with.

    Raises:
      ConfigError: naming the first field.
    """
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        allowed = (
            f"was {first.before!r} when this study was started{more}: another default or version; "
            "set it back, name another folder, or go on with both under accept_changes"
        )
        raise ConfigError(first.field, first.now, allowed)


def _config(trainer: Trainer) -> Config:
    train = as_dict(trainer.train_config)
    del train["learning_rate"]
    return {"model": as_dict(trainer.model_config), "train": train}
