"""Attention, modules, encoders and positions: right calls, and values that are wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qkv_jax.model import attention, dot_product, encoder, masks, positions, stems
from qkv_jax.model.config import ModelConfig
from tests.support.arguments.values import (
    NO_ARRAY,
    NO_COUNT,
    NO_FLAG,
    NO_NUMBER,
    NO_WORD,
    B,
    Case,
    D,
    H,
    K,
    N,
    S,
    T,
    drawn,
    traced,
    zeros,
)

QUERY, KEY, VALUE = drawn(B, T, N, H), drawn(B, S, K, H), drawn(B, S, K, H)
PLACES, KEY_PLACES = np.arange(T)[None], np.arange(S)[None]
WRONG_PLACES = [None, "x", 3, [1, 2], np.arange(T) / 2, np.arange(T), np.ones((1, 1, T), int),
                np.ones((1, T)), np.ones((1, T), bool)]  # fmt: skip
BIAS, MASK = drawn(B, N, T, S), np.ones((B, 1, T, S), bool)
X, CONTEXT = drawn(B, T, D), drawn(B, S, D)

WRONG_KEYS = [*NO_ARRAY, KEY[0], KEY[:2], KEY[..., :2], KEY[:, :0], np.ones((B, S, 3, H)),
              KEY.astype(jnp.bfloat16), KEY.astype(jnp.float16), KEY > 0,
              KEY.astype(int)]  # fmt: skip
WRONG_VALUES = WRONG_KEYS[:7] + WRONG_KEYS[8:]  # whose width is their own
WRONG_QUERIES = [*NO_ARRAY, QUERY[0], QUERY[:2], QUERY[:, :, :0], QUERY[..., :2],
                 QUERY.astype(jnp.bfloat16), QUERY.astype(jnp.float16), QUERY.astype(int),
                 QUERY.astype(complex)]  # fmt: skip
WRONG_MASKS = [  # among them the four of an additive mask, of padding, and of one mask per example
    *NO_ARRAY[1:], np.where(MASK, 0.0, -1e9), MASK.astype(int), MASK[:, 0, 0], MASK[:, 0],
    MASK[0, 0], np.ones((T, S), bool), np.ones((B, 3, T, S), bool), np.ones((2, 1, T, S), bool),
    np.ones((B, 1, T, S + 1), bool), np.ones((1, B, 1, T, S), bool),
]  # fmt: skip
WRONG_BIASES = [*NO_ARRAY[1:], MASK, BIAS.astype(int), BIAS[0], BIAS[:2], BIAS[:, :, :, :2],
                np.ones((B, 3, T, S)), BIAS.astype(complex)]  # fmt: skip
WRONG_SCALES = [*NO_NUMBER, float("inf"), "sqrt", drawn(N, 1), drawn(N + 1), np.ones(N, int),
                np.ones((), bool)]  # fmt: skip
WRONG_PRODUCTS = [*NO_ARRAY[1:], drawn(N, T, S), drawn(B, 1, T, S), drawn(B, N, T, S + 1), MASK]
SCORES = {"bias": WRONG_BIASES, "mask": WRONG_MASKS, "is_causal": NO_FLAG, "scale": WRONG_SCALES}


def attention_cases():
    heads = {"query": QUERY, "key": KEY}
    some = {"bias": BIAS, "mask": MASK, "is_causal": True, "scale": 0.5}
    yield Case(
        traced(dot_product.attend),
        {**heads, "value": VALUE, **some, "implementation": "xla", "scores": drawn(B, N, T, S)},
        {
            "scores": WRONG_PRODUCTS,
            "query": WRONG_QUERIES, "key": WRONG_KEYS, **SCORES, "implementation": NO_WORD,
            "value": [*WRONG_VALUES, VALUE[:, :2], drawn(B, S, N, H)],
        },
        of=dot_product.attend,
    )  # fmt: skip
    yield Case(
        traced(dot_product.attention_weights),
        {**heads, **some, "scores": drawn(B, N, T, S)},
        {"query": WRONG_QUERIES, "key": WRONG_KEYS, "scores": WRONG_PRODUCTS, **SCORES},
        of=dot_product.attention_weights,
    )
    weights = drawn(B, N, T, S)
    yield Case(
        traced(dot_product.aggregate),
        {"weights": weights, "value": VALUE},
        {
            "weights": [*NO_ARRAY, weights[0], weights[:2], weights > 0, weights[..., :2]],
            "value": [*NO_ARRAY, VALUE[0], VALUE[:, :2], VALUE > 0, drawn(B, S, 3, H)],
        },
        of=dot_product.aggregate,
    )
    yield Case(
        traced(masks.visible),
        {"queries": PLACES, "keys": KEY_PLACES, "is_causal": False, "window": 2,
         "valid": np.ones((B, S), bool), "documents": (PLACES, KEY_PLACES), "hide_self": False,
         "mask": MASK},
        {
            "queries": WRONG_PLACES, "keys": WRONG_PLACES,
            "is_causal": NO_FLAG, "window": [*NO_COUNT[:5], [2]],
            "valid": [*NO_ARRAY[1:], np.ones((B, S)), np.ones(S, bool), np.ones((B, T), bool)],
            "documents": [(PLACES, PLACES), (PLACES / 2, KEY_PLACES), (PLACES, None)],
            "hide_self": NO_FLAG,
            "mask": [*WRONG_MASKS[:5], MASK[0, 0], np.ones((B, 1, T, S + 1), bool)],
        },
        of=masks.visible,
    )  # fmt: skip
    yield Case(traced(masks.places_within), {"documents": PLACES}, {"documents": WRONG_PLACES},
               of=masks.places_within)  # fmt: skip


@functools.cache
def layer():
    module = attention.MultiHeadAttention(N)
    return module, zeros(module.init, jax.random.key(0), X, CONTEXT)


def started(cls, inputs):
    """What makes a module of its fields, and its parameters."""
    return traced(lambda **fields: cls(**fields).init(jax.random.key(0), inputs))


def module_cases():
    yield Case(
        started(attention.MultiHeadAttention, X),
        {
            "num_heads": N, "tie": "K=V", "num_kv_heads": 1, "head_dim": 4,
            "adapters": {"key": "head"}, "latent_dim": None, "positions": "rotary",
            "positions_2d": True, "qk_norm": True, "diagonal_mask": True, "scale": 0.3,
            "frozen": ("key",), "output_projection": True, "use_bias": True,
            "implementation": "xla", "scheme": "tied", "rotary_dims": 2, "window": 2,
            "latent_kind": "learned", "rotary_base": 1e5, "value_residual": True,
        },
        {
            "num_heads": NO_COUNT, "tie": ["K=Z", "", 3, None, ["K=V"], "K=V*2"],
            "num_kv_heads": [*NO_COUNT[:5], 3], "head_dim": [*NO_COUNT[:5], 3],
            "adapters": ["head", 3, None, {"keys": "head"}, {"key": "hed"}, {"key": 3},
                         {"query": "head"}],
            "latent_dim": NO_COUNT[:5], "positions": NO_WORD, "positions_2d": NO_FLAG,
            "qk_norm": NO_FLAG, "diagonal_mask": NO_FLAG,
            "scale": ["sqroot", "0.5", 0, -1.0, *NO_NUMBER, float("inf"), None],
            "frozen": ["key", ("kee",), 3, None, ("value",), (3,)],
            "output_projection": NO_FLAG, "use_bias": NO_FLAG,
            "implementation": [*NO_WORD, "cudnn"],
            "scheme": [*NO_WORD, "no.such", int], "rotary_dims": [-2, 3, 64, "2", 2.0, True],
            "window": [*NO_COUNT[:5], [2]], "latent_kind": NO_WORD,
            "rotary_base": [*NO_NUMBER, 0, -1.0], "value_residual": NO_FLAG,
        },
        of=attention.MultiHeadAttention,
        also=("key/value heads", "not a tie", "cuDNN", "heads x head", "rotary", "width"),
    )  # fmt: skip
    module, variables = layer()
    mask, bias = np.ones((B, 1, T, S), bool), drawn(1, N, T, S)
    yield Case(
        traced(functools.partial(module.apply, variables)),
        {"x": X, "context": CONTEXT, "bias": bias, "mask": mask, "is_causal": False,
         "places": PLACES, "key_places": KEY_PLACES},
        {
            "x": [*NO_ARRAY, X[0], X[:2], X.astype(int), X.astype(jnp.float16),
                  X.astype(jnp.bfloat16), X[:, None]],
            "context": [*NO_ARRAY[1:], CONTEXT[0], CONTEXT[:2], CONTEXT.astype(jnp.bfloat16),
                        CONTEXT.astype(int), CONTEXT[:, :0]],
            "bias": WRONG_BIASES, "mask": WRONG_MASKS, "is_causal": NO_FLAG,
            "places": [*WRONG_PLACES[1:], np.ones((2, T), int)],
            "key_places": [*WRONG_PLACES[1:], PLACES],
        },
        of=module.__call__,
        also=("key", "places"),  # made of the context
        free=("cache", "valid", "first_values"),
    )  # fmt: skip
    residual = module.clone(value_residual=True)
    first = drawn(B, T, N, D // N)
    mixing = zeros(functools.partial(residual.init, first_values=first), jax.random.key(0), X)
    yield Case(
        traced(functools.partial(residual.apply, mixing)),
        {"x": X, "first_values": first},
        {"first_values": [*NO_ARRAY[1:], first[0], first[:, :1], first[:, :, :1], first > 0]},
        of=module.__call__,
        free=("x", "context", "places", "key_places", "bias", "mask", "is_causal", "cache",
              "valid"),
    )  # fmt: skip
    cache = module.init_cache(B, T, D)
    yield Case(
        traced(functools.partial(module.apply, variables)),
        {"x": X, "cache": cache, "valid": np.ones((B, T), bool), "is_causal": True},
        {
            "x": [X[:2]],
            "cache": [3, "x", cache.sources, module.init_cache(2, T, D), cache.replace(sources={}),
                      attention.MultiHeadAttention(N, "K=V").init_cache(B, T, D)],
            "valid": [*NO_ARRAY[1:], np.ones((B, T)), np.ones(T, bool), np.ones((B, T + 1), bool)],
            "context": [CONTEXT], "places": [PLACES], "first_values": [first],
        },
        of=module.__call__,
        also=("key", "value", "width"),
        free=("key_places", "bias", "mask", "is_causal"),
    )  # fmt: skip
    yield Case(
        module.init_cache,
        {"batch": B, "slots": T, "width": D, "dtype": jnp.bfloat16},
        {"batch": NO_COUNT, "slots": NO_COUNT, "width": [*NO_COUNT, 5],
         "dtype": [jnp.float16, int, "int8"]},
    )  # fmt: skip


TOKENS = np.arange(B * T).reshape(B, T) % 7
SMALL = ModelConfig(layers=1, width=D, heads=N)


@functools.cache
def small_encoder():
    module = encoder.Encoder(SMALL, stems.TokenStem((7,), D), 5, T)
    return module, zeros(module.init, jax.random.key(0), TOKENS)


def encoder_cases():
    stem = stems.TokenStem((7,), D)
    yield Case(
        started(encoder.Encoder, TOKENS),
        {"config": SMALL, "stem": stem, "classes": 5, "max_length": T, "readout": "class",
         "is_causal": True, "cross": False},
        {
            "config": [None, {"width": D}, "small"], "stem": [None, "tokens", 3],
            "classes": [-1, 2.0, True, "5", None], "max_length": [*NO_COUNT, T - 1],
            "readout": ["tokens", "", 3, None], "is_causal": NO_FLAG, "cross": NO_FLAG,
        },
        of=encoder.Encoder,
        also=("learned positions",),
    )  # fmt: skip
    module, variables = small_encoder()
    yield Case(
        traced(functools.partial(module.apply, variables)),
        {"inputs": TOKENS, "valid": np.ones((B, T), bool), "read": TOKENS[:, :2] % T,
         "documents": TOKENS, "places": PLACES, "train": False},
        {
            "inputs": [*NO_ARRAY, TOKENS[0], TOKENS / 2, TOKENS > 0, TOKENS - 1, TOKENS + 1,
                       np.stack([TOKENS] * 2, -1), TOKENS[:, :0]],
            "valid": [*NO_ARRAY[1:], np.ones((B, T)), np.ones((B, T + 1), bool),
                        np.ones((B, 1, 1, T), bool), np.ones(T, bool)],
            "read": [*NO_ARRAY[1:], TOKENS / 7, np.full((B, 1), T), np.full((B, 1), -1),
                     np.zeros((2, 1), int), np.zeros(B, int)],
            "documents": [*WRONG_PLACES[1:], np.ones((B, T + 1), int)],
            "places": [*WRONG_PLACES[1:], PLACES + 1, PLACES - 1], "train": NO_FLAG,
            "context": [3, X],  # which a model without cross-attention does not read
        },
        of=module.__call__,
        free=("cache",),
    )  # fmt: skip
    causal = module.clone(is_causal=True)
    cache = causal.init_cache(B, T)
    yield Case(
        traced(functools.partial(causal.apply, variables)),
        {"inputs": TOKENS, "cache": cache, "valid": np.ones((B, T), bool)},
        {
            "inputs": [TOKENS[:2]], "valid": [np.ones((B, T))],
            "cache": [3, "x", cache.sources, cache.replace(sources={}), causal.init_cache(2, T)],
            "documents": [TOKENS], "places": [PLACES],
        },
        of=module.__call__,
        free=("read", "train", "context"),
    )  # fmt: skip
    yield Case(
        causal.init_cache,
        {"batch": B, "slots": T, "dtype": jnp.bfloat16},
        {"batch": NO_COUNT, "slots": NO_COUNT, "dtype": [jnp.float16, int, "int8"]},
    )  # fmt: skip
    yield Case(
        started(stems.TokenStem, TOKENS),
        {"vocabulary": (7,), "width": D},
        {"vocabulary": [(), (0,), (-1,), 7, None, ("7",), (7, 7), (3,)], "width": NO_COUNT},
        of=stems.TokenStem,
        also=("inputs",),
    )
    yield Case(
        started(stems.PatchStem, drawn(B, 4, 8, 1)),
        {"patch": 4, "width": D},
        {"patch": [*NO_COUNT, 3], "width": NO_COUNT},
        of=stems.PatchStem,
        also=("inputs",),
    )
    yield Case(
        traced(lambda images: stems.PatchStem(4, D).init(jax.random.key(0), images)),
        {"images": drawn(B, 4, 8, 1)},
        {"images": [*NO_ARRAY, drawn(B, 4, 8), drawn(B, 4, 6, 1), np.ones((B, 4, 8, 1), int)]},
        of=stems.PatchStem(4, D).__call__,
        also=("inputs",),
    )


def position_cases():
    places = np.arange(T)
    yield Case(traced(positions.sinusoidal), {"length": T, "width": D},
               {"length": [-1, *NO_COUNT[2:]], "width": NO_COUNT},
               of=positions.sinusoidal)  # fmt: skip
    yield Case(
        traced(positions.turned_scores),
        {"query": QUERY[:, :1], "key": KEY, "places": KEY_PLACES, "dims": 2, "base": 1e5},
        {"query": [*NO_ARRAY, QUERY, QUERY[0, :1], QUERY[:2, :1]],
         "key": [*NO_ARRAY, KEY[0], KEY[..., :2], KEY[:2]],
         "places": [*WRONG_PLACES, PLACES], "dims": [-2, 3, H + 2, "2", 2.0, True]},
        of=positions.turned_scores, free=("base",), also=("key", "places"),
    )  # fmt: skip
    yield Case(
        traced(positions.rotate),
        {"x": QUERY, "places": PLACES, "dims": 2, "base": 1e5},
        {"x": [*NO_ARRAY, QUERY[0, 0], QUERY[..., :3]], "dims": [-2, 3, H + 2, "2", 2.0, True],
         "places": [*WRONG_PLACES[1:], PLACES[:, :2]]},
        of=positions.rotate, free=("base",),
    )  # fmt: skip
    yield Case(traced(positions.relative_buckets), {"offsets": np.ones((T, S), int)},
               {"offsets": [*NO_ARRAY, np.ones((T, S)), places]},
               of=positions.relative_buckets)  # fmt: skip
    yield Case(positions.alibi_slopes, {"num_heads": 3}, {"num_heads": NO_COUNT})
    yield Case(
        traced(positions.alibi_bias),
        {"num_heads": N, "queries": PLACES, "keys": PLACES},
        {"num_heads": NO_COUNT, "queries": WRONG_PLACES, "keys": WRONG_PLACES},
        of=positions.alibi_bias,
    )  # fmt: skip
    yield Case(
        started(positions.AddPositions, X),
        {"kind": "learned", "max_length": T},
        {"kind": NO_WORD, "max_length": [*NO_COUNT, 1]},
        of=positions.AddPositions,
        also=("learned positions",),
    )
