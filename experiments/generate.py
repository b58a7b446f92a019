"""What a trained language model goes on to say: `python -m experiments.generate --run=runs/one`.

    --run=runs/lm --prompt="ROMEO:"   a run of experiments.train on a causal text task
    --pretrained=DIR --prompt="Once"  a GPT-2 or Llama folder from Hugging Face instead
    --tokens=200                      how many symbols to add
    --temperature=0.8 --top_k=40      how they are drawn; at temperature 0 the likeliest
    --beams=4                         beam search instead: the likeliest texts that it finds
    --source="In the beginning"       of a run on translation: the translation that a beam finds
    --bleu --examples=200             its BLEU on the first of its test pairs, by default on all

The text is printed as it comes. Without a window, the cache is as long as prompt and tokens
together; its bytes, and tokens a second, are said at the end of what was drawn. BLEU is printed
with sacrebleu's signature.
"""

import dataclasses
import itertools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from rich.console import Console

from qkv_jax.config import ConfigError

from .cli import entry
from .cli.paths import path_flag

_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_PRETRAINED = path_flag("pretrained", None, "Folder of a pretrained GPT-2 or Llama model.")
_STEP = flags.DEFINE_integer("step", None, "A checkpoint of the run; by default the last.",
                             lower_bound=0)  # fmt: skip
_PROMPT = flags.DEFINE_string("prompt", None, "The text to go on from.")
_USUAL = 200
_TOKENS = flags.DEFINE_integer("tokens", None, f"How many symbols to add; {_USUAL}, or as many as "
                               "learned positions allow.", lower_bound=1)  # fmt: skip
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "What logits are divided by; 0 is greedy.",
                                  lower_bound=0.0)  # fmt: skip
_TOP_K = flags.DEFINE_integer("top_k", None, "Only so many of the likeliest.", lower_bound=1)
_TOP_P = flags.DEFINE_float("top_p", None, "Only the likeliest that make up this share.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**32 - 1)
_BEAMS = flags.DEFINE_integer("beams", None, "Beam search of that width.", lower_bound=1)
_SOURCE = flags.DEFINE_string("source", None, "The sentence to translate.")
_BLEU = flags.DEFINE_boolean("bleu", False, "BLEU of a run on translation.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Test pairs of BLEU; by default all.",
                                 lower_bound=1)  # fmt: skip
_OF_DRAWS = ("temperature", "top_k", "top_p", "seed")
_OF_TEXT = ("prompt", "tokens", *_OF_DRAWS)
_OF_PAIRS = ("source", "bleu", "examples")


class Subject(NamedTuple):
    """What goes on with a text."""

    model: Any
    variables: Any
    encode: Callable[[str], Any]  # a text as tokens
    spell: Callable[[list[int]], str]  # tokens as a text


def main() -> None:
    if (_RUN.value is None) == (_PRETRAINED.value is None):
        raise ConfigError("--run", _RUN.value, "name the folder of a run, or --pretrained")
    translates = _BLEU.value or _SOURCE.value is not None
    if not (_PROMPT.value or translates):
        allowed = "give a text to go on from; of a run on translation --source or --bleu"
        raise ConfigError("--prompt", _PROMPT.value, allowed)
    _refuse(_OF_TEXT if translates else (), "is not for a run on translation")
    _refuse(("step",) if _PRETRAINED.value else (), "is of a run")
    _refuse(_OF_PAIRS if _PRETRAINED.value else (), "is for a run on translation")
    _refuse(_OF_DRAWS if _BEAMS.value else (), "is for draws; a beam draws nothing")
    _refuse(() if _BLEU.value else ("examples",), "is for --bleu")
    _refuse(() if _TEMPERATURE.value else ("top_k", "top_p"), "temperature 0 draws nothing")
    for name in ("prompt", "source"):
        _check_text(name)

    if _PRETRAINED.value is not None:
        return _continue(_pretrained(pathlib.Path(_PRETRAINED.value)))

    from qkv_jax.tasks.text.causal import CausalBytes
    from qkv_jax.tasks.text.translation import Translation
    from qkv_jax.training.checkpoint import load_run, run_trainer

    folder = pathlib.Path(_RUN.value)
    task = run_trainer(folder).task
    wanted = Translation if translates else CausalBytes
    what = "translation" if translates else "language model: it reads no text from left to right"
    if not isinstance(task, wanted):
        allowed = f"is of the task {task.title!r}, which is no {what}"
        raise ConfigError("--run", str(folder), allowed)
    if translates:
        return _translate(folder, task)
    spell = lambda tokens: task.decode(np.array(tokens)).decode(errors="replace")
    prompt = task.encode(_PROMPT.value)  # refused before the run is read
    return _continue(Subject(*load_run(folder, _STEP.value), lambda _: prompt, spell))


def _pretrained(folder: pathlib.Path) -> Subject:
    from qkv_jax.interop.pretrained import load_pretrained

    found = load_pretrained(folder)
    if not found.encoder.is_causal:
        allowed = f"is a {found.kind}, which reads no text from left to right"
        raise ConfigError("--pretrained", str(folder), allowed)
    encode = lambda text: found.reader.tokens([text])[0]
    return Subject(found.encoder, found.variables, encode, found.reader.text)


def _refuse(names: tuple[str, ...], allowed: str) -> None:
    """Refuses flags that the other flags leave nothing to say."""
    for name in names:
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name}", flags.FLAGS[name].value, allowed)


