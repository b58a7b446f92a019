"""Every argument and attribute of the public functions, wrong: one line, with the types unchecked.

Annotations are checked in all other tests, but in no user's program. Each case of
tests/support/arguments is a call that is right and, by name, values that make it wrong; that no
argument is left out is a test of its own, which reads signatures and fields.
"""

import collections
import inspect

import jaxtyping
import pytest

from qkv_jax.analysis import attention_maps, circuits, geometry, layers, nulls
from qkv_jax.config import shown
from qkv_jax.model import masks, positions
from qkv_jax.training import state
from tests.support.arguments.analysis_cases import (
    circuit_cases,
    geometry_cases,
    layer_cases,
    map_cases,
    null_cases,
)
from tests.support.arguments.layer_cases import (
    attention_cases,
    encoder_cases,
    module_cases,
    position_cases,
)
from tests.support.arguments.training_cases import (
    adapter_cases,
    config_cases,
    population_cases,
    run_cases,
    tie_cases,
    trainer_cases,
)
from tests.support.arguments.values import arguments_of, refusal

pytestmark = pytest.mark.usefixtures("unchecked")


GROUPS = (
    attention_cases, module_cases, encoder_cases, position_cases, tie_cases, adapter_cases,
    config_cases, trainer_cases, population_cases, geometry_cases, circuit_cases, map_cases,
    layer_cases, null_cases, run_cases,
)  # fmt: skip


def test_the_types_are_unchecked_here():
    """A mapping that is no dict passes the annotation `dict`, which it does not elsewhere."""
    assert state.model_inputs(collections.UserDict()) == {}
    jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(jaxtyping.TypeCheckError):
        state.model_inputs(collections.UserDict())


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_what_is_wrong_is_refused_in_one_line(group):
    """By the package itself, with the argument's name; what is right beside it is taken."""
    left = []
    for case in group():
        thing = case.of or case.call
        name = getattr(thing, "__qualname__", type(thing).__name__)
        assert arguments_of(thing) == {*case.wrong, *case.free}, name
        case.call(**case.right)
        for argument, values in case.wrong.items():
            for value in values:
                found = refusal(case.call, case.right | {argument: value})
                line = str(found)
                words = (*case.wrong, *case.also)  # of two that differ, either may be named
                if isinstance(found, str) or "\n" in line or not any(w in line for w in words):
                    left.append(f"{name}: {argument} = {shown(value)}: {line}")
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    "module",
    [attention_maps, circuits, geometry, layers, masks, nulls, positions],
    ids=lambda module: module.__name__,
)
def test_no_public_function_is_left_out(module):
    covered = {case.of or case.call for group in GROUPS for case in group()}
    names = {getattr(inspect.unwrap(thing), "__name__", "") for thing in covered}
    public = {
        name
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and name[0] != "_"
    }
    assert public <= names
