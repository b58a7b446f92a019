"""The configs that a study's programs were built from, defaults and all, as study.json keeps them.

A config file states what differs from the defaults; what was trained depends on the defaults as
well. So the resolved configs are kept, and a study goes on with those alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qkv_jax.config import ConfigError, as_dict
from qkv_jax.runtime.files import json_text
from qkv_jax.training.step import Replica

Config = dict[str, dict[str, Any]]  # {"model": fields of ModelConfig, "train": of TrainConfig}


class Change(NamedTuple):
    """A field that is resolved to something else than when the study was started."""

    field: str
    before: Any
    now: Any


def describe_resolved(replicas: Mapping[str, Replica]) -> dict[str, Config]:
    """{arm: config}: of the first arm all of it, of every other what differs from the first's.

    The learning rate is not in it: a study gives each run its own.
    """
    full = {name: _config(replica) for name, replica in replicas.items()}
    first, *others = full
    found = {first: full[first]}
    for name in others:
        found[name] = {
            part: {f: value for f, value in fields.items() if value != full[first][part][f]}
            for part, fields in full[name].items()
        }
    return found


def resolved_config(task: Mapping[str, Any], arm: str) -> Config:
    """The whole config of an arm on a task of study.json."""
    resolved = task["resolved"]
    first = resolved[task["arms"][0]]
    return {part: fields | resolved[arm][part] for part, fields in first.items()}


def changes(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Change]:
    """What two records of the same study do not agree on, of the fields that both know: one that
    a later version has added stands for what the earlier one did without it."""
    asked = json.loads(json_text(asked["tasks"]))
    found = []
    for name, task in known["tasks"].items():
        if "resolved" not in task:  # from before they were kept
            continue
        for arm in task["arms"]:
            before, now = resolved_config(task, arm), resolved_config(asked[name], arm)
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
        field, before, now = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        allowed = (
            f"was {before!r} when this study was started{more}: another default or version; set "
            "it back, name another folder, or go on with both under accept_changes"
        )
        raise ConfigError(field, now, allowed)


def _config(replica: Replica) -> Config:
    train = as_dict(replica.config)
    del train["learning_rate"]
    return {"model": as_dict(replica.model), "train": train}
