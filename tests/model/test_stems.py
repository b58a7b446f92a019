"""Stems of the encoder: tokens of several fields, sizes at the start, patches of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.model.positions import EMBEDDING_STD
from qkv_jax.model.stems import PatchStem, TokenStem
from tests.support.untied import draw


def test_fields_of_a_token_add_up():
    stem = TokenStem((50,) * 3, 256)
    tokens = jax.random.randint(jax.random.key(1), (8, 16, 3), 0, 50)
    variables = stem.init(jax.random.key(0), tokens)
    tables = [variables["params"][f"field_{i}"]["embedding"] for i in range(3)]
    expected = sum(table[tokens[..., i]] for i, table in enumerate(tables))
    np.testing.assert_allclose(stem.apply(variables, tokens), expected, atol=1e-6)


def test_every_stem_starts_at_one_size():
    """Tokens of one field or three, patches of standardised images and the class token alike."""
    tokens = jax.random.randint(jax.random.key(1), (16, 16, 3), 0, 50)
    stems = {
        "one field": (TokenStem((50,), 256), tokens[..., 0]),
        "three fields": (TokenStem((50,) * 3, 256), tokens),
        "patches": (PatchStem(2, 256), draw(0, 16, 8, 8, 3)),
    }
    for name, (stem, inputs) in stems.items():
        out, _ = stem.init_with_output(jax.random.key(0), inputs)
        first = 1 if name == "patches" else 0  # the class token apart: 256 numbers scatter more
        assert out[:, first:].std() == pytest.approx(EMBEDDING_STD, rel=0.05), name
        assert out[:, 0].std() == pytest.approx(EMBEDDING_STD, rel=0.15), name


def test_patches_are_squares_of_the_image_row_by_row():
    """After the class token; under an identity projection each token is its patch's pixels."""
    stem, images = PatchStem(2, 12), draw(0, 2, 4, 6, 3)
    variables = stem.init(jax.random.key(0), images)
    patch = {"kernel": jnp.eye(12), "bias": jnp.zeros(12)}
    out = stem.apply({"params": variables["params"] | {"patch": patch}}, images)
    assert out.shape == (2, 1 + 2 * 3, 12)
    token = variables["params"]["class_token"]["embedding"][0, 0]
    for image, tokens in zip(images, out, strict=True):
        np.testing.assert_array_equal(tokens[0], token)
        for row, column in np.ndindex(2, 3):
            square = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_allclose(tokens[1 + 3 * row + column], square.ravel(), atol=1e-6)
