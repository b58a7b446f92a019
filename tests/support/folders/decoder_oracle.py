"""Forward passes of GPT-2 and Llama in float64 NumPy, straight from the tensors of their files.

Written from the papers and the names of the tensors, sharing nothing with the package. Padding
stands at the right, where a causal model does not see it.
"""

import numpy as np


def logits(config, tensors, tokens):
    """Of the token that comes next, [B, T, V]."""
    w = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    return (_gpt2 if config["model_type"] == "gpt2" else _llama)(config, w, tokens)


def _gpt2(config, w, tokens):
    epsilon, heads = config.get("layer_norm_epsilon", 1e-5), config["n_head"]
    act = _ACTIVATIONS[config.get("activation_function", "gelu_new")]

    def norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    dense = lambda name, x: x @ w[f"{name}.weight"] + w[f"{name}.bias"]  # stored as [in, out]
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: tokens.shape[1]]
    for i in range(config["n_layer"]):
        of = f"transformer.h.{i}"
        fused = dense(f"{of}.attn.c_attn", norm(f"{of}.ln_1", x))
        q, k, v = (_split(part, heads) for part in np.split(fused, 3, axis=-1))
        x = x + dense(f"{of}.attn.c_proj", _attention(q, k, v))
        x = x + dense(f"{of}.mlp.c_proj", act(dense(f"{of}.mlp.c_fc", norm(f"{of}.ln_2", x))))
    table = w.get("lm_head.weight", w["transformer.wte.weight"])
    return norm("transformer.ln_f", x) @ table.T


def _llama(config, w, tokens):
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    epsilon = config.get("rms_norm_eps", 1e-6)
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    norm = lambda name, x: (
        x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * w[f"{name}.weight"]
    )
    dense = lambda name, x: x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def turned(x):
        """Su et al. 2021, by complex numbers: coordinates i and i + H/2 are one of them."""
        half = x.shape[-1] // 2
        angles = np.arange(x.shape[2])[:, None] * theta ** (-np.arange(half) / half)
        z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], -1)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        of = f"model.layers.{i}"
        y = norm(f"{of}.input_layernorm", x)
        q = turned(_split(dense(f"{of}.self_attn.q_proj", y), heads))
        k = turned(_split(dense(f"{of}.self_attn.k_proj", y), groups))
        v = _split(dense(f"{of}.self_attn.v_proj", y), groups)
        k, v = (np.repeat(part, heads // groups, axis=1) for part in (k, v))
        x = x + dense(f"{of}.self_attn.o_proj", _attention(q, k, v))
        y = norm(f"{of}.post_attention_layernorm", x)
        gate = dense(f"{of}.mlp.gate_proj", y)
        gated = gate / (1 + np.exp(-gate)) * dense(f"{of}.mlp.up_proj", y)
        x = x + dense(f"{of}.mlp.down_proj", gated)
    table = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm("model.norm", x) @ table.T


def _split(x, heads):
    """[B, heads, T, H]"""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _attention(q, k, v):
    """Of the tokens so far, the heads laid side by side."""
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)


_ACTIVATIONS = {
    "gelu_new": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}
