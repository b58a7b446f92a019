"""Schemes: all that makes queries, keys and values of X, and heads of the values; see `base`.

Each file beside it is one published variant, named in a config as `model.scheme`.
"""

from qkv_jax.model.schemes import exclusive, grouped_tied, latent, low_rank, rotated  # noqa: F401
from qkv_jax.model.schemes.base import SCHEMES, Scheme, register_scheme, scheme_class, scheme_name

__all__ = ["SCHEMES", "Scheme", "register_scheme", "scheme_class", "scheme_name"]
