"""Pretrained models of Hugging Face folders in our own encoder: load, run, embed sentences.

    pretrained = load_pretrained("all-MiniLM-L6-v2")   # a folder; or org/name of the hub
    inputs, valid = pretrained.encode(["the cat sat", "on the mat"])
    last = pretrained.encoder.apply(pretrained.variables, inputs, valid)       # [B, T, D]
    vectors = sentence_embeddings(pretrained, texts)                           # [B, D]

Families: BERT (MiniLM too), RoBERTa (XLM-RoBERTa and CamemBERT too), DistilBERT and ViT; and the
decoders GPT-2 and Llama (SmolLM2 too), which read out logits of the next token; and what `export`
writes of models of our own, with the readout that they have. A tensor is used,
or named in `left_out` because the model has no use for it, or the folder is refused; every
parameter comes from the files, or is a bias that the model does not have: zeros. The fields of the
JSON files beside the weights are followed, known to change no numbers, or refused, see `fields`.
"""

import dataclasses
import difflib
import functools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError
from qkv_jax.interop import layouts
from qkv_jax.interop.hub import model_folder
from qkv_jax.interop.places import leaf_shapes
from qkv_jax.interop.recipe import encoder_folder, read_recipe
from qkv_jax.interop.tensors import as_float32, read_json, read_tensors, refusal
from qkv_jax.interop.tokenizer import Encoded, TextTokenizer, listed, read_tokenizer
from qkv_jax.model.blocks import Block
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TokenStem

