"""Who sees whom: `visible` makes every mask, from places and from what else hides a key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from qkv_jax import arguments
from qkv_jax.arrays import require_array

PADDING = "padding [B, S] is mask[:, None, None, :], and numbers to be added are a bias"


def places_within(documents: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The place of each token in its own document; a row's documents lie one after the other."""
    require_array("documents", documents, "B T", "int", {})
    here = jnp.arange(documents.shape[1])[None]
    begins = jnp.pad(documents[:, 1:] != documents[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return here - jax.lax.cummax(jnp.where(begins, here, 0), axis=1)


def visible(
    queries: Int[Array, "#B T"],
    keys: Int[Array, "#B S"],
    *,
    is_causal: bool = False,
    window: int | None = None,
    valid: Bool[Array, "#B S"] | None = None,
    documents: tuple[Int[Array, "#B T"], Int[Array, "#B S"]] | None = None,
    hide_self: bool = False,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
) -> Bool[Array, "#B #N #T #S"] | None:
    """The mask, true where a query may look; None where nothing is hidden.

    Args:
      queries, keys: their places.
      is_causal: hides keys at later places than the query's.
      window: hides keys that are that many places away, or more, to either side.
      valid: true at keys that are tokens; the others are padding.
      documents: of each query and of each key, where several are packed into one sequence; hides
        the keys of the others.
      hide_self: hides the key at the query's own place, for scores that are largest with oneself,
        as under Q=K (Kitaev et al. 2020, Reformer). A query that sees none but itself goes on
        seeing itself.
      mask: another mask to be joined.
    """
    sizes: dict[str, int] = {}
    require_array("queries", queries, "#B T", "int", sizes)
    require_array("keys", keys, "#B S", "int", sizes)
    arguments.truth("is_causal", is_causal)
    arguments.truth("hide_self", hide_self)
    there, here = keys[:, None, None, :], queries[:, None, :, None]
    parts = []
    if mask is not None:
        require_array("mask", mask, "#B #N #T #S", "bool", sizes, PADDING)
        parts.append(mask)
    if valid is not None:
        require_array("valid", valid, "#B S", "bool", sizes)
        parts.append(valid[:, None, None, :])
    if documents is not None:
        of_queries, of_keys = documents
        require_array("documents", of_queries, "#B T", "int", sizes)
        require_array("documents", of_keys, "#B S", "int", sizes)
        parts.append(of_keys[:, None, None, :] == of_queries[:, None, :, None])
    if is_causal:
        parts.append(there <= here)
    if window is not None:
        arguments.whole("window", window, 1)
        parts.append(jnp.abs(there - here) < window)
    seen = None
    for part in parts:
        seen = part if seen is None else seen & part
    if not hide_self:
        return seen
    own = there == here
    seen = jnp.ones_like(own) if seen is None else seen
    others = seen & ~own
    return jnp.where(others.any(-1, keepdims=True), others, seen)
