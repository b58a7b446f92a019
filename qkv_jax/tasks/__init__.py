"""Tasks by name. Importing the package registers those that come with it."""

from collections.abc import Mapping
from typing import Any

from qkv_jax.config import ConfigError, build, nearest
from qkv_jax.tasks.base import REGISTRY, Batch, Data, Outcome, Task, register
from qkv_jax.tasks.generated import (  # noqa: F401  (they register themselves)
    induction,
    listops,
    mqar,
    recall,
    relation,
    retrieval,
    sequences,
)
from qkv_jax.tasks.images import published, task  # noqa: F401  (they register themselves)
from qkv_jax.tasks.text import (  # noqa: F401  (they register themselves)
    causal,
    causal_symbols,
    classification,
    masked,
    translation,
)

# Kinds that were, and what says the same now.
_GONE = {
    "cifar": "say kind 'images' with options dataset='uoft-cs/cifar10', image_column='img' and "
    "augment='crop_flip' (uoft-cs/cifar100: label_column='fine_label' as well)",
}
_LIMIT = 2**31  # arrays count in 32 bits

__all__ = ["REGISTRY", "Batch", "Data", "Outcome", "Task", "make_task", "options_class", "register"]


def options_class(entry: Mapping[str, Any]) -> type[Task]:
    """What the options of an entry `{"kind": …, "options": …}` are fields of.

    Raises:
      ConfigError: for an unknown kind.
    """
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in REGISTRY:
        allowed = _GONE.get(str(kind)) or nearest(str(kind), sorted(REGISTRY))
        raise ConfigError("kind", kind, allowed)
    return REGISTRY[kind]


def make_task(kind: str, options: Mapping[str, Any], prefix: str = "task") -> Task:
    """The registered task `kind` with the fields `options`; `prefix` is where a config has both.

    Raises:
      ConfigError: for an unknown kind or whatever the task refuses.
    """
    try:
        cls = options_class({"kind": kind})
    except ConfigError as error:
        raise error.under(prefix) from None
    if isinstance(options, Mapping):
        for name, value in options.items():
            if isinstance(value, int) and value >= _LIMIT and not str(name).endswith("_bytes"):
                raise ConfigError(f"{prefix}.options.{name}", value, f"must be below {_LIMIT}")
    return build(cls, options, f"{prefix}.options")
