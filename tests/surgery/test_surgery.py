"""Ties imposed on trained layers: what is exact, what stands still, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.analysis.layers import Layer, heads, layer_weights
from qkv_jax.config import ConfigError
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.positions import rotate
from qkv_jax.model.stems import TokenStem
from qkv_jax.surgery import rotary
from qkv_jax.surgery.fit import InputMoments
from qkv_jax.surgery.impose import METHODS, check, impose, spread, tied
from qkv_jax.tie import Tie

pytestmark = pytest.mark.slow

D, N, H = 8, 2, 4
SEPARATE = Tie.parse("separate")
TURNS = rotary.Turns.of(6, H)


def layer(seed=0, biased=True):
    rng = np.random.default_rng(seed)
    kernels = [np.float32(rng.normal(size=(D, N, H))) for _ in range(3)]
    biases = [np.float32(biased * rng.normal(size=(N, H))) for _ in range(3)]
    out = np.float32(rng.normal(size=(N, H, D)))
    return Layer(SEPARATE, *kernels, out, *biases, np.float32(biased * rng.normal(size=D)))


def moments(seed=0, mean=1.0):
    tokens = np.random.default_rng(seed).normal(size=(400, D)) @ np.diag(np.arange(1, D + 1.0))
    return InputMoments.of(tokens + mean)


def attend(found, x, turned=lambda a: a):
    """What a layer gives for inputs [B, T, D], without scale; `turned` are rotary positions."""
    query, key, value = map(jnp.asarray, heads(found, jnp.float32(x)))
    query, key, value = (np.float64(a) for a in (turned(query), turned(key), value))
    scores = np.einsum("btnh,bsnh->bnts", query, key) / 10
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bnts,bsnh->btnh", weights, value)
    return np.einsum("btnh,nhd->btd", mixed, found.out) + found.out_bias


def inputs(seed=5):
    return np.random.default_rng(seed).normal(size=(2, 6, D)) + 1


def damage(found, old, turned=lambda a: a):
    now, then = (attend(each, inputs(), turned) for each in (found, old))
    return np.linalg.norm(now - then) / np.linalg.norm(then)


def rebased(old, seed=1, rotary=False):
    """The same function in another basis within each head."""
    rng = np.random.default_rng(seed)
    fields = {}
    a, b = (rng.normal(size=(N, H, H)) + 2 * np.eye(H) for _ in range(2))
    if rotary:  # what commutes with rotations: a complex number for each pair of coordinates
        real, imaginary = rng.normal(size=(2, N, 1, H // 2))
        real, imaginary = (part * np.eye(H // 2) for part in (real + 2, imaginary))
        a = np.block([[real, imaginary], [-imaginary, real]])
    for role, turns in (("query", a), ("key", np.linalg.inv(a).swapaxes(1, 2)), ("value", b)):
        fields[role] = np.float32(np.einsum("dnh,nhk->dnk", getattr(old, role), turns))
        bias = np.einsum("nh,nhk->nk", getattr(old, f"{role}_bias"), turns)
        fields[f"{role}_bias"] = np.float32(bias)
    fields["out"] = np.float32(np.einsum("nkh,nhd->nkd", np.linalg.inv(b), old.out))
    return old._replace(**fields)


@pytest.mark.parametrize("biased", [True, False])
def test_values_that_are_keys_in_another_basis_are_tied_without_damage(biased):
    """V = K A: K=V costs nothing after the change of basis, and without it very much."""
    turn = np.random.default_rng(3).normal(size=(N, H, H))
    old = layer(biased=biased)
    old = old._replace(
        value=np.float32(np.einsum("dnh,nhk->dnk", old.key, turn)),
        value_bias=np.float32(np.einsum("nh,nhk->nk", old.key_bias, turn)),
    )
    tie = Tie.parse("K=V")
    assert damage(impose(old, tie, "fit", moments()), old) < 2e-3
    assert damage(impose(old, tie, "average"), old) > 0.1


def test_symmetric_scores_are_tied_without_damage():
    """W_Q W_K' = P P' with queries and keys in different bases: Q=K costs nothing."""
    old = layer(biased=False)
    old = rebased(old._replace(key=old.query))
    assert np.abs(old.query - old.key).max() > 0.1
    assert damage(impose(old, Tie.parse("Q=K"), "fit", moments(mean=0.0)), old) < 2e-3


@pytest.mark.parametrize("tie", [str(t) for t in Tie.all()])
@pytest.mark.parametrize("method", ["average", "fit"])
def test_a_layer_that_has_the_tie_stays_what_it_is(tie, method):
    """Its matrices equal as the tie says: imposing the tie changes nothing."""
    once = impose(layer(biased=False), Tie.parse(tie), "average")
    twice = impose(once, Tie.parse(tie), method, moments(mean=0.0))
    assert damage(twice, once) < 5e-3


@pytest.mark.parametrize("tie", [str(t) for t in Tie.all()[1:]])
def test_every_tie_holds_after_it_was_imposed(tie):
    """Roles that share are the same numbers, and those that equal X are X."""
    tie = Tie.parse(tie)
    found = impose(layer(), tie, "fit", moments())
    roles = dict(zip("QKV", heads(found, jnp.float32(inputs())), strict=True))
    roles["X"] = inputs().reshape(2, 6, N, H)
    for group in tie.groups:
        for role in group[1:]:
            np.testing.assert_allclose(roles[group[0]], roles[role], atol=1e-4)


@settings(max_examples=15)
@given(st.sampled_from(["K=V", "Q=K", "Q=V", "Q=K=V", "V=X", "Q=X,K=V"]), st.integers(0, 100))
def test_the_fit_does_not_see_the_basis_within_heads(tie, seed):
    tie, old = Tie.parse(tie), layer(seed)
    one = impose(old, tie, "fit", moments())
    other = impose(rebased(old, seed + 1), tie, "fit", moments())
    np.testing.assert_allclose(attend(one, inputs()), attend(other, inputs()), rtol=0.02, atol=0.05)


@settings(max_examples=15)
@given(st.sampled_from(["K=V", "Q=K", "Q=V", "Q=K=V", "K=X"]), st.integers(0, 100))
def test_nor_the_bases_that_rotary_positions_leave(tie, seed):
    tie, old, other = Tie.parse(tie), layer(seed), rebased(layer(seed), seed + 1, rotary=True)
    np.testing.assert_allclose(
        attend(old, inputs(), rotate), attend(other, inputs(), rotate), atol=1e-2
    )
    one, other = (impose(each, tie, "fit", moments(), turns=TURNS) for each in (old, other))
    assert damage(other, one, rotate) < 0.02


def test_turns_are_the_mean_over_all_pairs_of_places():
    """||q R_o k'||^2 by the model's own rotation, at every two places of a sequence."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 3, H))
    turned = [np.asarray(rotate(jnp.tile(jnp.float32(m), (6, 1, 1)))) for m in (query, key)]
    scores = np.einsum("iah,jbh->ijab", *turned)
    expected = np.square(scores).sum((2, 3)).mean()
    assert TURNS.size(query, key) == pytest.approx(expected, rel=1e-5)


