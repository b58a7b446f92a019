"""Calls of public functions that are right, and values that make them wrong."""

import dataclasses
import inspect
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import qkv_jax

RNG = np.random.default_rng(0)
B, T, S, N, K, H, D = 3, 4, 5, 2, 1, 4, 8


def drawn(*shape):
    return RNG.standard_normal(shape, np.float32)


def traced(function):
    """Runs nothing, since what is refused is refused while a program is traced."""
    return lambda **arguments: jax.eval_shape(lambda: function(**arguments))


def zeros(function, *arguments):
    """What a function would give, all zeros."""
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


# Values that are wrong for what the name says.
NO_ARRAY = [None, "x", 3, [1.0, 2.0], object()]
NO_FLAG = ["no", 1, 0, None, np.ones(2, bool)]
NO_COUNT = [0, -1, 2.0, True, "2", None, [2]]
NO_WORD = ["rotery", "", 3, ["none"], None, True]
NO_NUMBER = ["x", True, [1.0], float("nan"), object()]
NO_SEED = [-1, 2**32, 1.5, "0", True, None]


class Case(NamedTuple):
    """`call(**right)` is right; `wrong` has the values that are not, by argument. `also` are words
    that a line may have instead of the argument's name; `free` may be anything."""

    call: Any
    right: dict
    wrong: dict
    of: Any = None  # what has the signature or the fields, if not `call`
    also: tuple = ()
    free: tuple = ()


def arguments_of(thing):
    if inspect.isclass(thing) and issubclass(thing, nn.Module):
        return {field.name for field in dataclasses.fields(thing)} - {"parent", "name"}
    if inspect.ismethod(thing) and thing.__name__ == "__call__":
        thing = thing.__wrapped__ if hasattr(thing, "__wrapped__") else thing
    return set(inspect.signature(thing).parameters) - {"self"}


def refusal(call, arguments):
    """The exception; those of other packages count as none."""
    try:
        call(**arguments)
    except (ValueError, TypeError) as error:
        frame = error.__traceback__
        while frame.tb_next:
            frame = frame.tb_next
        own = pathlib.Path(qkv_jax.__file__).parent in pathlib.Path(
            frame.tb_frame.f_code.co_filename
        ).parents
        return error if own else f"not the package's own: {type(error).__name__}: {error}"
    except Exception as error:  # what nobody has named
        return f"{type(error).__name__}: {error}"
    return "is taken"
