"""The README.md of an exported model: what it is, what was measured, how it is loaded."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from qkv_jax.interop.export import Exported
from qkv_jax.interop.places import leaf_shapes
from qkv_jax.model.encoder import Encoder
from qkv_jax.model.stems import PatchStem, TokenStem

_TRANSFORMERS = {
    "gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM",
    "bert": "AutoModelForTokenClassification", "vit": "AutoModelForImageClassification",
}  # fmt: skip


def card(
    where: str,
    task: str,
    encoder: Encoder,
    example: jax.Array | np.ndarray,
    exported: Exported,
    numbers: Sequence[str],
    reads_texts: bool,
) -> str:
    """The card as Markdown.

    Args:
      where: the folder that the model lies in, as code is to name it.
      task: what it was trained to do, in a sentence or two.
      encoder: the model before it was written.
      example: inputs of one example, of the model that is read back.
      exported: what `save_model` said.
      numbers: what was measured, a sentence each.
      reads_texts: whether there is a tokenizer.json.
    """
    library = "qkv_jax" if exported.why_own else "transformers"
    ties = ", ".join(dict.fromkeys(map(str, encoder.config.ties)))
    lines = [
        "---", f"library_name: {library}", "tags:", "- qkv_jax", "---", "",
        f"# {where.rstrip('/').rpartition('/')[2]}", "", task, "",
        "| | |", "|---|---|", f"| tie | `{ties}` |", *_sizes(encoder, example), "",
        "## Measured", "", *(f"- {line}" for line in numbers), "",
        "## Load it", "",
    ]  # fmt: skip
    if exported.why_own:
        lines += [
            "`model_type` is `qkv_jax`: no published architecture computes the same "
            f"({exported.why_own}).", "",
        ]  # fmt: skip
    lines += ["```python", *_with_qkv_jax(where, example, reads_texts), "```", ""]
    if not exported.why_own:
        auto = _TRANSFORMERS[exported.kind]
        lines += [
            f"Or as the architecture {exported.kind}:", "", "```python",
            f"from transformers import {auto}", "",
            f'model = {auto}.from_pretrained("{where}")', "```", "",
        ]  # fmt: skip
        lines += _never_asked(encoder)
    if "." in encoder.config.scheme:
        lines += [f"Its scheme is the class `{encoder.config.scheme}`, which must be there.", ""]
    return "\n".join(lines)


def _sizes(encoder: Encoder, example: jax.Array | np.ndarray) -> list[str]:
    config = encoder.config
    channels = example.shape[-1] if isinstance(encoder.stem, PatchStem) else 0
    count = sum(map(math.prod, leaf_shapes(encoder, channels).values()))
    heads = f"{config.heads} of width {config.head_width}"
    if config.kv_heads not in (None, config.heads):
        heads += f", on {config.kv_heads} of keys and values"
    return [
        f"| parameters | {count:,} |", f"| layers, width | {config.layers}, {config.width} |",
        f"| heads | {heads} |", f"| positions | {config.positions} |",
        f"| longest sequence in training | {encoder.max_length} |",
    ]  # fmt: skip


def _with_qkv_jax(where: str, example: jax.Array | np.ndarray, texts: bool) -> list[str]:
    numpy, given = [], "inputs, valid"
    inputs = 'inputs, valid = model.encode(["a"])'
    if not texts:
        kind = "int32" if np.issubdtype(example.dtype, np.integer) else "float32"
        numpy, given = ["import numpy as np", ""], "inputs"
        inputs = f'inputs = np.zeros({example.shape}, "{kind}")  # one example'
    return [
        *numpy, "from qkv_jax.interop.pretrained import load_pretrained", "",
        f'model = load_pretrained("{where}")  # or org/name, once it is on the hub', inputs,
        f"logits = model.encoder.apply(model.variables, {given})",
    ]  # fmt: skip


def _never_asked(encoder: Encoder) -> list[str]:
    """A line on symbols that are read and never foretold."""
    tokens = encoder.stem.vocabulary[0] if isinstance(encoder.stem, TokenStem) else 0
    if not encoder.is_causal or encoder.classes >= tokens:
        return []
    what = f"Token {encoder.classes} is read and never foretold: its logit means nothing, and"
    return [
        f"{what} `generate` leaves it out (generation_config.json).", "",
    ]  # fmt: skip
