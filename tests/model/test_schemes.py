"""Each scheme is the formula that defines it, computed by hand in NumPy from the parameters alone,
with no method of the scheme. What decoding gives is then a matter of tests/model/test_cache.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.attention import MultiHeadAttention
from tests.support.attention_layers import drawn, objective
from tests.support.untied import assert_close, draw

HEADS, WIDTH, LENGTH = 4, 16, 5
X, PLACES = draw(1, 2, LENGTH, WIDTH), np.arange(LENGTH)
ROTARY = {"positions": "rotary"}
LATENT = {"latent_dim": 3}
MLA = {"scheme": "mla", "head_dim": 6, "rotary_dims": 4, **LATENT, **ROTARY}
sharing = pytest.mark.parametrize("kv_heads", [4, 2, 1])
values_apart_or_not = pytest.mark.parametrize("tie", ["separate", "K=V"])


def layer(tie, **options):
    return MultiHeadAttention(HEADS, tie, **options)


def turned(heads, places=PLACES):
    """Rotary positions as complex numbers: the first half is real, the second imaginary, and pair
    i of H/2 turns by place / 10000^(i / (H/2))."""
    half = heads.shape[-1] // 2
    angles = places[:, None] / 10_000 ** (np.arange(half) / half)
    pairs = (heads[..., :half] + 1j * heads[..., half:]) * np.exp(1j * angles)[None, :, None]
    return np.concatenate([pairs.real, pairs.imag], -1)


def as_they_are(heads):
    return heads


def beside(heads, shared):
    """Coordinates of each head, and then those that all heads share."""
    return np.concatenate([heads, np.repeat(shared, heads.shape[2], axis=2)], -1)


def normed(latent, scale):
    return latent / np.sqrt((latent**2).mean(-1, keepdims=True) + 1e-6) * scale


def per_query_head(heads):
    return np.repeat(heads, HEADS // heads.shape[2], axis=2)


def attended(query, key, value, is_causal):
    """softmax(Q K^T / sqrt(their width)) V."""
    key, value = per_query_head(key), per_query_head(value)
    scores = np.einsum("btnh,bsnh->bnts", query, key) / np.sqrt(query.shape[-1])
    exponents = np.exp(scores) * (np.tri(LENGTH) if is_causal else 1)
    return np.einsum("bnts,bsnh->btnh", exponents / exponents.sum(-1, keepdims=True), value)


def check(module, by_hand, finish=lambda heads, value: heads):
    """That the layer gives, causal and not, what attention over queries, keys and values by hand
    does. `by_hand` takes the parameters as leaves of one level, and a projection of X by name."""
    params = drawn(module, X)
    own = {name: np.float64([*leaf.values()][0]) for name, leaf in params.items()}
    project = lambda name, x=X: np.einsum("btd,dnh->btnh", x, own[name])
    query, key, value = by_hand(own, project)
    for is_causal in (False, True):
        heads = finish(attended(query, key, value, is_causal), per_query_head(value))
        expected = np.einsum("btnh,nhd->btd", heads, own["out"])
        assert_close(module.apply({"params": params}, X, is_causal=is_causal), expected)


@sharing
def test_rotated_values_are_the_rotated_keys_and_turned_back_where_they_are_read(kv_heads):
    """DeepSeek-V4: y_i = R_-i sum_j a_ij R_j v_j, one projection being key and value."""

    def by_hand(_, project):
        key = turned(project("key"))
        return turned(project("query")), key, key

    module = layer("K=V", scheme="rotated", num_kv_heads=kv_heads, **ROTARY)
    check(module, by_hand, lambda heads, _: turned(heads, -PLACES))


@pytest.mark.parametrize("tie, kv_heads", [("K=V", 4), ("K=V", 2), ("K=V", 1), ("Q=K=V", 4)])
def test_grouped_tied_keys_are_half_of_a_value_beside_a_rotary_half_of_all(tie, kv_heads):
    """Zadouri et al. 2025, section 3.3.2: of the tied state all is the value and the first half
    the first half of the key; the other half is turned, as that of the query is."""

    def by_hand(_, project):
        query, tied = project("query"), project("query" if tie == "Q=K=V" else "key")
        query = np.concatenate([query[..., :4], turned(query[..., 4:])], -1)
        return query, beside(tied[..., :4], turned(project("rotary"))), tied

    check(layer(tie, scheme="grouped_tied", num_kv_heads=kv_heads, head_dim=8, **ROTARY), by_hand)


@pytest.mark.parametrize("kind", ["learned", "frozen", "slice"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@values_apart_or_not
def test_latent_attention_reads_a_normed_latent_beside_a_rotary_key_of_all(tie, kv_heads, kind):
    """DeepSeek-V2, equations 9 to 19 without compressed queries: the norm is on the latent, of
    keys and values alike, and scores are divided by the root of both widths together."""

    def by_hand(own, project):
        latent = np.float64(X[..., :3]) if kind == "slice" else project("latent")[:, :, 0]
        latent = normed(latent, own["latent_norm"])
        key, value = project("key", latent), project("key" if tie == "K=V" else "value", latent)
        query = np.concatenate([project("query"), turned(project("query_rotary"))], -1)
        return query, beside(key, turned(project("rotary"))), value

    check(layer(tie, num_kv_heads=kv_heads, latent_kind=kind, **MLA), by_hand)


@pytest.mark.parametrize("positions, turn", [("none", as_they_are), ("rotary", turned)])
@values_apart_or_not
def test_low_rank_heads_are_shared_ones_and_a_residual_each(tie, positions, turn):
    """LRKV 2026: k_n = X W_key + X A_key,n B_key,n; values likewise, or the same under K=V."""

    def by_hand(own, project):
        raised = lambda low, name: np.einsum("bsnr,nrh->bsnh", low, own[f"{name}_raised"])
        whole = lambda name: project(name) + raised(project(f"{name}_low"), name)
        value = whole("key" if tie == "K=V" else "value")
        return turn(project("query")), turn(whole("key")), value

    options = {"scheme": "low_rank", "num_kv_heads": 1, "latent_dim": 2, "positions": positions}
    check(layer(tie, **options), by_hand)


@pytest.mark.parametrize("positions, turn", [("none", as_they_are), ("rotary", turned)])
@sharing
@values_apart_or_not
def test_exclusive_heads_leave_out_what_lies_along_the_own_value(tie, kv_heads, positions, turn):
    """XSA 2026: z = y - (y . v) v / |v|^2, v being what the query head reads of its own token."""

    def by_hand(_, project):
        value = project("key" if tie == "K=V" else "value")
        return turn(project("query")), turn(project("key")), value

    def without(heads, value):
        unit = value / np.linalg.norm(value, axis=-1, keepdims=True)
        return heads - (heads * unit).sum(-1, keepdims=True) * unit

    module = layer(tie, scheme="exclusive", num_kv_heads=kv_heads, positions=positions)
    check(module, by_hand, without)


@sharing
def test_exclusive_heads_are_orthogonal_to_the_own_value(kv_heads):
    """And those of the scheme `tied` are not."""
    for scheme in ("exclusive", "tied"):
        module = layer("separate", scheme=scheme, num_kv_heads=kv_heads, output_projection=False)
        params = drawn(module, X)
        value = np.einsum("btd,dnh->btnh", X, params["value"]["kernel"])
        for is_causal in (False, True):
            heads = module.apply({"params": params}, X, is_causal=is_causal)
            heads = heads.reshape(2, LENGTH, HEADS, -1)
            along = (heads * per_query_head(value)).sum(-1)
            assert np.allclose(along, 0, atol=1e-5) == (scheme == "exclusive")


@pytest.mark.parametrize("positions, turn", [("none", as_they_are), ("rotary", turned)])
@pytest.mark.parametrize("kind", ["learned", "frozen", "slice"])
@values_apart_or_not
def test_keys_and_values_are_projections_of_the_latent(tie, kind, positions, turn):
    """Which is a projection of X, or of a slice the first features of X themselves."""

    def by_hand(_, project):
        latent = np.float64(X[..., :3]) if kind == "slice" else project("latent")[:, :, 0]
        key, value = project("key", latent), project("key" if tie == "K=V" else "value", latent)
        return turn(project("query")), turn(key), value

    check(layer(tie, latent_kind=kind, num_kv_heads=2, positions=positions, **LATENT), by_hand)


def test_a_slice_has_no_matrix_and_reads_the_first_features_alone():
    """Whatever the others of a context are, not a bit changes; each of the first is felt."""
    module, context = layer("separate", latent_kind="slice", **LATENT), draw(2, 2, 7, 9)
    params = drawn(module, X, context)
    assert set(params) == {"query", "key", "value", "out"}
    run = lambda context: module.apply({"params": params}, X, context)
    np.testing.assert_array_equal(run(context), run(context.at[..., 3:].set(7)))
    for feature in range(3):
        assert np.abs(run(context.at[..., feature].set(7)) - run(context)).max() > 1e-3


@pytest.mark.parametrize("scheme", [{}, MLA], ids=["tied", "mla"])
@pytest.mark.parametrize("kind", ["learned", "frozen"])
def test_no_gradient_reaches_a_frozen_latent_and_it_alone(kind, scheme):
    """All other matrices learn, and so does what made X."""
    module = layer("separate", latent_kind=kind, **LATENT | scheme)
    params = drawn(module, X)
    of_params, of_x = jax.grad(objective(module), argnums=(0, 1))(params, X)
    still = {name for name, leaf in of_params.items() if not any(map(jnp.any, leaf.values()))}
    assert still == ({"latent"} if kind == "frozen" else set())
    plain = jax.grad(objective(module.clone(latent_kind="learned")), argnums=1)(params, X)
    assert_close(of_x, plain)
