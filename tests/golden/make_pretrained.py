"""Writes pretrained.json, decoders.json and minilm.json: numbers of the transformers library, for
comparison.

    python tests/golden/make_pretrained.py [folder of all-MiniLM-L6-v2]

Needs torch and transformers (written with 2.13.0 and 5.23.0) beside NumPy, SciPy, safetensors and
tokenizers, in an environment of its own; nothing of qkv_jax. Without a folder, minilm.json stays.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tests.support.folders import decoder_folders  # noqa: E402
from tests.support.folders import pretrained_folders as folders  # noqa: E402

SENTENCES = [
    "The cat sat on the mat.",
    "A kitten was resting on a rug.",
    "Shares fell sharply in London on Monday.",
    "What does it cost to equate queries, keys and values?",
    "Colourless green ideas sleep furiously, said the linguist; nobody in the room disagreed.",
]


def states(model, **inputs):
    """The embeddings and the output of every layer, caught as they leave their modules."""
    caught = []
    hook = lambda module, args, out: caught.append(out[0] if isinstance(out, tuple) else out)
    body = getattr(model, "encoder", None) or getattr(model, "transformer", None) or model
    layers = getattr(body, "layer", None) or getattr(body, "layers", None)
    for module in (model.embeddings, *layers):
        module.register_forward_hook(hook)
    with torch.no_grad():
        last = model(**inputs).last_hidden_state
    return [*caught, last]


def tiny(config):
    with tempfile.TemporaryDirectory() as place:
        folder = folders.write(place, config, tokenizer=False)
        options = {"attn_implementation": "eager"}
        if config["model_type"] != "vit":
            options["add_pooling_layer"] = False
        if config["model_type"] == "distilbert":
            del options["add_pooling_layer"]
        model = transformers.AutoModel.from_pretrained(folder, **options).eval()
    if config["model_type"] == "vit":
        pixels = torch.tensor(folders.images().transpose(0, 3, 1, 2))
        found = states(model, pixel_values=pixels)
    else:
        ids, valid = folders.token_inputs(config)
        mask = torch.tensor(valid).long()
        found = states(model, input_ids=torch.tensor(ids).long(), attention_mask=mask)
    return [rounded(state[:2, :5, :2]) for state in found]


def decoder(config):
    """Logits of the first tokens of two rows."""
    with tempfile.TemporaryDirectory() as place:
        folder = decoder_folders.write(place, config, tokenizer=False)
        options = {"attn_implementation": "eager"}
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    tokens, _ = decoder_folders.token_inputs(config)
    with torch.no_grad():
        found = model(input_ids=torch.tensor(tokens)).logits
    return rounded(found[:2, :5, :4])


def minilm(folder):
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    found = states(model, **inputs)
    mask = inputs["attention_mask"][:, :, None]
    vectors = (found[-1] * mask).sum(1) / mask.sum(1)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return {
        "sentences": SENTENCES,
        "tokens": [
            ids[on.bool()].tolist()
            for ids, on in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ],
        "hidden_states": [rounded(state[:, :3, :4]) for state in found],
        "embeddings": rounded(vectors[:, :8]),
        "cosines": rounded(vectors @ vectors.T),
    }


def rounded(array):
    return np.round(np.asarray(array, np.float64), 6).tolist()


def write(name, numbers):
    (HERE / f"{name}.json").write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    write("pretrained", {kind: tiny(config) for kind, config in folders.CONFIGS.items()})
    write("decoders", {name: decoder(c) for name, c in decoder_folders.CONFIGS.items()})
    if len(sys.argv) > 1:
        write("minilm", minilm(sys.argv[1]))
