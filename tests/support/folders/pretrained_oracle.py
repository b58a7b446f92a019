"""Forward passes of published encoders in float64 NumPy, straight from the tensors of their files.

Written from the papers and the names of the tensors, sharing nothing with the package.
"""

import numpy as np
from scipy.special import erf


def hidden_states(config, tensors, inputs, valid=None, types=None):
    """The embeddings and the output of every layer [B, T, D], and the model's output."""
    weights = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    kind = config["model_type"]
    epsilon = 1e-12 if kind == "distilbert" else config["layer_norm_eps"]
    heads = config.get("num_attention_heads") or config["n_heads"]
    act = _ACTIVATIONS[config.get("hidden_act") or config["activation"]]
    linear = lambda name, x: x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
    norm = lambda name, x: _norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    def attention(x, query, key, value, out):
        split = lambda a: a.reshape(*a.shape[:2], heads, -1).transpose(0, 2, 1, 3)
        q, k, v = (split(linear(name, x)) for name in (query, key, value))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        if valid is not None:
            scores = np.where(valid[:, None, None, :], scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        return linear(out, mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    if kind == "vit":
        kernel = weights["embeddings.patch_embeddings.projection.weight"]
        p = kernel.shape[-1]
        rows, columns = inputs.shape[1] // p, inputs.shape[2] // p
        x = np.stack([
            np.einsum("brct,dtrc->bd", inputs[:, p * i : p * i + p, p * j : p * j + p], kernel)
            for i in range(rows) for j in range(columns)
        ], axis=1)  # fmt: skip
        x = x + weights["embeddings.patch_embeddings.projection.bias"]
        first = np.repeat(weights["embeddings.cls_token"], len(x), 0)
        x = np.concatenate([first, x], 1) + weights["embeddings.position_embeddings"]
    else:
        offset = config["pad_token_id"] + 1 if kind == "roberta" else 0
        places = np.arange(inputs.shape[1]) + offset
        x = weights["embeddings.word_embeddings.weight"][inputs]
        x = x + weights["embeddings.position_embeddings.weight"][places]
        if kind != "distilbert":
            types = np.zeros_like(inputs) if types is None else types
            x = x + weights["embeddings.token_type_embeddings.weight"][types]
        x = norm("embeddings.LayerNorm", x)
    states = [x]
    for i in range(config.get("num_hidden_layers") or config["n_layers"]):
        if kind == "distilbert":
            of = f"transformer.layer.{i}."
            names = [f"{of}attention.{part}_lin" for part in ("q", "k", "v", "out")]
            x = norm(f"{of}sa_layer_norm", x + attention(x, *names))
            y = linear(f"{of}ffn.lin2", act(linear(f"{of}ffn.lin1", x)))
            x = norm(f"{of}output_layer_norm", x + y)
        else:
            of = f"encoder.layer.{i}."
            inner = f"{of}attention.attention." if kind == "vit" else f"{of}attention.self."
            names = [inner + role for role in ("query", "key", "value")]
            names.append(f"{of}attention.output.dense")
            mlp = lambda y, of=of: linear(
                f"{of}output.dense", act(linear(f"{of}intermediate.dense", y))
            )
            if kind == "vit":
                x = x + attention(norm(f"{of}layernorm_before", x), *names)
                x = x + mlp(norm(f"{of}layernorm_after", x))
            else:
                x = norm(f"{of}attention.output.LayerNorm", x + attention(x, *names))
                x = norm(f"{of}output.LayerNorm", x + mlp(x))
        states.append(x)
    return states, (norm("layernorm", x) if kind == "vit" else x)


def sentence_embeddings(last, valid):
    """The mean over real tokens, at unit length."""
    mean = (last * valid[:, :, None]).sum(1) / valid.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _norm(x, gain, bias, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return gain * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) + bias


_ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}
_ACTIVATIONS["gelu_python"] = _ACTIVATIONS["gelu"]
_ACTIVATIONS["gelu_fast"] = _ACTIVATIONS["gelu_new"]