def test_turns_of_a_causal_model_are_those_of_keys_that_are_seen():
    """As above over the keys that are no later than the query, at another base; and the mean of
    R_o A R_o' itself, from queries to keys and back."""
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 3, H))
    turns, seen = rotary.Turns.of(6, H, 20.0, is_causal=True), np.tri(6, dtype=bool)
    turn = lambda m: np.asarray(rotate(jnp.tile(jnp.float32(m), (6, 1, 1)), base=20.0))
    scores = np.einsum("iah,jbh->ijab", turn(query), turn(key))
    expected = np.square(scores).sum((2, 3))[seen].mean()
    assert turns.size(query, key) == pytest.approx(expected, rel=1e-5)
    assert turns.back().size(key, query) == pytest.approx(expected, rel=1e-5)
    assert abs(turns.size(key, query) / expected - 1) > 0.01
    inner = rng.normal(size=(H, H))
    one = turn(np.eye(H))  # [place, unit vector, H]: row vectors, as queries and keys are
    pairs = [one[i] @ one[j].T for i in range(6) for j in range(i + 1)]
    for found, some in ((turns, pairs), (turns.back(), [pair.T for pair in pairs])):
        mean = np.mean([pair @ inner @ pair.T for pair in some], 0)
        np.testing.assert_allclose(found.mean(inner), mean, atol=1e-5)


