"""What `experiments.explain` walks: words through a layer at random, or an example of a run."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import Pretrained
from qkv_jax.model.config import ModelConfig
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TokenStem
from qkv_jax.tasks.base import Task
from qkv_jax.tasks.text.causal import CausalBytes
from qkv_jax.tasks.text.classification import TextClassification
from qkv_jax.tasks.text.masked import MaskedBytes
from qkv_jax.tasks.text.texts import BytePairs
from qkv_jax.tasks.text.tokenizers import Tokenizer, make_tokenizer

TEXT = "the cat sat"  # unless another is given
MOST_WORDS = 12  # through a random layer, so that every number can be shown
_LABEL = 10  # characters of a token
_SIGNS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥"}


class Example(NamedTuple):
    """One example as the model reads it (a batch of one), and one label per real token."""

    inputs: Num[Array, "1 ..."]
    tokens: tuple[str, ...]
    valid: Bool[Array, "1 _T"] | None = None
    documents: Int[Array, "1 _T"] | None = None  # which each token is of, where none sees another


def words_of(text: str) -> Example:
    """The words of a text; equal words are the same token.

    Raises:
      ConfigError: if there are none, or more than `MOST_WORDS`.
    """
    words = arguments.text("text", text).split()
    if not words:
        raise ConfigError("text", text, "write one word at least")
    if len(words) > MOST_WORDS:
        allowed = (
            f"has {len(words)} words; the random layer takes at most {MOST_WORDS}, a trained model "
            "as many tokens as its task has"
        )
        raise ConfigError("text", _label(text, 40), allowed)
    numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
    inputs = jnp.array([[numbers[word] for word in words]], jnp.int32)
    return Example(inputs, tuple(map(_label, words)))


def random_layer(config: ModelConfig, seed: int) -> tuple[Encoder, dict]:
    """An encoder of words at its random start; what two ties have in common is equal.

    A learned relative bias starts at zero, where it would have nothing to show; here it is drawn
    from a normal distribution.
    """
    encoder = _encoder(arguments.instance("config", config, ModelConfig))
    arguments.whole("seed", seed, most=2**32 - 1)
    # Initial values depend on seed and path only, so those of `separate` serve every tie.
    drawn = _drawn(dataclasses.replace(config, tie="separate"), seed)
    shapes = jax.eval_shape(encoder.init, jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in drawn}
    return encoder, jax.tree.map_with_path(lambda p, _: leaves[jax.tree_util.keystr(p)], shapes)


def _encoder(config: ModelConfig) -> Encoder:
    return Encoder(config, TokenStem((MOST_WORDS,), config.width), 0, MOST_WORDS)


@functools.lru_cache(maxsize=1)
def _drawn(config: ModelConfig, seed: int) -> list[tuple]:
    """The leaves of a new encoder with their paths."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(_encoder(config).init)(jax.random.key(seed), tokens)
    if config.positions == "relative":
        relative = variables["params"]["layer_0"]["attention"]["relative"]
        shape = relative["buckets"].shape
        relative["buckets"] = jnp.float32(np.random.default_rng(seed).normal(size=shape))
    return jax.tree.leaves_with_path(variables)


def is_text(task: Task) -> bool:
    """Whether a text can be written in the task's tokens."""
    return isinstance(task, CausalBytes | MaskedBytes | TextClassification)


def text_example(task: CausalBytes | MaskedBytes | TextClassification, text: str) -> Example:
    """A text in the tokens of a task.

    Raises:
      ConfigError: if there is nothing in it, what no training text has, or more than the model
        reads.
    """
    if not is_text(arguments.instance("task", task, Task)):
        raise ConfigError("task", type(task).__name__, "is not of text")
    if not arguments.text("text", text):
        raise ConfigError("text", text, "write one character at least")
    tokens = _encoded(task, text)
    if len(tokens) > task.length:
        allowed = f"is {len(tokens)} tokens; the run's model reads at most {task.length}"
        raise ConfigError("text", _label(text, 40), allowed)
    return Example(jnp.asarray(tokens[None], jnp.int32), tuple(_labels(task, tokens)))


def pretrained_example(pretrained: Pretrained, text: str) -> Example:
    """A text in the tokens of a pretrained model, special ones included.

    Raises:
      ConfigError: if the model reads no texts, or not this one.
    """
    arguments.instance("pretrained", pretrained, Pretrained)
    try:
        (tokens,) = pretrained.reader.tokens([arguments.text("text", text)])
    except ConfigError as error:
        field = "text" if error.field.startswith("text") else error.field  # "text 0"
        raise ConfigError(field, error.given, error.allowed) from None
    inputs, _ = pretrained.reader.pad([tokens])
    return Example(inputs, tuple(map(_label, pretrained.reader.words(tokens))))


def task_example(task: Task, number: int) -> Example:
    """A validation example of a task.

    Raises:
      ConfigError: if there is no such example, or no data.
    """
    arguments.instance("task", task, Task)
    try:
        data = task.load().validation
    except ConfigError as error:
        raise error.under("task.options") from None
    total = len(data["inputs"])
    if not arguments.whole("example", number) < total:
        raise ConfigError("example", number, f"the task has 0 to {total - 1}")
    inputs = jnp.asarray(data["inputs"][number : number + 1])
    labels, valid = _labels(task, np.asarray(inputs[0])), None
    if "valid" in data:
        valid = jnp.asarray(data["valid"][number : number + 1])
        labels = labels[: int(valid.sum())]
    documents = data.get("documents")
    documents = None if documents is None else jnp.asarray(documents[number : number + 1])
    return Example(inputs, tuple(labels), valid, documents)


def _encoded(task: Task, text: str) -> np.ndarray:
    if not isinstance(task, CausalBytes):
        return _tokenizer(task).encode(text.encode())
    try:
        return task.encode(text)
    except ConfigError as error:
        raise ConfigError("text", _label(text, 40), error.allowed) from None


def _tokenizer(task: MaskedBytes | TextClassification) -> Tokenizer:
    if isinstance(task, TextClassification):
        train = [text.encode() for text in task.splits()["train"].texts]
        return make_tokenizer(task.tokenizer, task.vocabulary, train)
    return task.encoded()[1] if isinstance(task, BytePairs) else make_tokenizer("bytes", 0, ())


def _labels(task: Task, inputs: np.ndarray) -> list[str]:
    """One label per token of one example."""
    if is_text(task):
        decode = task.decode if isinstance(task, CausalBytes) else _tokenizer(task).decode
        special = task.symbols if isinstance(task, TextClassification) else task.classes
        names = {TextClassification: "[pad]", CausalBytes: "[begin]"}
        named = next((name for kind, name in names.items() if isinstance(task, kind)), "[mask]")
        labels = [
            named if token == special else _byte_label(decode(np.array([token])))
            for token in inputs
        ]
        return ["[class]", *labels] if isinstance(task, TextClassification) else labels
    stem = task.stem(1)
    if isinstance(stem, PatchStem):
        rows, columns = (side // stem.patch for side in inputs.shape[:2])
        return ["[class]", *(f"{r + 1},{c + 1}" for r in range(rows) for c in range(columns))]
    if inputs.ndim == 2:
        return ["·".join(map(str, fields)) for fields in inputs]
    return [str(token) for token in inputs]


def _byte_label(token: bytes) -> str:
    text = token.decode("utf-8", "backslashreplace")
    return _label("".join(_SIGNS.get(c, c) for c in text))


def _label(text: str, most: int = _LABEL) -> str:
    """Short, and without what a terminal might obey."""
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"
