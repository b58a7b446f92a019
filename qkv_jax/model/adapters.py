"""Adapters: small learned maps, one per head, that tell apart roles which share a projection.

An adapter acts on projected heads [B, L, heads, H], after projection and bias, before norm and
positions; at the start it changes nothing, unless it is asked to. It is written as its name and,
after a colon, its argument (`"lowrank:4"`). A new one is a subclass of `Adapter` that is registered
by name (`@register_adapter("name")`); configs, costs and checkpoints then know it.
"""

import dataclasses
import re
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from qkv_jax import arguments
from qkv_jax.config import ConfigError, registers, settle
from qkv_jax.tie import SOURCE_NAMES, Tie


class Adapter(nn.Module):
    """Base of adapters: subclasses write `__call__`, and `check` if they take an argument.

    Its parameters do not decay, unless a leaf is named `kernel`.

    Attributes:
      argument: what the spec has after the colon; empty if there is none.
    """

    argument: str = ""

    usage: ClassVar[str] = ""  # how the spec is written, where an argument is possible

    @classmethod
    def check(cls, argument: str, head_dim: int) -> None:
        """Refuses an argument that cannot be.

        Raises:
          ValueError: with the reason.
        """
        if argument:
            raise ValueError("takes no argument")

    def __call__(self, heads: Float[Array, "B L heads H"]) -> Float[Array, "B L heads H"]:
        raise NotImplementedError


ADAPTERS: dict[str, type[Adapter]] = {}


def register_adapter(name: str):
    """Class decorator: makes an adapter known to configs by name."""
    return registers(ADAPTERS, name)


@register_adapter("diag")
class Diag(Adapter):
    """Scales each coordinate of each head (Kowsher et al. 2024): a vector [heads, H] of ones."""

    @nn.compact
    def __call__(self, heads):
        diagonal = self.param("diagonal", nn.initializers.ones, heads.shape[-2:])
        return heads * diagonal[None, None].astype(heads.dtype)


@register_adapter("head")
class Head(Adapter):
    """One matrix per head [heads, H, H] (F of Courtois et al. 2024, W^R of Gao & Xu 2026).

    The identity at first; `head:0.5` draws it from a normal distribution of that deviation.
    """

    usage = "head, head:STD"

    @classmethod
    def check(cls, argument, head_dim):
        if argument and not 0 < _number(argument, float) < float("inf"):
            raise ValueError("the standard deviation must be a number above 0")

    @nn.compact
    def __call__(self, heads):
        std = float(self.argument or 0.0)
        init = nn.initializers.normal(std) if std else _identity
        matrix = self.param("matrix", init, (*heads.shape[-2:], heads.shape[-1]))
        return jnp.einsum("blnh,nhg->blng", heads, matrix.astype(heads.dtype))


@register_adapter("lowrank")
class LowRank(Adapter):
    """y + (y A) B with A [heads, H, r] and B [heads, r, H], one pair per head; B is zero at first,
    so that it starts as the identity (the form of Hu et al. 2021)."""

    usage = "lowrank:RANK"

    @classmethod
    def check(cls, argument, head_dim):
        rank = _number(argument, int)
        if not 1 <= rank <= head_dim:
            raise ValueError(f"the rank must be from 1 to the head width, {head_dim}")

    @nn.compact
    def __call__(self, heads):
        num_heads, head_dim = heads.shape[-2:]
        fan_in = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        down = self.param("a", fan_in, (num_heads, head_dim, int(self.argument)))
        up = self.param("b", nn.initializers.zeros, (num_heads, int(self.argument), head_dim))
        hidden = jnp.einsum("blnh,nhr->blnr", heads, down.astype(heads.dtype))
        return heads + jnp.einsum("blnr,nrh->blnh", hidden, up.astype(heads.dtype))


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapter of each role, as text; an empty text is none.

    Raises:
      ConfigError: for an adapter that is not registered.
    """

    query: str = ""
    key: str = ""
    value: str = ""

    def __post_init__(self):
        settle(self)
        for role, spec in self.items():
            name = spec.partition(":")[0]
            if name not in ADAPTERS:
                allowed = ", ".join(cls.usage or name for name, cls in ADAPTERS.items())
                raise ConfigError(role, spec, f"allowed: {allowed}")
            if spec.endswith(":"):
                raise ConfigError(role, spec, "after the colon comes an argument")

    def items(self) -> list[tuple[str, str]]:
        """The roles (`query`, `key`, `value`) that have one, with its text."""
        specs = dataclasses.asdict(self).items()
        return [(role, spec) for role, spec in specs if spec]

    def where_shared(self, tie: Tie | str) -> "Adapters":
        """Those on roles that share under `tie`: what a layer of a schedule of ties uses."""
        tie = Tie.parse(tie)
        return Adapters(**{role: spec for role, spec in self.items() if _shares(tie, role)})

    def check(self, tie: Tie | str, head_dim: int) -> None:
        """Refuses adapters on roles that share with nobody, and arguments that cannot be.

        Raises:
          ConfigError: naming the role.
        """
        tie = Tie.parse(tie)
        arguments.whole("head_dim", head_dim, 1)
        for role, spec in self.items():
            name, _, argument = spec.partition(":")
            try:
                ADAPTERS[name].check(argument, head_dim)
            except ValueError as error:
                raise ConfigError(f"adapters.{role}", spec, str(error)) from None
            if not _shares(tie, role):
                allowed = f"under tie {tie} the {role} shares its source with no other role"
                raise ConfigError(f"adapters.{role}", spec, allowed)

    def make(self, role: str) -> Adapter:
        """The module of a role that has one.

        Raises:
          ConfigError: for one that has none.
        """
        specs = dict(self.items())
        if role not in specs:
            raise ConfigError("role", role, f"adapters are there for: {', '.join(specs) or 'none'}")
        name, _, argument = specs[role].partition(":")
        return ADAPTERS[name](argument=argument)


# Published schemes that are a tie and adapters.
PRESETS: dict[str, tuple[str, Adapters]] = {
    "courtois": ("Q=K", Adapters(query="head")),  # "pairwise", Courtois et al. 2024
    "gao": ("K=V", Adapters(key="head")),  # "keyless", Gao & Xu 2026
    "kowsher": ("Q=K=V", Adapters("diag", "diag", "diag")),  # Kowsher et al. 2024
}


def _shares(tie: Tie, role: str) -> bool:
    letter = next(letter for letter, name in SOURCE_NAMES.items() if name == role)
    return any(letter in group and len(group) > 1 for group in tie.groups)


def _identity(_key, shape, dtype=jnp.float32):
    return jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype), shape)


def _number(text: str, kind: type) -> float | int:
    """The number, or -1 for what is none in plain digits."""
    try:
        return kind(text) if re.fullmatch(r"[0-9.e+-]+", text) else -1
    except ValueError:
        return -1