@pytest.mark.parametrize("tie", ["K=V", "Q=V"])
def test_values_tied_to_what_is_rotated_lose_less_than_with_its_matrix_as_it_is(tie):
    """In another basis the values cost nothing; else alternation improves on where it starts."""
    shared = {"K=V": "key", "Q=V": "query"}[tie]
    tie = Tie.parse(tie)
    turn, old = np.random.default_rng(3).normal(size=(N, H, H)), layer()
    same = old._replace(
        value=np.float32(np.einsum("dnh,nhk->dnk", getattr(old, shared), turn)),
        value_bias=np.float32(np.einsum("nh,nhk->nk", getattr(old, f"{shared}_bias"), turn)),
    )
    assert damage(impose(same, tie, "fit", moments(), turns=TURNS), same, rotate) < 5e-3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("role", ["key", "query"])
def test_no_small_step_leads_away_from_what_is_fitted_through_rotations(causal, role):
    """Of the matrix that values share, be it that of keys or of queries, and of the one it faces;
    in a causal model over the keys that are seen."""
    key, query, moved = np.random.default_rng(1).normal(size=(3, D, H))
    turns = rotary.Turns.of(6, H, is_causal=causal)
    turns = turns if role == "key" else turns.back()
    found, faces = rotary.spanning(key, query, moved, turns)
    seen = np.tri(6) if causal else np.ones((6, 6))

    def lost(found, faces):
        out = np.linalg.lstsq(found, moved, rcond=None)[0]
        turned = lambda m: np.asarray(rotate(jnp.tile(jnp.float32(m), (6, 1, 1))))

        def scores(own, shared):
            of = (own, shared) if role == "key" else (shared, own)
            apart = np.einsum("iah,jbh->ijab", *map(turned, of))
            apart = apart if role == "key" else apart.swapaxes(2, 3)
            return apart * seen[:, :, None, None]

        share = np.sum((scores(faces, found) - scores(query, key)) ** 2)
        share /= np.sum(scores(query, key) ** 2)
        return share + np.sum((found @ out - moved) ** 2) / np.sum(moved**2)

    least = lost(found, faces)
    assert least < 0.8 * lost(key, query)
    rng = np.random.default_rng(2)
    for _ in range(50):
        steps = 0.02 * rng.normal(size=(2, D, H))
        assert lost(found + steps[0], faces + steps[1]) > least - 1e-4


def test_a_key_that_is_the_input_is_faced_through_rotations():
    """Where W_K is X in another basis that rotations leave, K=X costs the scores nothing."""
    own = np.eye(D, dtype=np.float32).reshape(D, N, H)
    old = layer(biased=False)._replace(key=own)
    old = rebased(old, rotary=True)
    assert np.abs(old.key - own).max() > 0.1
    found = impose(old, Tie.parse("K=X"), "fit", moments(mean=0.0), turns=TURNS)
    assert damage(found, old, rotate) < 5e-3


def test_heads_that_share_keys_are_fitted_together():
    """Two query heads read one key/value head, and V = K A: K=V costs nothing."""
    turn, old = np.random.default_rng(3).normal(size=(H, H)), layer(biased=False)
    key = old.key[:, :1].repeat(N, 1)
    old = old._replace(key=key, value=np.float32(key @ turn))
    found = impose(old, Tie.parse("K=V"), "fit", moments(mean=0.0), kv_heads=1)
    assert damage(found, old) < 2e-3
    assert (found.key[:, 0] == found.key[:, 1]).all() and (found.value == found.key).all()
    with_x = impose(old, Tie.parse("Q=X"), "fit", moments(mean=0.0), kv_heads=1)
    assert (with_x.key[:, 0] == with_x.key[:, 1]).all()


