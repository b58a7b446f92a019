"""ListOps: Nangia & Bowman 2018, arXiv 1804.06028. Nested lists of digits under four operators.

`[MAX 2 9 [MIN 4 7 ] 0 ]` is 9. Expressions are drawn and worked out inside jit by two scans over
the tokens, each with a stack as deep as operators may be nested: the first writes, the second
evaluates. In between, the last digit is set so that the expression belongs to its split.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from qkv_jax.config import ConfigError, require_positive
from qkv_jax.model.stems import TokenStem
from qkv_jax.tasks.base import Breakdown, Reference, register
from qkv_jax.tasks.generated.base import Generated, split_residues

OPERATORS = ("MAX", "MIN", "MED", "SM")  # SM: the sum modulo 10; MED: the median, rounded down
_DIGITS = 10  # tokens 0 .. 9
_FIRST_OPERATOR = 10  # tokens 10 .. 13, each with the bracket that it opens
_END, _CLASS, _PAD, _VOCABULARY = 14, 15, 16, 17
_PRIME = 11  # digits + 1 are the numbers that have an inverse modulo 11
_INVERSES = np.array([pow(m, -1, _PRIME) for m in range(1, _PRIME)])


@register("listops")
@dataclasses.dataclass(frozen=True)
class ListOps(Generated):
    """Work out a nested expression; the answer, a digit, is read from a class token in front.

    As published, a place within an operator's brackets holds another operator with probability
    `nested`, and an operator has 2 .. `arguments` arguments. What differs: the outermost place is
    always an operator, nesting goes `depth` operators deep, operators that would make an expression
    longer than `length` tokens give way to digits, and there are no parentheses for a binary tree.

    Splits are disjoint by the checksum of an expression's digits; see `_codes`.
    """

    title = "ListOps"
    description = "Work out nested expressions of MAX, MIN, MED and SM (sum modulo 10) over digits."
    readout = "class"

    length: int = 48
    depth: int = 3
    arguments: int = 5
    nested: float = 0.25
    operators: tuple[str, ...] = OPERATORS
    outcome_kind: Literal["mean", "solve"] = "mean"
    test_examples: int = 4096  # one answer per example: fewer leave too large a paired error
    margin: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "depth")
        if self.arguments < 2:
            raise ConfigError("arguments", self.arguments, "must be at least 2")
        if self.length < self.arguments + 2:
            line = f"must be at least {self.arguments + 2}, to hold one operator's arguments"
            raise ConfigError("length", self.length, line)
        if not 0 <= self.nested <= 1:
            raise ConfigError("nested", self.nested, "must be at least 0 and at most 1")
        if not self.operators or len(set(self.operators)) < len(self.operators):
            line = f"must name each operator once, at least one of {', '.join(OPERATORS)}"
            raise ConfigError("operators", self.operators, line)
        for operator in self.operators:
            if operator not in OPERATORS:
                raise ConfigError("operators", operator, f"allowed: {', '.join(OPERATORS)}")

    @property
    def classes(self) -> int:
        return _DIGITS

    @property
    def max_length(self) -> int:
        return self.length + 1

    def stem(self, width):
        return TokenStem((_VOCABULARY,), width)

    def example(self):
        shape = (1, self.max_length)
        return {"inputs": jnp.zeros(shape, jnp.int32), "valid": jnp.ones(shape, bool)}

    def generate(self, key, size, split):
        write, residue = jax.random.split(key)
        wanted = split_residues(residue, size, _DIGITS, split)
        tokens = _set_checksum(self.write(write, size), wanted)
        inputs = jnp.concatenate([jnp.full((size, 1), _CLASS, jnp.int32), tokens], axis=1)
        return {"inputs": inputs, "targets": self.evaluate(tokens), "valid": inputs != _PAD}

    def write(self, key: PRNGKeyArray, size: int) -> Int[Array, "B T"]:
        """Expressions from left to right, padded to `length` tokens."""
        nest, kind, count, digit = jax.random.split(key, 4)
        shape = (self.length, size)
        ids = _FIRST_OPERATOR + np.array([OPERATORS.index(name) for name in self.operators])
        draws = (
            jax.random.bernoulli(nest, self.nested, shape),
            jnp.asarray(ids, jnp.int32)[jax.random.randint(kind, shape, 0, len(ids))],
            jax.random.randint(count, shape, 2, self.arguments + 1),
            jax.random.randint(digit, shape, 0, _DIGITS),
        )
        levels = jnp.arange(self.depth)[None]
        at = lambda level: levels == level[:, None]

        def step(state, draw):
            # `left`: the arguments still to come at each level; `used`: tokens written or owed.
            left, level, used = state
            nests, operator, count, digit = draw
            here = jnp.where(at(level), left, 0).sum(-1)
            ends = (level >= 0) & (here == 0)
            argument = (level >= 0) & (here > 0)
            fits = used + count + 1 <= self.length
            opens = argument & nests & (level + 1 < self.depth) & fits
            token = jnp.where(argument, digit, jnp.where(ends, _END, _PAD))
            left = left - (at(level) & argument[:, None]).astype(jnp.int32)
            left = jnp.where(at(level + 1) & opens[:, None], count[:, None], left)
            level = level + opens.astype(jnp.int32) - ends.astype(jnp.int32)
            state = left, level, used + jnp.where(opens, count + 1, 0)
            return state, jnp.where(opens, operator, token)

        root, arguments = draws[1][0], draws[2][0]
        level = jnp.zeros_like(root)
        state = jnp.where(at(level), arguments[:, None], 0), level, arguments + 2
        rest = jax.lax.scan(step, state, jax.tree.map(lambda draw: draw[1:], draws))[1]
        return jnp.concatenate([root[None], rest]).T

    def evaluate(self, tokens: Int[Array, "B T"]) -> Int[Array, " B"]:
        """The value of expressions that nest at most `depth` operators."""
        levels, digits = jnp.arange(self.depth)[None], jnp.arange(_DIGITS)[None]
        at = lambda level: levels == level[:, None]

        def step(state, token):
            # `tally` [B, depth, 10]: how often each digit is an argument of each open operator.
            open_operators, tally, level, _ = state
            opens = (token >= _FIRST_OPERATOR) & (token < _END)
            ends = token == _END
            here = jnp.where(at(level)[:, :, None], tally, 0).sum(1)
            operator = jnp.where(at(level), open_operators, 0).sum(-1)
            value = jnp.where(ends, _apply(operator, here), token)
            level = level + opens.astype(jnp.int32) - ends.astype(jnp.int32)
            enters = at(level) & opens[:, None]
            open_operators = jnp.where(enters, token[:, None], open_operators)
            tally = jnp.where(enters[:, :, None], 0, tally)
            gains = at(level) & (ends | (token < _DIGITS))[:, None]
            gained = gains[:, :, None] & (digits == value[:, None])[:, None]
            tally = tally + gained.astype(jnp.int32)
            return (open_operators, tally, level, jnp.where(ends, value, state[3])), None

        size = tokens.shape[0]
        zeros = lambda *shape: jnp.zeros((size, *shape), jnp.int32)
        state = zeros(self.depth), zeros(self.depth, _DIGITS), zeros() - 1, zeros()
        return jax.lax.scan(step, state, tokens.T)[0][3]

    def references(self, data):
        """The answer that is the most frequent in validation."""
        counts = np.bincount(np.asarray(data.validation["targets"]), minlength=_DIGITS)
        right = np.asarray(data.test["targets"]) == counts.argmax()
        return (Reference("most frequent answer", float(right.mean())),)

    def breakdown(self, test):
        tokens = np.asarray(test["inputs"])
        opens = (tokens >= _FIRST_OPERATOR) & (tokens < _END)
        nesting = np.cumsum(opens.astype(int) - (tokens == _END), axis=1)
        return Breakdown("depth", nesting.max(axis=1).tolist())


def _apply(operator: Int[Array, " B"], tally: Int[Array, "B 10"]) -> Int[Array, " B"]:
    """An operator's value, given how often each digit is among its arguments."""
    count, below = tally.sum(-1), jnp.cumsum(tally, axis=-1)
    ranked = lambda rank: (below <= rank[:, None]).sum(-1)  # the argument of that rank from below
    median = (ranked((count - 1) // 2) + ranked(count // 2)) // 2
    total = (tally * jnp.arange(_DIGITS)[None]).sum(-1) % _DIGITS
    values = jnp.stack([ranked(count - 1), ranked(0 * count), median, total], -1)
    chosen = jnp.clip(operator - _FIRST_OPERATOR, 0, len(OPERATORS) - 1)
    return jnp.take_along_axis(values, chosen[:, None], axis=1)[:, 0]


def _codes(tokens: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """What each digit adds to its expression's checksum, modulo 10, and the digit's rank among the
    expression's digits (-1 before the first).

    The n-th digit x counts m(x + 1) mod 11 - 1 with m = n mod 10 + 1: a permutation of the digits,
    another one for each of ten neighbours. A plain sum would be the very answer that SM asks for,
    and a flat SM of test would then have an answer that training never gives.
    """
    is_digit = tokens < _DIGITS
    rank = jnp.cumsum(is_digit, axis=1) - 1
    codes = (rank % _DIGITS + 1) * (tokens + 1) % _PRIME - 1
    return jnp.where(is_digit, codes, 0), rank


def _set_checksum(tokens: Int[Array, "B T"], wanted: Int[Array, " B"]) -> Int[Array, "B T"]:
    """The same expressions with another last digit: their checksums are `wanted`."""
    codes, rank = _codes(tokens)
    is_last = (tokens < _DIGITS) & (rank == rank[:, -1:])
    rest = jnp.where(is_last, 0, codes).sum(-1)
    code = (wanted - rest) % _DIGITS
    inverse = jnp.asarray(_INVERSES, jnp.int32)[rank[:, -1] % _DIGITS]
    digit = (code + 1) * inverse % _PRIME - 1
    return jnp.where(is_last, digit[:, None], tokens)