_BATCH = 32
_SHORTEST = 16
_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"  # of PEFT, which the library loads over the weights


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained encoder, or a decoder.

    Attributes:
      encoder: ours, without readout: `encoder.apply(variables, inputs, valid)` is the last
        hidden state [B, T, D]. A decoder has one, logits [B, T, V] of the token that comes next,
        and so has a model that `export` wrote.
      variables: {"params": tree} with the ordinary paths, float32.
      tokenizer: of texts; None for images and where the folder has no tokenizer.json.
      config: what config.json says.
      left_out: tensors, or rows of them, that the encoder does not need.
      folder: where its config.json lies: that of the Transformer that a modules.json names.
    """

    encoder: Encoder
    variables: dict[str, Any]
    tokenizer: TextTokenizer | None
    config: Mapping[str, Any]
    left_out: tuple[str, ...]
    folder: pathlib.Path

    @property
    def kind(self) -> str:
        """The family, as model_type names it."""
        return layouts.kind_of(self.config)

    def encode(
        self, texts: Sequence[str], max_length: int | None = None, truncate: bool = False
    ) -> Encoded:
        """Inputs of texts, and where they are real tokens, see `TextTokenizer.encode`.

        Raises:
          ConfigError: for a text that cannot be, or if there is no tokenizer.
        """
        return self.reader.encode(texts, max_length, truncate)

    @property
    def reader(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
          ConfigError: if there is none.
        """
        if self.tokenizer is None:
            raise refusal(self.folder, "holds no tokenizer.json, so it cannot read texts")
        return self.tokenizer

    @property
    def begin(self) -> list[int]:
        """The tokens from which a text begins: those that the tokenizer puts in front of every one,
        or else the `bos_token_id` of config.json.

        Raises:
          ConfigError: `prompt`, if there are none.
        """
        number = self.config.get("bos_token_id")
        found = self.reader.begin or ([number] if isinstance(number, int) else [])
        if not found:
            what = "must be a text: the model has no token that begins one"
            raise ConfigError("prompt", "", what)
        return found

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end what a decoder says: `eos_token_id` of generation_config.json, or
        else of config.json; none where neither has one.

        Raises:
          ConfigError: naming the file, for what is no token.
        """
        path, field = self.folder / "generation_config.json", "eos_token_id"
        own = read_json(path) if path.is_file() else {}
        name, values = (path.name, own) if own.get(field) is not None else (_CONFIG, self.config)
        given = values.get(field)
        listed = [] if given is None else given if isinstance(given, list) else [given]
        most = self.encoder.classes - 1
        return tuple(arguments.whole(f"{name} {field}", token, 0, most) for token in listed)


class Batch(NamedTuple):
    """Some texts of a list: which ones, and as inputs. The rows of inputs beyond those of `rows`
    repeat the last text, so that all batches have one size."""

    rows: Int[np.ndarray, " rows"]
    inputs: Int[Array, "B T"] | Int[Array, "B T F"]
    valid: Bool[Array, "B T"]


def load_pretrained(folder: str | os.PathLike) -> Pretrained:
    """Reads `config.json`, the safetensors files and, for texts, `tokenizer.json`: of a folder, or
    of a model of the Hugging Face hub, `org/name` or `org/name@revision`, see `hub`.

    Images for a ViT are [B, height, width, C], normalised as its preprocessor_config.json says.

    Raises:
      ConfigError: naming the file, the field of config.json or the tensor that is missing, damaged
        or not understood.
    """
    place = encoder_folder(model_folder(folder))
    if (place / _ADAPTER).is_file():
        raise refusal(place / _ADAPTER, "changes the weights: merge it into them first")
    config = read_json(place / _CONFIG)
    if "task" in config:
        what = "is a run of experiments.train: name it by --run, or see experiments.export"
        raise refusal(place, what)
    plan = layouts.plan(config)
    params, left_out = _fill(plan, read_tensors(place))
    stem, tokenizer = plan.encoder.stem, None
    if isinstance(stem, TokenStem):
        sizes = (stem.vocabulary[0], plan.pad, len(stem.vocabulary), plan.encoder.max_length)
        tokenizer = read_tokenizer(place, *sizes, plan.pad_counts)
    return Pretrained(plan.encoder, {"params": params}, tokenizer, config, left_out, place)


def hidden_states(
    pretrained: Pretrained,
    inputs: Num[Array, "B ..."],
    valid: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], ...]:
    """What enters the first layer, then what leaves each; the residual stream of a pre-norm model,
    before its last norm.

    Raises:
      ConfigError, ValueError, TypeError: for inputs that the model does not read: images of another
        size, whose places would be wrong; tokens without their types, or beyond its table.
    """
    encoder = arguments.instance("pretrained", pretrained, Pretrained).encoder
    sizes = _check_inputs(encoder, inputs)
    if valid is not None:
        require_array("valid", valid, "B T", "bool", sizes)
    first = "embedding_norm" if encoder.config.embedding_norm else "positions"
    wanted = lambda module, _: isinstance(module, Block) or module.name == first
    options = {"capture_intermediates": wanted, "mutable": "intermediates"}
    _, collected = encoder.apply(pretrained.variables, inputs, valid, **options)
    names = (first, *(f"layer_{i}" for i in range(encoder.config.layers)))
    made = (collected["intermediates"][name]["__call__"] for name in names)
    return tuple(jax.tree.leaves(outputs)[0] for outputs in made)  # a block returns more than x


def sentence_embeddings(
    pretrained: Pretrained,
    texts: Sequence[str],
    max_length: int | None = None,
    truncate: bool = False,
) -> Float[np.ndarray, "B D"]:
    """The mean of the last hidden state over a text's tokens, special ones included, at unit
    length (Reimers and Gurevych 2019).

    A sentence-transformers folder gives what the library gives, or is refused: its lower case, its
    prompt, and no unit length where its modules.json has no Normalize, see `recipe`. The library
    cuts texts silently, at the `max_seq_length` of the folder; here longer ones are refused without
    `truncate`. A `max_length` of one's own stands in for that of the folder.

    Raises:
      ConfigError: for a text that cannot be, or a folder that asks for anything else.
    """
    pretrained = arguments.instance("pretrained", pretrained, Pretrained)
    recipe, reader = read_recipe(pretrained.folder), pretrained.reader
    given = pretrained.config.get("architectures")
    if str(given).count("ForCausalLM"):
        raise ConfigError("config.json architectures", given, "its last token would be taken")
    if pretrained.encoder.classes:
        what = "is a decoder" if pretrained.encoder.is_causal else "reads out classes"
        raise ConfigError("config.json model_type", pretrained.kind, f"{what}: no embeddings")
    if recipe.lower:
        pretrained = dataclasses.replace(pretrained, tokenizer=reader.lowered())
    if max_length is None:
        usual = reader.options.max_length if recipe.max_length is None else recipe.max_length
        max_length = reader.max_length if usual is None else min(usual, reader.max_length)
    texts = [recipe.prompt + text for text in listed(texts)]
    found = np.zeros((len(texts), pretrained.encoder.config.width), np.float32)
    for batch in batches(pretrained, texts, max_length, truncate):
        pooled = _pooled(pretrained.encoder, pretrained.variables, batch.inputs, batch.valid)
        found[batch.rows] = np.asarray(pooled)[: len(batch.rows)]
    return np.asarray(_unit(found)) if recipe.normalize else found


def batches(
    pretrained: Pretrained,
    texts: Sequence[str],
    max_length: int | None = None,
    truncate: bool = False,
    size: int = _BATCH,
) -> Iterator[Batch]:
    """Texts in batches of one size and few lengths (powers of two), short texts first, so that a
    jitted function compiles a few times only.

    Raises:
      ConfigError: for a text that cannot be.
    """
    arguments.whole("size", size, 1)
    reader = arguments.instance("pretrained", pretrained, Pretrained).reader
    tokens = reader.tokens(texts, max_length, truncate)
    order = np.argsort([len(row) for row in tokens], kind="stable")
    size = min(size, len(order))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        some = [tokens[i] for i in np.pad(rows, (0, size - len(rows)), mode="edge")]
        bucket = max(_SHORTEST, 2 ** math.ceil(math.log2(len(some[-1]))))
        yield Batch(rows, *reader.pad(some, min(bucket, reader.max_length)))


@functools.partial(jax.jit, static_argnums=0)
def _pooled(encoder: Encoder, variables, inputs, valid) -> Float[Array, "B D"]:
    last = encoder.apply(variables, inputs, valid)
    return jnp.mean(last, axis=1, where=valid[:, :, None])


@jax.jit
def _unit(vectors: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _fill(plan: layouts.Plan, tensors: dict[str, np.ndarray]) -> tuple[dict, tuple[str, ...]]:
    """The parameters, and the names of what they did not need."""
    given = {}
    for name in tensors:
        plain = name.removeprefix(plan.prefix)
        stem, _, end = plain.rpartition(".")
        plain = f"{stem}.{ {'gamma': 'weight', 'beta': 'bias'}.get(end, end) }" if stem else plain
        if plain in given:
            raise ConfigError(f"tensor {name}", given[plain], "two names for one tensor")
        given[plain] = name
    tree, filled, used = leaf_shapes(plan.encoder, plan.channels), {}, {}
    for path, shape in tree.items():
        tensor, layout = plan.places[path]
        if tensor is None:
            filled[path] = np.zeros(shape, np.float32)
            continue
        if tensor not in given:
            raise _missing(tensor, path, tensors)
        name, expected = given[tensor], layout.stored(shape)
        if tensors[name].shape != expected:
            what = f"must have the shape {expected}, by config.json"
            raise ConfigError(f"tensor {name}", tensors[name].shape, what)
        filled[path] = layout.convert(as_float32(name, tensors[name]), shape)
        used[tensor] = name  # which may hold several leaves
    # Where the encoder's tensors bear its prefix, what does not is a head of somebody's own.
    prefixed = all(name.startswith(plan.prefix) for name in used.values())
    over = {plain: name for plain, name in given.items() if plain not in used}
    for plain, name in over.items():
        outside = prefixed and not name.startswith(plan.prefix)
        if not (outside or plan.is_unneeded(plain)):
            raise ConfigError(f"tensor {name}", tensors[name].shape, "is not understood")
    return _nested(filled), (*sorted(over.values()), *plan.skipped)


def _missing(tensor: str, path: str, tensors: Iterable[str]) -> ConfigError:
    """A refusal that says under which other name the tensor may be there."""
    what = f"is missing; {path} needs it"
    longer = sorted(name for name in tensors if name.endswith(f".{tensor}"))
    if longer:
        what += f"; {longer[0]} is there: take {longer[0].removesuffix(tensor)!r} off the names"
    elif near := difflib.get_close_matches(tensor, tensors, n=1, cutoff=0.8):
        what += f"; {near[0]} is there"
    return ConfigError(f"tensor {tensor}", None, what)


def _check_inputs(encoder: Encoder, inputs: Num[Array, "B ..."]) -> dict[str, int]:
    """Refuses inputs that the encoder would take for others; the sizes of axes."""
    if isinstance(encoder.stem, PatchStem):
        side, patches = encoder.stem.patch, encoder.max_length - 1
        shape, square = getattr(inputs, "shape", ()), math.isqrt(patches)
        given = tuple(length / side for length in shape[1:3])
        if len(shape) == 4 and given != (square, square):
            if square**2 == patches:
                allowed = f"images must be {square * side} x {square * side}"
                raise ConfigError("inputs", shape[1:3], allowed)
            if math.prod(given) != patches:
                allowed = f"images must be of {patches} patches of {side} x {side}"
                raise ConfigError("inputs", shape[1:3], allowed)
        sizes = {}
        require_array("inputs", inputs, "B height width C", "float", sizes)
        return {"B": sizes["B"], "T": encoder.max_length}
    is_plain = isinstance(encoder.stem, TokenStem)
    fields = encoder.stem.vocabulary if is_plain else (encoder.stem.vocabulary,)
    most = encoder.max_length - (not is_plain)  # a class token stands in front
    sizes = {"F": len(fields)} if len(fields) > 1 else {}
    hint = "F are the token and its type" if sizes else ""
    require_array("inputs", inputs, "B T F" if sizes else "B T", "int", sizes, hint)
    if not 0 < sizes["T"] <= most:
        raise ConfigError("inputs", sizes["T"], f"at most {most} tokens, at least 1")
    numbers = np.asarray(inputs).reshape(-1, len(fields))
    if (numbers < 0).any() or (numbers >= np.array(fields)).any():
        allowed = f"tokens must be at least 0 and below {fields[0]}"
        allowed += f", their types below {fields[1]}" * (len(fields) > 1)
        raise ConfigError("inputs", [int(numbers.min()), int(numbers.max())], allowed)
    return sizes


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.asarray(leaf)
    return tree
