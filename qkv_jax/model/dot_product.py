"""`attend`, the one place of softmax(scale Q K^T + bias) V."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qkv_jax import arguments
from qkv_jax.arrays import require_array
from qkv_jax.config import ConfigError, shown
from qkv_jax.model.masks import PADDING, visible

Implementation = Literal["auto", "einsum", "xla", "cudnn"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

# Without float16: gradients of inputs of 1e4 overflow in it.
FORMATS = ("float32", "bfloat16", "float64")


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K E"],
    *,
    scores: Float[Array, "B N T S"] | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    is_causal: bool = False,
    scale: float | Float[Array, " N"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B T N E"]:
    """softmax(scale * Q K^T + bias) V over the visible keys (Vaswani et al. 2017, eq. 1).

    Args:
      query, key, value: K divides N; query head n reads key/value head n // (N / K). Values may
        have a width of their own.
      scores: Q K^T, where the caller has a faster way to it; only `einsum` reads it.
      bias: added to the scaled scores.
      mask: true where a query may look. A query that sees no key gets the output 0.
      is_causal: hides keys to the right of the query, positions counted from the start of both.
      scale: 1 / sqrt(H) by default; a vector scales each head by its own number.
      implementation: `einsum` is the specification; `xla` and `cudnn` are those of
        `jax.nn.dot_product_attention`, see `unsupported`; `cudnn` rounds the bias to the number
        format of the query. `auto`: see `resolved`.

    Raises:
      ValueError: for an implementation that does not exist or cannot do this, for float16, and for
        shapes and kinds other than these.
      TypeError: for what is no array.
    """
    if implementation not in IMPLEMENTATIONS:
        allowed = ", ".join(IMPLEMENTATIONS)
        raise ConfigError("implementation", implementation, f"allowed: {allowed}")
    sizes: dict[str, int] = {}
    _check_heads(sizes, query=query, key=key, value=value)
    check_scores(sizes, bias, mask, is_causal, scale)
    if scores is not None:
        require_array("scores", scores, "B N T S", "float", sizes)
    implementation = resolved(implementation)
    here = jax.default_backend()
    if reason := unsupported(implementation, query.dtype.name, query.shape[-1], here):
        raise ConfigError("implementation", implementation, reason)
    if implementation == "einsum":
        options = {"bias": bias, "mask": mask, "is_causal": is_causal, "scale": scale}
        return aggregate(attention_weights(query, key, scores=scores, **options), value)
    if scale is not None and jnp.ndim(scale):  # jax.nn.dot_product_attention takes a number
        query, scale = query * scale[None, None, :, None].astype(query.dtype), 1.0
    if implementation == "cudnn":  # takes one number format, and no axis of 1 for lengths
        fill = lambda x: jnp.broadcast_to(x, (*x.shape[:2], query.shape[1], key.shape[1]))
        bias = None if bias is None else fill(bias.astype(query.dtype))
        mask = None if mask is None else fill(mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = {"scale": scale, "is_causal": is_causal, "implementation": implementation}
    query, key, value, width = *_of_one_width(query, key, value), value.shape[-1]
    try:
        with jax.numpy_dtype_promotion("standard"):  # jax.nn adds a bias in a format of its own
            output = jax.nn.dot_product_attention(query, key, value, bias, mask, **options)
    except NotImplementedError as error:  # of cuDNN: sizes that it has no kernel for
        raise ConfigError("implementation", implementation, f"has no kernel: {error}") from None
    output = output[..., :width]
    if mask is None:  # with the causal mask alone every query sees at least the first key
        return output
    mask = _joined(mask, is_causal, query.shape[1], key.shape[1])
    seen = jnp.moveaxis(mask.any(-1, keepdims=True), 1, 2)
    return jnp.where(seen, output, 0)


def resolved(implementation: Implementation, platform: str | None = None) -> Implementation:
    """What `auto` stands for on a platform (by default the one of this process): `einsum` on CPUs,
    where it is the faster, and `xla` elsewhere. The others stand for themselves."""
    if implementation != "auto":
        return implementation
    return "einsum" if (platform or jax.default_backend()) == "cpu" else "xla"


def unsupported(
    implementation: Implementation, dtype: str, head_dim: int, platform: str | None = None
) -> str | None:
    """Why an implementation cannot be used for heads of this width in this number format, on a
    platform (`cpu`, `gpu`, `tpu`) if one is named; None if it can.

    `cudnn` computes in bfloat16 on NVIDIA GPUs; whether cuDNN is there and takes the heads is asked
    on the machine itself.
    """
    if implementation != "cudnn":
        return None
    if dtype != "bfloat16":
        return f"cuDNN computes in bfloat16, not in {dtype}"
    if head_dim % 8:
        return f"cuDNN needs heads whose width is a multiple of 8, not {head_dim}"
    if platform not in (None, "gpu"):
        return f"cuDNN needs an NVIDIA GPU, and the platform is {platform}"
    if platform is None or platform != jax.default_backend():
        return None
    heads = jax.ShapeDtypeStruct((1, 2, 1, head_dim), dtype)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(lambda heads: jax.vjp(attention, heads, heads, heads)[0], heads)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"cannot be used here: {str(error).strip().splitlines()[0]}"
    return None


def attention_weights(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    *,
    scores: Float[Array, "B N T S"] | None = None,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    is_causal: bool = False,
    scale: float | Float[Array, " N"] | None = None,
) -> Float[Array, "B N T S"]:
    """softmax(scale * Q K^T + bias): each row sums to 1, or to 0 where no key is visible.

    The softmax is computed in float32 at least. Arguments and refusals as in `attend`.
    """
    sizes: dict[str, int] = {}
    _check_heads(sizes, query=query, key=key)
    check_scores(sizes, bias, mask, is_causal, scale)
    length, head_dim = query.shape[1], query.shape[3]
    scale = head_dim**-0.5 if scale is None else scale
    if scores is None:
        scale = scale[None, None, :, None].astype(query.dtype) if jnp.ndim(scale) else scale
        scores = products(query * scale, key)
    else:
        require_array("scores", scores, "B N T S", "float", sizes)
        scores *= scale[None, :, None, None].astype(scores.dtype) if jnp.ndim(scale) else scale
    if bias is not None:
        scores += bias
    mask = _joined(mask, is_causal, length, key.shape[1])
    if mask is None:
        return jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    # A finite number: minus infinity all along a row without visible keys would make it NaN.
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0).astype(query.dtype)


def products(
    query: Float[Array, "B T N H"], key: Float[Array, "B S K H"]
) -> Float[Array, "B N T S"]:
    """Q K^T for every query head, in float32 at least."""
    batch, length, num_heads, head_dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, head_dim)
    precise = np.promote_types(query.dtype, np.float32)
    scores = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=precise)
    return scores.reshape(batch, num_heads, length, key.shape[1])


def aggregate(
    weights: Float[Array, "B N T S"], value: Float[Array, "B S K E"]
) -> Float[Array, "B T N E"]:
    """The weighted sum of values for every query head."""
    sizes: dict[str, int] = {}
    require_array("weights", weights, "B N T S", "float", sizes)
    require_array("value", value, "B S K E", "float", sizes)
    _check_groups(sizes)
    batch, num_heads, length, sources = weights.shape
    grouped = weights.reshape(batch, value.shape[2], -1, length, sources)
    if length == 1:  # in decoding; else XLA on CPUs copies all values
        output = jnp.einsum("bkgs,bskh->bkgh", grouped[:, :, :, 0], value)
    else:
        output = jnp.einsum("bkgts,bskh->btkgh", grouped, value)
    return output.reshape(batch, length, num_heads, value.shape[-1])


def _of_one_width(*heads: Array) -> list[Array]:
    """Those that are narrower filled up with zeros, which change neither scores nor sums."""
    width = max(each.shape[-1] for each in heads)
    fill = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
    return [each if each.shape[-1] == width else fill(each) for each in heads]


def _check_heads(sizes: dict[str, int], **heads: Array) -> None:
    """Refuses queries, keys and values that are not what `attend` says."""
    first = next(iter(heads.values()))
    for name, array in heads.items():
        axes = {"query": "B T N H", "key": "B S K H", "value": "B S K E"}[name]
        require_array(name, array, axes, "float", sizes)
        check_format(name, array)
        if array.dtype != first.dtype:
            raise ValueError(f"{name}: given {shown(array)}; must be {first.dtype} as the query is")
    _check_groups(sizes)


def _check_groups(sizes: dict[str, int]) -> None:
    if sizes["N"] % sizes["K"]:
        heads = f"{sizes['K']} key/value heads do not divide {sizes['N']} query heads"
        raise ValueError(f"key: {heads}")


def check_format(name: str, array: Array) -> None:
    if str(array.dtype) not in FORMATS:
        allowed = f"{', '.join(FORMATS)}; in float16 gradients overflow"
        raise ValueError(f"{name}: given {shown(array)}; must be one of {allowed}")


def check_scores(sizes: dict[str, int], bias, mask, is_causal, scale) -> None:
    """Refuses what cannot be added to the scores, hide some or multiply them."""
    arguments.truth("is_causal", is_causal)
    if bias is not None:
        require_array("bias", bias, "#B #N #T #S", "float", sizes)
    if mask is not None:
        require_array("mask", mask, "#B #N #T #S", "bool", sizes, PADDING)
    if getattr(scale, "shape", None):
        require_array("scale", scale, "N", "float", sizes)
    elif hasattr(scale, "dtype"):
        require_array("scale", scale, "", "real", sizes)
    elif scale is not None:
        arguments.number("scale", scale)


def _joined(mask, is_causal: bool, queries: int, keys: int) -> Bool[Array, "#B #N #T #S"] | None:
    """The mask and the causal order, places counted from the start of both."""
    if not is_causal:
        return mask
    places = (jnp.arange(length)[None] for length in (queries, keys))
    return visible(*places, is_causal=True, mask=mask)
