"""An arm resolved on one task: its program, widened to a budget, and which others are the same."""

import dataclasses
from typing import Any

from qkv_jax.config import ConfigError
from qkv_jax.study.record import Role
from qkv_jax.training import costs
from qkv_jax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class Arm:
    """An arm resolved on one task."""

    name: str
    role: Role
    trainer: Trainer
    salt: int = 0
    note: str = ""


def widen(arm: Arm, baseline: Arm, what: costs.Match) -> Arm:
    """The arm with its MLP widened to cost what the baseline does, if it is cheaper."""
    if what == "none":
        return arm
    widened, residual = costs.match(arm.trainer, baseline.trainer, what)
    if widened == arm.trainer:
        return arm
    note = f"MLP width {widened.model_config.mlp_width}: {residual:+.2%} {what} of the baseline"
    note = "; ".join(filter(None, (arm.note, note)))
    return dataclasses.replace(arm, trainer=widened, note=note)


def same_programs(arms: tuple[Arm, ...]) -> dict[str, str]:
    """{arm: the first arm that trains the very same}, of those that are not the first themselves.

    Read from the resolved configs, so that a default that is written out makes no difference.
    """
    first: dict[Any, str] = {}
    same = {}
    for arm in arms:
        model, train = arm.trainer.model_config, arm.trainer.train_config
        filled = {
            "preset": "", "tie": model.ties, "kv_heads": model.kv_heads or model.heads,
            "cross_tie": model.cross.ties if model.cross_tie else model.ties,
            "head_dim": model.head_width, "mlp_width": model.hidden,
            "scale": "sqrt" if model.scale == model.head_width**-0.5 else model.scale,
            "frozen": tuple(sorted({*model.frozen})),
        }  # fmt: skip
        fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)} | filled
        # The study gives the rate.
        key = (*fields.values(), dataclasses.replace(train, learning_rate=1.0), arm.salt)
        known = first.setdefault(key, arm.name)
        if known != arm.name:
            same[arm.name] = known
    return same




def traceable(trainer: Trainer) -> Trainer:
    """The trainer, with another implementation where this machine, which hands its runs to others,
    does not have its own: `check_platform` has asked for theirs."""
    try:
        trainer.check_platform()
    except ConfigError:
        model = dataclasses.replace(trainer.model_config, implementation="xla")
        return dataclasses.replace(trainer, model_config=model)
    return trainer
