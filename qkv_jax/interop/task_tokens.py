"""The symbols of our text tasks as a tokenizer.json, for whoever reads an exported model.

The number above all symbols is the mask of masked modelling; of causal modelling it begins a text
where the task's rows do, and stands for characters that no training text has.
"""

import json

from qkv_jax.tasks.base import Task
from qkv_jax.tasks.text.causal import CausalBytes
from qkv_jax.tasks.text.causal_symbols import CausalCharacters
from qkv_jax.tasks.text.masked import MaskedBytes
from qkv_jax.tasks.text.texts import BytePairs
from qkv_jax.tasks.text.tokenizers import BYTES, word_pattern

MASK, MARK = "[MASK]", "<|mark|>"


def tokenizer_json(task: Task) -> str | None:
    """The tokenizer.json of a language-modelling task; None of other tasks, and where the package
    `tokenizers` is not installed."""
    if not isinstance(task, CausalBytes | MaskedBytes):
        return None
    try:
        import tokenizers
    except ImportError:
        return None
    made = _characters(task) if isinstance(task, CausalCharacters) else _bytes(task)
    mark = MASK if isinstance(task, MaskedBytes) else MARK
    made.add_special_tokens([mark])
    if isinstance(task, CausalBytes) and task.dataset:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{mark} $A", special_tokens=[(mark, task.classes)]
        )
    return made.to_str(pretty=True)


def _characters(task: CausalCharacters):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    numbers = {character: i for i, character in enumerate(task.characters)} | {MARK: task.classes}
    made = Tokenizer(models.WordLevel(numbers, unk_token=MARK))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return made


def _bytes(task: CausalBytes | MaskedBytes):
    """Bytes, or pairs of them. What works on one character per byte there, Latin-1, works here on
    the characters by which such files write bytes (Radford et al. 2019)."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    signs = byte_signs()
    numbers, merges = {chr(byte): byte for byte in range(BYTES)}, []
    if isinstance(task, BytePairs):
        parts = json.loads(task.encoded()[1].to_json())["model"]
        numbers, merges = parts["vocab"], [tuple(pair) for pair in parts["merges"]]
    written = lambda text: "".join(signs[ord(character)] for character in text)
    numbers = {written(text): number for text, number in numbers.items()}
    numbers[MASK if isinstance(task, MaskedBytes) else MARK] = task.classes
    made = Tokenizer(models.BPE(numbers, [(written(a), written(b)) for a, b in merges]))
    made.normalizer = normalizers.ByteLevel()
    if merges:
        feed, back = signs[ord("\n")], signs[ord("\r")]
        line = f"[^{back}{feed}]*(?:{back}{feed}|{back}|{feed})|[^{back}{feed}]+"
        cuts = (line, word_pattern(signs))
        splits = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in cuts]
        made.pre_tokenizer = pre_tokenizers.Sequence(splits)
    made.decoder = decoders.ByteLevel()
    return made


def byte_signs() -> list[str]:
    """The sign that byte-level files write for each byte: itself where it can be printed, else one
    of those from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, BYTES)]
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in plain else next(others)) for byte in range(BYTES)]
