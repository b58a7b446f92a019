"""The survey of a model: its figures are those of the functions on what the model computes, each
invariant to what it says or beside its null."""

import io

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from qkv_jax.analysis import attention_maps, circuits, geometry, nulls
from qkv_jax.analysis.layers import layer_weights, probe
from qkv_jax.config import ConfigError, build
from qkv_jax.model.config import ModelConfig
from qkv_jax.survey import texts as survey_texts
from qkv_jax.survey.activations import InputBatch, batch_size, gather
from qkv_jax.survey.measure import ALL, KEYS, beside, measure, movements, spectra
from qkv_jax.survey.quantities import HEAD, PAIRS, QUANTITIES
from qkv_jax.survey.remarks import number, remarks, select, table
from qkv_jax.survey.subjects import Subject
from qkv_jax.survey.survey import survey
from qkv_jax.survey.terminal import print_survey
from qkv_jax.tasks import make_task

pytestmark = pytest.mark.slow


def model(**options):
    """A small encoder with random weights, none of them zero or one, and some inputs."""
    config = build(ModelConfig, {"layers": 2, "width": 8, "heads": 2, **options})
    encoder = make_task("reverse", {"length": 6}, "task").encoder(config)
    draw = np.random.default_rng(0)
    inputs = jnp.asarray(draw.integers(0, 9, (12, 6)), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    weights = lambda leaf: jnp.float32(0.5 * draw.standard_normal(leaf.shape))
    return encoder, jax.tree.map(weights, shapes), inputs


def figures(encoder, variables, inputs, draws=0):
    rng = np.random.default_rng(0)
    flows = gather(encoder, variables, [InputBatch(inputs, len(inputs))], rng, 10_000)
    return measure(layer_weights(encoder, variables), flows, rng, draws)


def value(found, layer, head, quantity, roles):
    here = found[KEYS].eq([layer, str(head), quantity, roles]).all(axis=1)
    return found[here]["value"].item()


# --- the figures


@pytest.mark.parametrize("options", [{"use_bias": True}, {"tie": "K=V", "kv_heads": 1}])
def test_figures_are_those_of_the_functions_on_what_the_model_computes(options):
    """Queries, keys and values here come from the model's probes, not from its matrices."""
    encoder, variables, inputs = model(**options)
    found = figures(encoder, variables, inputs)
    layers, probed = layer_weights(encoder, variables), probe(encoder, variables, inputs)
    for number_of, (layer, seen) in enumerate(zip(layers, probed, strict=True)):
        x = np.asarray(seen.x).reshape(-1, 8)
        for head in (0, 1):
            clouds = dict(zip("QKV", (np.asarray(a)[:, :, head].reshape(-1, 4) for a in seen[1:4]),
                              strict=True)) | {"X": x}  # fmt: skip
            cut = clouds | {"X": x[:, 4 * head : 4 * head + 4]}
            kernels = {"Q": layer.query[:, head], "K": layer.key[:, head],
                       "V": layer.value[:, head]}  # fmt: skip
            at = lambda quantity, roles: value(found, number_of, head, quantity, roles)  # noqa: B023
            for one, other in PAIRS:
                pair = one + other
                expected = {
                    "cka": geometry.linear_cka(clouds[one], clouds[other]),
                    "norm_ratio": geometry.rms_ratio(clouds[other], clouds[one]),
                    "cosine": geometry.mean_cosine(cut[one], cut[other]),
                }
                if one != "X":
                    angles = geometry.principal_angles(kernels[one], kernels[other])
                    expected |= {
                        "overlap": geometry.subspace_overlap(kernels[one], kernels[other]),
                        "smallest_angle": np.degrees(angles.min()),
                        "weight_cosine": geometry.cosine(kernels[one], kernels[other]),
                    }
                for quantity, number_ in expected.items():
                    assert at(quantity, pair) == pytest.approx(number_, abs=2e-5)
            for role in "QKV":
                centred = clouds[role] - clouds[role].mean(0)
                rank = geometry.effective_rank(centred)
                assert at("effective_rank", role) == pytest.approx(rank, rel=1e-4)
            weights = np.asarray(seen.weights)[:, head : head + 1]
            for quantity, figure in (
                ("entropy", attention_maps.entropy),
                ("distance", attention_maps.distance),
                ("diagonal", attention_maps.diagonal),
            ):
                assert at(quantity, "QK") == pytest.approx(figure(weights).mean(), rel=1e-5)
            share = circuits.antisymmetric_share(kernels["Q"], kernels["K"])
            assert at("antisymmetric_share", "QK") == pytest.approx(share)
            copied = circuits.copying_score(kernels["V"], layer.out[head])
            assert at("copying", "OV") == pytest.approx(copied)
        whole = circuits.antisymmetric_share(layer.query.reshape(8, 8), layer.key.reshape(8, 8))
        assert value(found, number_of, ALL, "antisymmetric_share", "QK") == pytest.approx(whole)


def test_copies_are_copies():
    """Under Q=K=V=X every comparison says so, and its nulls say that chance would not."""
    found = figures(*model(tie="copies"), draws=20)
    expected = {"cka": 1, "cosine": 1, "overlap": 1, "weight_cosine": 1, "norm_ratio": 1,
                "smallest_angle": 0, "aligned_weight_cosine": 1}  # fmt: skip
    for quantity, number_ in expected.items():
        np.testing.assert_allclose(select(found, quantity, "QK")["value"], number_, atol=1e-5)
    np.testing.assert_allclose(select(found, "cosine", "XV")["value"], 1, atol=1e-6)
    assert (select(found, "antisymmetric_share", "QK")["value"] == 0).all()
    for quantity in ("cosine", "weight_cosine"):
        assert (select(found, quantity, "KV")["null_rotation_high"] < 0.999).all()
    assert (select(found, "antisymmetric_share", "QK")["null_random_low"] > 0.01).all()


def test_every_figure_is_invariant_or_beside_its_null():
    encoder, variables, inputs = model()
    start = figures(encoder, model()[1], inputs[::-1])
    found = beside(figures(encoder, variables, inputs, draws=20), start)
    assert set(found["quantity"]) == set(QUANTITIES)
    turned = found["invariant_to"] == ""
    nulls_of = [f"null_rotation_{end}" for end in ("mean", "low", "high")]
    assert found[turned][nulls_of].notna().all(axis=None)
    assert found[~turned][nulls_of].isna().all(axis=None)
    assert set(found[turned]["quantity"]) == {"cosine", "weight_cosine"}
    assert found["null_untrained"].notna().all()


def changed(variables, mix_qk, mix_v):
    """The same model in other bases: W_Q A, W_K A^-T, W_V C, C^-1 W_O in every head."""
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    for layer in (0, 1):
        path = f"layer_{layer}/attention"
        inverse = np.linalg.inv(mix_v)
        changes = {
            "query": lambda w: w @ mix_qk,
            "key": lambda w: w @ np.linalg.inv(mix_qk).T,
            "value": lambda w: w @ mix_v,
            "out": lambda w, inverse=inverse: np.einsum("gh,nhd->ngd", inverse, w),
        }
        for name, change in changes.items():
            leaf = f"{path}/{name}/kernel"
            flat[leaf] = jnp.float32(change(np.float64(flat[leaf])))
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


@pytest.mark.parametrize("kind", ["rotations", "any"])
def test_a_change_of_basis_that_leaves_the_model_leaves_what_is_said_to_be_invariant(kind):
    """And only that: what carries a null by rotation does change."""
    encoder, variables, inputs = model()
    rng = np.random.default_rng(1)
    mixes = [nulls.rotation(rng, 4) for _ in range(2)]
    if kind == "any":
        mixes = [mix @ np.diag([0.5, 1.0, 1.5, 2.0]) for mix in mixes]
    other = changed(variables, *mixes)
    np.testing.assert_allclose(
        encoder.apply(variables, inputs), encoder.apply(other, inputs), rtol=1e-3, atol=1e-3
    )
    before, after = figures(encoder, variables, inputs), figures(encoder, other, inputs)
    same = before["invariant_to"].isin([HEAD] if kind == "any" else [HEAD, QUANTITIES["cka"][2]])
    np.testing.assert_allclose(after["value"][same], before["value"][same], rtol=2e-3, atol=2e-3)
    for quantity in {"rotations": ("cosine", "weight_cosine"), "any": ("cka", "cosine")}[kind]:
        moved = select(after, quantity, "KV")["value"] - select(before, quantity, "KV")["value"]
        assert (moved.abs() > 1e-2).any()


def test_padding_and_rows_that_fill_a_batch_do_not_count():
    encoder, variables, inputs = model()
    valid = jnp.arange(6)[None, :] < jnp.array([6, 3, 5, 2])[:, None]
    batches = [
        InputBatch(inputs[:3], 3, valid[:3]),
        InputBatch(jnp.repeat(inputs[3:4], 3, 0), 1, jnp.repeat(valid[3:4], 3, 0)),
    ]
    rng = np.random.default_rng(0)
    together = gather(encoder, variables, batches, rng, 1000)
    alone = [
        gather(encoder, variables, [InputBatch(inputs[i : i + 1, :n], 1)], rng, 1000)
        for i, n in enumerate((6, 3, 5, 2))
    ]
    for layer, flow in enumerate(together):
        x = np.concatenate([part[layer].x for part in alone])
        np.testing.assert_allclose(flow.x, x, atol=1e-5)
        for name, means in flow.attention.items():
            queries = np.array([6, 3, 5, 2]) / 16
            expected = sum(s * part[layer].attention[name] for s, part in zip(queries, alone))  # noqa: B905
            np.testing.assert_allclose(means, expected, atol=1e-5)
            even = sum(s * part[layer].uniform[name] for s, part in zip(queries, alone))  # noqa: B905
            assert flow.uniform[name] == pytest.approx(even)
    few = gather(encoder, variables, batches, rng, 10)
    rows = {row.tobytes() for row in together[0].x}
    assert few[0].x.shape == (10, 8) and {row.tobytes() for row in few[0].x} <= rows


def test_long_inputs_come_in_small_batches():
    encoder, _, _ = model()
    assert batch_size(encoder, 16) == 32
    assert 1 <= batch_size(encoder, 2048) < 4
    assert batch_size(encoder, 100_000) == 1


def test_spectra_are_those_of_the_circuits():
    encoder, variables, _ = model()
    layers = layer_weights(encoder, variables)
    found = spectra(layers)
    for (layer, head, circuit), some in found.groupby(["layer", "head", "circuit"]):
        at = layers[layer]
        left, right = (
            (at.query, at.key) if circuit == "QK" else (at.value, at.out.transpose(2, 0, 1))
        )
        whole = np.float64(left[:, int(head)]) @ np.float64(right[:, int(head)]).T
        assert some["singular_value"].pow(2).sum() == pytest.approx(np.sum(whole**2))
        assert some["eigenvalue_real"].sum() == pytest.approx(np.trace(whole))
        assert some["eigenvalue_imaginary"].sum() == pytest.approx(0, abs=1e-9)


def test_movement_over_steps():
    """W_Q by a half, W_V not at all, V = X never; and the subspaces stay where they are."""
    encoder, variables, _ = model(tie="V=X")
    start = layer_weights(encoder, variables)
    later = tuple(layer._replace(query=1.5 * layer.query) for layer in start)
    found = movements({0: start, 7: later})
    moved = found[found["quantity"] == "movement"].set_index(["step", "layer", "roles"])["value"]
    for layer in (0, 1):
        assert moved[7, layer, "W_Q"] == pytest.approx(0.5)
        for step, role in ((0, "W_Q"), (7, "W_K"), (7, "W_V"), (7, "W_O")):
            assert moved[step, layer, role] == 0
    stayed = found[found["quantity"] == "overlap_with_start"]
    np.testing.assert_allclose(stayed["value"], 1)
    assert set(found["quantity"]) > {"antisymmetric_share", "copying"}


# --- what is said of them


def subject(encoder, variables, inputs, untrained=None, past=None):
    batches = [InputBatch(inputs, len(inputs))]
    return Subject("a [b]model", "12 examples", encoder, variables, batches, untrained, "itself",
                   past or {})  # fmt: skip


@pytest.mark.parametrize("columns", [80, 100])
def test_the_terminal_says_what_the_figures_say(columns):
    encoder, variables, inputs = model()
    past = {0: layer_weights(encoder, variables)}
    past[5] = tuple(layer._replace(key=2 * layer.key) for layer in past[0])
    shown = subject(encoder, variables, inputs, variables, past)
    found = survey(shown, seed=0, draws=10)
    console = Console(width=columns, record=True, file=io.StringIO())
    print_survey(console, shown, found)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= columns and "a [b]model" in text
    printed = " ".join(text.split())
    for line in remarks(found):
        assert line in printed.replace("• ", "")
    cka = select(found.figures, "cka", "XQ")
    assert f"Q {number(cka['value'].mean())} (" in printed
    above = (cka["value"] > cka["null_random_high"]).sum()
    assert f"{above} of 4 heads above that range" in printed
    assert "W_Q by 0.00, W_K by 1.00, W_V by 0.00" in printed
    rows = table(found.figures)
    assert rows[1][1].startswith(number(cka[cka["layer"] == 1]["value"].mean()))


def test_the_first_sentence_says_whether_there_are_copies():
    """Of X, or of each other, by construction or in effect; and none where there are none."""

    def first(tie, untrained=True):
        encoder, variables, inputs = model(tie=tie)
        start = variables if untrained else None
        return remarks(survey(subject(encoder, variables, inputs, start), seed=0, draws=5))[0]

    assert first("copies") == "Q, K and V are three copies of X: the model is built so."
    assert first("separate").startswith("Of Q, K and V, copies of X are none (linear CKA of all ")
    assert first("K=V").startswith("K and V are one, as the model is built; of Q, K and V, copies")
    said = first("Q=K=X", untrained=False)
    assert said.startswith("Q and K are X, as the model is built; of others, copies of X are none")
    assert " are one" not in said


def test_the_same_seed_gives_the_same_figures_and_another_other_nulls():
    encoder, variables, inputs = model()
    shown = subject(encoder, variables, inputs)
    first, again, other = (survey(shown, seed, draws=5).figures for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert (first["value"] == other["value"]).all()
    assert (first["null_random_mean"] != other["null_random_mean"])[
        first["quantity"] == "cka"
    ].all()
    assert first["null_untrained"].isna().all()


def test_numbers_are_written_plainly():
    assert [number(v) for v in (0.126, -0.126, -0.001, np.nan)] == ["0.13", "−0.13", "0.00", "–"]


# --- texts


def test_a_file_gives_its_lines(tmp_path):
    file = tmp_path / "texts"
    file.write_text("one\n\n  two \nthree\n")
    assert survey_texts.read_texts(file, 2) == {"line 1": "one", "line 3": "two"}
    file.write_bytes(b"one\n\xff\n")
    with pytest.raises(ConfigError, match=r"not UTF-8 at byte 4 \(line 2\)"):
        survey_texts.read_texts(file, 2)


def test_sentences_are_sentences():
    found = survey_texts.shakespeare_sentences(200, 0)
    assert len(set(found.values())) == 200
    assert found == survey_texts.shakespeare_sentences(200, 0)
    assert found != survey_texts.shakespeare_sentences(200, 1)
    for text in found.values():
        assert 6 <= len(text.split()) <= 30 and text[-1] in ".!?" and "[" not in text
