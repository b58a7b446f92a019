"""`rotated`: a cache of rotated keys that are values as well (DeepSeek-V4, 2026)."""

from qkv_jax.config import ConfigError
from qkv_jax.model.projections import QKV
from qkv_jax.model.schemes.base import Scheme, register_scheme


@register_scheme("rotated")
class Rotated(Scheme):
    """K=V under rotary positions with one kept tensor, the rotated key: it is read as it lies, as
    key and as value, and the output is turned back by the query's place,

        y_i = R_-i sum_j a_ij R_j v_j = sum_j a_ij R_(j-i) v_j,

    so that the value carries relative position. With the scheme `tied` the value of K=V is not
    rotated, and keys are rotated whenever they are read: another function. On coordinates that
    are not rotated (`rotary_dims`) the two agree.
    """

    beside_values = "values turn with the distance between tokens (the circuits are of distance 0)"

    @classmethod
    def check_config(cls, config) -> None:
        wrong = [tie for tie in config.ties if not tie.equates("K", "V")]
        if wrong:
            raise ConfigError("scheme", "rotated", f"needs K=V in every layer, not {wrong[0]}")
        if config.positions != "rotary":
            raise ConfigError("scheme", "rotated", "needs model.positions 'rotary'")
        if config.latent_dim:
            raise ConfigError("scheme", "rotated", "keeps keys, not a latent source")
        if config.adapters.key or config.adapters.value:
            given = dict(config.adapters.items())
            raise ConfigError("adapters", given, "keys are the values under scheme 'rotated'")

    def keep(self, projected, places=None):
        ((source, key),) = projected.kept.items()
        return projected._replace(kept={source: self._seen("key", key, places)})

    def roles(self, projected, places=None, key_places=None):
        query, key, value = self.heads(projected)
        return QKV(self._seen("query", query, places), key, value)

    def finish(self, heads, qkv, places, own):
        return self.rotated(heads, -places)
