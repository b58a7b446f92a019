"""Tasks by name. Importing the package registers those that come with it."""

from collections.abc import Mapping
from typing import Any

from qkv_jax.config import ConfigError, build
from qkv_jax.tasks import (  # noqa: F401  (they register themselves)
    classification,
    images,
    listops,
    recall,
    relation,
    retrieval,
    sequences,
    text,
)
from qkv_jax.tasks.base import REGISTRY, Batch, Data, Outcome, Task, register

__all__ = ["REGISTRY", "Batch", "Data", "Outcome", "Task", "make_task", "register"]


def make_task(kind: str, options: Mapping[str, Any], prefix: str = "task") -> Task:
    """The registered task `kind` with the fields `options`; `prefix` is where a config has both.

    Raises:
      ConfigError: for an unknown kind or whatever the task refuses.
    """
    if kind not in REGISTRY:
        raise ConfigError(f"{prefix}.kind", kind, f"allowed: {', '.join(sorted(REGISTRY))}")
    return build(REGISTRY[kind], options, f"{prefix}.options")
