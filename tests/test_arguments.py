"""What may stand for a number."""

import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax import arguments
from qkv_jax.config import ConfigError


@pytest.mark.parametrize("kind", [np.array, jnp.array])
def test_a_number_in_an_array_of_no_axes_is_whole_if_it_is(kind):
    """1.5 would have been 1."""
    assert arguments.whole("size", kind(3)) == 3
    for value in (1.5, 3.0, True):
        with pytest.raises(ConfigError, match="must be a whole number"):
            arguments.whole("size", kind(value))


def test_a_number_beyond_floats_is_refused():
    with pytest.raises(ConfigError, match="must be a finite number"):
        arguments.number("rate", 10**400)
