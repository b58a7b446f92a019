"""Causal language modelling on byte pairs learned from training texts, and on characters."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from qkv_jax.config import ConfigError
from qkv_jax.tasks.base import register
from qkv_jax.tasks.sources import Stamp
from qkv_jax.tasks.text.causal import CausalBytes
from qkv_jax.tasks.text.packing import smallest_dtype
from qkv_jax.tasks.text.plain_text import read_text
from qkv_jax.tasks.text.texts import BytePairs, Texts


@register("causal_tokens")
@dataclasses.dataclass(frozen=True)
class CausalTokens(BytePairs, CausalBytes):
    """Causal language modelling on byte pairs learned from the training split alone; lengths count
    tokens and the loss is in nats per token: of two vocabularies only bits per byte compare."""

    title = "Causal tokens"
    description = "Guess each token (a byte pair) of a text from the tokens before it."

    def symbols(self):
        return self.encoded()[0]

    def symbol_bytes(self):
        decode = self.encoded()[1].decode
        return np.array([len(decode(np.array([token]))) for token in range(self.vocabulary)])

    def _spelled(self, text):
        return self.encoded()[1].encode(text.encode())

    def decode(self, symbols):
        return self.encoded()[1].decode(np.asarray(symbols))


@register("causal_characters")
@dataclasses.dataclass(frozen=True)
class CausalCharacters(CausalBytes):
    """Causal language modelling on the characters of the training split, in the order of Unicode;
    loss in nats per character. What held-out texts have beside them is read as one unknown symbol
    and not asked for. On tiny-shakespeare, a file of the user's, the training text is nanoGPT's,
    whose validation text is here cut into validation and test."""

    title = "Causal characters"
    description = "Guess each character of a text from the characters before it."
    symbol = "character"

    encoding: Literal["utf-8"] = "utf-8"

    @property
    def characters(self) -> str:
        """Those of the training split, in order."""
        return _numbered(self, self.stamp())[1]

    @property
    def classes(self):
        return len(self.characters)

    def fingerprint(self, data):
        return super().fingerprint(data) | {"classes": list(self.characters)}

    def read(self, path):
        text = read_text(path, "files")
        if len(text) < self.window:
            what = f"holds {len(text)} characters; a sequence needs {self.window}"
            raise ConfigError("files", str(path), what if text else "is empty")
        return self.of_text(text)

    def of_text(self, text):
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)

    def symbols(self):
        return _numbered(self, self.stamp())[0]

    def symbol_bytes(self):
        return np.array([len(character.encode()) for character in self.characters])

    def _spelled(self, text):
        places = [self.characters.find(character) for character in text]
        return np.array([self.classes if place < 0 else place for place in places])

    def decode(self, symbols):
        return "".join(self.characters[symbol] for symbol in np.asarray(symbols)).encode()


@functools.lru_cache(maxsize=4)  # a task asks for its classes all the time
def _numbered(task: CausalCharacters, changed: Stamp) -> tuple[Texts, str]:
    """The characters of a task's texts as numbers, and what these stand for."""
    texts = task.texts()
    known = np.unique(np.concatenate([np.zeros(0, np.uint32), *texts["train"]]))
    if len(known) < 2:
        raise task.refused("the training split has fewer than two characters")
    highest = max(int(text.max(initial=0)) for some in texts.values() for text in some)
    numbers = np.full(highest + 1, len(known), smallest_dtype(len(known)))
    numbers[known] = np.arange(len(known))
    spelled = {name: [numbers[text] for text in some] for name, some in texts.items()}
    for name, some in spelled.items():
        if not any((text < len(known)).any() for text in some):
            raise task.refused(f"the {name} split has no character of the training split")
    return spelled, "".join(map(chr, known))
