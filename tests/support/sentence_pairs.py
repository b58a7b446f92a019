"""Sentence pairs, and small models that translate them."""

from qkv_jax.model.config import ModelConfig
from qkv_jax.tasks import make_task
from qkv_jax.training.state import TrainConfig
from qkv_jax.training.step import Trainer

SMALL = {"tokenizer": "bytes", "length": 16, "validation_examples": 4, "test_examples": 6}
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
MODEL = {"layers": 1, "width": 16, "heads": 2}


def rows(count=40):
    """Words, and the same backwards and in capitals: all sources differ."""
    texts = [f"{WORDS[i % 8]} {i}" for i in range(count)]
    return [(text, f"¡{text[::-1].upper()}!") for text in texts]


def columns(path, pairs):
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return str(path)


def translation(table, **options):
    return make_task("translation", {"pairs": table, **SMALL, **options})


def trainer(task, **model):
    config = TrainConfig(steps=150, report_every=10, batch_size=4, decay="constant")
    return Trainer(ModelConfig(**MODEL | model), task, config)
