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

_LIMIT = 2**31  # arrays count in 32 bits

__all__ = ["REGISTRY", "Batch", "Data", "Outcome", "Task", "make_task", "register"]


def make_task(kind: str, options: Mapping[str, Any], prefix: str = "task") -> Task:
    """The registered task `kind` with the fields `options`; `prefix` is where a config has both.

    Raises:
      ConfigError: for an unknown kind or whatever the task refuses.
    """
    if not isinstance(kind, str) or kind not in REGISTRY:
        raise ConfigError(f"{prefix}.kind", kind, f"allowed: {', '.join(sorted(REGISTRY))}")
    if isinstance(options, Mapping):
        for name, value in options.items():
            if isinstance(value, int) and value >= _LIMIT and not str(name).endswith("_bytes"):
                raise ConfigError(f"{prefix}.options.{name}", value, f"must be below {_LIMIT}")
    return build(REGISTRY[kind], options, f"{prefix}.options")