def _check_text(name: str) -> None:
    """Refuses bytes that are no text, which a shell hands on as they are."""
    given = flags.FLAGS[name].value or ""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        shown = given.encode(errors="surrogateescape")
        allowed = f"is no UTF-8 at byte {len(given[: error.start].encode())}"
        raise ConfigError(f"--{name}", shown, allowed) from None


def _translate(folder: pathlib.Path, task: Any) -> None:
    from qkv_jax.tasks.text import bleu
    from qkv_jax.training.checkpoint import load_run

    model, variables = load_run(folder, _STEP.value)
    beams = _BEAMS.value or bleu.BEAMS
    if _SOURCE.value is not None:
        print(bleu.translate(model, variables, task, [_SOURCE.value], beams)[0])
    if _BLEU.value:
        found = bleu.bleu(model, variables, task, _EXAMPLES.value, beams)
        print(f"BLEU {found.score:.2f} on {found.sentences} test pairs, beam of {beams}")
        print(found.signature)


def _continue(subject: Subject) -> None:
    from qkv_jax.model.beam import beam_search
    from qkv_jax.model.generate import Generator, Sampling

    model, variables = subject.model, subject.variables
    prompt = np.asarray(subject.encode(_PROMPT.value), np.int32)
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    generator = Generator(model, _TOKENS.value or 1, sampling)
    if _TOKENS.value is None:
        new = max(1, min(_USUAL, generator.room(len(prompt))))
        generator = dataclasses.replace(generator, new=new)
    console = Console(stderr=True, highlight=False)
    if _BEAMS.value is not None:
        texts, scores = beam_search(generator, variables, prompt[None], _BEAMS.value)
        for text, score in zip(texts[0], scores[0], strict=True):
            console.print(f"[dim]{score:.2f} nats:[/dim]")
            print(_PROMPT.value + subject.spell(text.tolist()), flush=True)
        return
    stream = generator.stream(variables, prompt[None], _SEED.value)
    tokens = [int(token) for token in next(stream)]  # refuses what cannot be before it prints
    sys.stdout.write(_PROMPT.value)
    said, times = "", [time.monotonic()]
    for token in itertools.chain(stream, [None]):
        text = subject.spell(tokens)
        if token is None or not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a sign
            sys.stdout.write(text[len(said) :])
            sys.stdout.flush()
            said = text
        if token is not None:
            tokens.append(int(token[0]))
            times.append(time.monotonic())
    print(flush=True)
    size = model.init_cache(1, generator.slots(len(prompt))).nbytes
    line = f"{len(times)} symbols; a cache of {size / 2**10:,.0f} KiB"
    if len(times) > 2:  # the first two are what the two programs were compiled for
        line += f"; {(len(times) - 2) / (times[-1] - times[1]):,.0f} symbols a second"
    console.print(line, style="dim", markup=False)


if __name__ == "__main__":
    entry.enter(main)
