"""Writes sentences.json: embeddings by the sentence-transformers library, for comparison.

    python tests/golden/make_sentences.py

Needs sentence-transformers and torch (written with 6.2.0 and 2.13.0) beside NumPy, safetensors and
tokenizers, in an environment of its own; nothing of qkv_jax.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tests.support.folders import sentence_folders  # noqa: E402

# The library rebuilds a tokenizer of the model's usual class from its words alone; the class that
# reads the whole of tokenizer.json has to be named.
NAMED = {"tokenizer_class": PreTrainedTokenizerFast.__name__}


def embeddings(name):
    with tempfile.TemporaryDirectory() as place:
        root = sentence_folders.write(place, name)
        kind, inner, *_ = sentence_folders.LAYOUTS[name]
        marks = ("<pad>", "<s>", "</s>", "<unk>") if kind == "roberta" else (
            "[PAD]", "[CLS]", "[SEP]", "[UNK]")  # fmt: skip
        names = ("pad_token", "cls_token", "sep_token", "unk_token")
        path = root / inner / "tokenizer_config.json"
        given = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(given | NAMED | dict(zip(names, marks, strict=True))))
        model = SentenceTransformer(str(root), device="cpu")
        return np.round(np.float64(model.encode(sentence_folders.TEXTS)), 6).tolist()


if __name__ == "__main__":
    numbers = {name: embeddings(name) for name in sentence_folders.LAYOUTS}
    (HERE / "sentences.json").write_text(json.dumps(numbers) + "\n")