@pytest.mark.parametrize("tie", ["K=V", "Q=V", "Q=K", "V=X", "K=X", "K=V,Q=X", "Q=V,K=X"])
def test_no_other_shared_matrix_is_nearer(tie):
    """Of the error that the fit is said to minimise: random steps away from it only add to it."""
    tie, old = Tie.parse(tie), layer(2, biased=False)
    best = impose(old, tie, "fit", InputMoments(np.zeros(D), np.eye(D)))

    def error(query, key, value, out):
        total = 0.0
        for n in range(N):
            for now, then in (
                (query[:, n] @ key[:, n].T, old.query[:, n] @ old.key[:, n].T),
                (value[:, n] @ out[n], old.value[:, n] @ old.out[n]),
            ):
                total += np.sum((now - then) ** 2) / np.sum(then**2)
        return total

    rng = np.random.default_rng(0)
    found = {role: np.float64(getattr(best, role)) for role in ("query", "key", "value", "out")}
    least = error(**found)
    for _ in range(50):
        steps = {source: 0.02 * rng.normal(size=(D, N, H)) for source in ("query", "key", "value")}
        moved = {"out": found["out"] + 0.02 * rng.normal(size=(N, H, D))}
        for role, name in (("Q", "query"), ("K", "key"), ("V", "value")):
            source = tie.source(role)
            moved[name] = found[name] + (0 if source == "X" else steps[source])
        assert error(**moved) > least - 1e-4


def test_keeping_the_key_leaves_scores_as_they_were():
    old = layer()
    found = impose(old, Tie.parse("K=V"), "keep_key")
    assert (found.query == old.query).all() and (found.key == old.key).all()
    assert (found.value == old.key).all() and (found.value_bias == old.key_bias).all()


def encoder(**options):
    config = ModelConfig(**{"layers": 2, "width": D, "heads": N, "positions": "learned", **options})
    return Encoder(config, TokenStem((10,), D), 5, 6)


@pytest.mark.parametrize(
    ("tie", "kv_heads"),
    [("K=V", N), ("Q=K=V", N), ("V=X,Q=K", N), ("copies", N), ("K=V", 1), ("Q=X,K=V", 1)],
)
def test_the_tied_model_computes_what_was_imposed(tie, kv_heads):
    """Tied in one layer, with one leaf per source; the same function as with one leaf per role."""
    model = encoder(use_bias=True, kv_heads=kv_heads)
    tokens = jnp.arange(12).reshape(2, 6) % 10
    variables = model.init(jax.random.key(0), tokens)
    tie = Tie.parse(tie)
    old = layer_weights(model, variables)[1]
    edit = {1: impose(old, tie, "fit", moments(), kv_heads=kv_heads)}
    small, smaller = tied(model, variables, edit)
    assert small.config.ties == (SEPARATE, tie)
    attention = smaller["params"]["layer_1"]["attention"]
    assert {*attention} == {*tie.sources, "out"}
    one, other = small.apply(smaller, tokens), None
    wide, wider = spread(model, variables, edit)
    other = wide.apply(wider, tokens)
    np.testing.assert_allclose(one, other, atol=1e-4)
    fresh = jax.eval_shape(small.init, jax.random.key(0), tokens)
    assert jax.tree.structure(fresh) == jax.tree.structure(smaller)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, smaller)


@pytest.mark.parametrize(
    ("options", "tie", "method", "message"),
    [
        ({"kv_heads": 1}, "Q=K", "fit", "as many key/value heads as query heads, not 1 and 2"),
        ({"frozen": ("value",)}, "K=V", "fit", "frozen source 'value'"),
        ({"tie": "K=V", "scheme": "rotated", "positions": "rotary"}, "Q=K=V", "fit",
         "given 'scheme = rotated'; surgery knows tied and exclusive"),
        ({"tie": "Q=K", "adapters": {"query": "head"}}, "Q=K", "fit", "surgery knows none"),
        ({"qk_norm": True}, "K=V", "fit", "qk_norm = True"),
        ({"positions": "rotary", "rotary_dims": 0}, "K=V", "fit", "rotary_dims = 0"),
        ({"head_dim": 2}, "V=X", "fit", "needs a width of heads x head width, not 8"),
        ({}, "K=V", "mean", "method: given 'mean'; allowed: keep_query"),
        ({}, "K=V", "keep_query", "under K=V Q shares with no other role"),
        ({}, "K=V=X", "keep_key", "under K=V=X K shares with no other role"),
        ({"output_projection": False}, "K=V", "fit", "needs a model with an output projection"),
    ],
)
def test_what_cannot_be_is_refused(options, tie, method, message):
    from qkv_jax.model.adapters import Adapters

    if "adapters" in options:
        options = options | {"adapters": Adapters(**options["adapters"])}
    with pytest.raises(ConfigError) as refused:
        check(encoder(**options), Tie.parse(tie), (method,))
    assert message in str(refused.value)
    assert len(METHODS) == 5
