"""Ties imposed on trained layers: what is exact, what stands still, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from qkv_jax.analysis.layers import Layer, heads, layer_weights
from qkv_jax.analysis.surgery.fit import Moments
from qkv_jax.analysis.surgery.impose import METHODS, check, impose, spread, tied
from qkv_jax.analysis.surgery.store import load_tied
from qkv_jax.config import ConfigError
from qkv_jax.model_config import ModelConfig
from qkv_jax.tie import Tie
from qkv_jax.transformer import Encoder, TokenStem

D, N, H = 8, 2, 4
SEPARATE = Tie.parse("separate")


def layer(seed=0, biased=True):
    rng = np.random.default_rng(seed)
    kernels = [np.float32(rng.normal(size=(D, N, H))) for _ in range(3)]
    biases = [np.float32(biased * rng.normal(size=(N, H))) for _ in range(3)]
    out = np.float32(rng.normal(size=(N, H, D)))
    return Layer(SEPARATE, *kernels, out, *biases, np.float32(biased * rng.normal(size=D)))


def moments(seed=0, mean=1.0):
    tokens = np.random.default_rng(seed).normal(size=(400, D)) @ np.diag(np.arange(1, D + 1.0))
    return Moments.of(tokens + mean)


def attend(found, x):
    """What a layer gives for inputs [B, T, D], without scale or positions."""
    query, key, value = (np.float64(a) for a in heads(found, jnp.float32(x)))
    scores = np.einsum("btnh,bsnh->bnts", query, key) / 10
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bnts,bsnh->btnh", weights, value)
    return np.einsum("btnh,nhd->btd", mixed, found.out) + found.out_bias


def inputs(seed=5):
    return np.random.default_rng(seed).normal(size=(2, 6, D)) + 1


def damage(found, old):
    x = inputs()
    return np.linalg.norm(attend(found, x) - attend(old, x)) / np.linalg.norm(attend(old, x))


def rebased(old, seed=1):
    """The same function in another basis within each head."""
    rng = np.random.default_rng(seed)
    fields = {}
    a, b = (rng.normal(size=(N, H, H)) + 2 * np.eye(H) for _ in range(2))
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


@pytest.mark.parametrize("tie", ["K=V", "Q=V", "Q=K", "V=X", "K=X"])
def test_no_other_shared_matrix_is_nearer(tie):
    """Of the error that the fit is said to minimise: random steps away from it only add to it."""
    tie, old = Tie.parse(tie), layer(2, biased=False)
    best = impose(old, tie, "fit", Moments(np.zeros(D), np.eye(D)))

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


@pytest.mark.parametrize("tie", ["K=V", "Q=K=V", "V=X,Q=K", "copies"])
def test_the_tied_model_computes_what_was_imposed(tie):
    """Tied in one layer, with one leaf a source; the same function as with a leaf a role."""
    model = encoder(use_bias=True)
    tokens = jnp.arange(12).reshape(2, 6) % 10
    variables = model.init(jax.random.key(0), tokens)
    tie = Tie.parse(tie)
    edit = {1: impose(layer_weights(model, variables)[1], tie, "fit", moments())}
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


@pytest.mark.parametrize(
    ("options", "tie", "method", "said"),
    [
        ({"kv_heads": 1}, "K=V", "fit", "as many key/value heads as query heads"),
        ({"tie": "Q=K", "adapters": {"query": "head"}}, "Q=K", "fit", "surgery knows none"),
        ({"qk_norm": True}, "K=V", "fit", "qk_norm = True"),
        ({"head_dim": 2}, "V=X", "fit", "needs a width of heads x head width, not 8"),
        ({}, "K=V", "mean", "--method: given 'mean'; allowed: keep_query"),
        ({}, "K=V", "keep_query", "under K=V Q shares with no other role"),
        ({}, "K=V=X", "keep_key", "under K=V=X K shares with no other role"),
        ({"output_projection": False}, "K=V", "fit", "needs a model with an output projection"),
    ],
)
def test_what_cannot_be_is_refused(options, tie, method, said):
    from qkv_jax.adapters import Adapters

    if "adapters" in options:
        options = options | {"adapters": Adapters(**options["adapters"])}
    with pytest.raises(ConfigError) as refused:
        check(encoder(**options), Tie.parse(tie), (method,))
    assert said in str(refused.value)
    assert len(METHODS) == 5


# --- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = small_models.write(tmp_path_factory.mktemp("surgery"))
    (folder / "lines").write_text("the cat sat\nsat on the mat\n" * 6)
    return folder


@pytest.fixture(scope="module")
def command(place):
    """`command(*flags)` gives exit code, stdout and stderr."""
    with small_models.server(place / "here") as run:
        yield lambda *flags: run("experiments.surgery", *flags)


def test_bad_input_to_the_command_is_one_line(command, place):
    for flags, line in [
        ([], "--run: given None; name one model: --run or --pretrained"),
        (["--run={none}"], "--run: given '{none}'; is no run of experiments.train: no config.json"),
        (["--run={run}", "--tie=separate"], "--tie: given 'separate'; ties nothing"),
        (["--run={run}", "--texts=a"], "--texts: given 'a'; is for --pretrained"),
        (["--run={run}", "--layers=2"], "--layers: given '2'; the model has layers 0 to 1"),
        (["--run={run}", "--method=mean"], "--method: given 'mean'; allowed: "
         + ", ".join(METHODS)),
        (["--run={run}", "--workdir={bare}"], "--workdir: given '{bare}'; holds files already; "
         "name a new folder"),
    ]:  # fmt: skip
        names = {path.name: str(path) for path in place.iterdir()}
        code, out, err = command(*(flag.format(**names) for flag in flags))
        assert (code, out, err) == (2, "", f"error: {line.format(**names)}\n")
    assert not list((place / "here").iterdir())


def test_a_run_is_tied_measured_trained_on_and_kept(command, place):
    """Every layer alone, all of them, and after training; the tied model comes back and is tied."""
    folder = place / "operated"
    code, out, err = command(
        f"--run={place / 'run'}", "--tie=K=V", "--method=fit", "--steps=10", f"--workdir={folder}"
    )
    assert (code, err) == (0, "") and "K=V imposed" in out
    found = pd.read_csv(folder / "surgery.csv", dtype={"layers": str}, keep_default_na=False)
    shown = found[["method", "layers", "trained"]].to_numpy().tolist()
    assert shown == [
        ["original", "", 0], ["fit", "0", 0], ["fit", "1", 0], ["fit", "all", 0],
        ["fit", "all", 10], ["original", "", 10],
    ]  # fmt: skip
    assert np.isfinite(found["test loss"]).all()
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "data:image/svg+xml" in page
    encoder, variables = load_tied(folder / "models" / "fit")
    assert [str(tie) for tie in encoder.config.ties] == ["K=V", "K=V"]
    attention = variables["params"]["layer_0"]["attention"]
    assert {*attention} == {"query", "key", "out"}
    assert encoder.apply(variables, jnp.zeros((1, 16), jnp.int32)).shape[0] == 1


def test_a_pretrained_model_loses_nothing_where_nothing_is_changed(command, place):
    folder = place / "pretrained"
    code, out, err = command(
        f"--pretrained={place / 'bert'}", f"--texts={place / 'lines'}", "--method=average",
        "--method=fit", f"--workdir={folder}",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = pd.read_csv(folder / "surgery.csv").set_index(["method", "trained"])
    change, cosine = "change of hidden states", "cosine of embeddings"
    assert found.loc[("original", 0), change].max() < 1e-5
    assert found.loc[("original", 0), cosine].min() > 0.9999
    whole = found[found["layers"] == "all"]
    assert whole.loc[("fit", 0), change] < whole.loc[("average", 0), change]
    encoder, variables = load_tied(folder / "models" / "average")
    assert {str(tie) for tie in encoder.config.ties} == {"K=V"}
