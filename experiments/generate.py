r"""What a trained language model goes on to say: `python -m experiments.generate --run=runs/one`.

    --run=runs/lm --prompt="ROMEO:"   a run of experiments.train on a causal text task
    --pretrained=DIR --prompt="Once"  a GPT-2 or Llama folder instead, or org/name of the hub
    --prompt=-                        the prompt is read from stdin, but for a last newline; an
                                      empty one where texts have a symbol that begins them
    --tokens=200 --stop=$'\n\n'       how many symbols to add, and text before which a draw stops
    --temperature=0.8 --top_k=40      how they are drawn; at temperature 0 the likeliest
    --samples=3                       several texts, drawn together
    --beams=4                         beam search instead: the likeliest texts that it finds
    --source="In the beginning"       of a run on translation: the translation that a beam finds
    --bleu --examples=200             its BLEU on the first of its test pairs, by default on all

The text is printed as it comes; a pretrained model may end it, by a token of its own. Without a
window, the cache is as long as prompt and tokens together; its bytes, and tokens a second, are said
at the end of what was drawn. BLEU is printed with sacrebleu's signature.
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

from .cli import entry, first_line
from .cli.paths import path_flag

_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_PRETRAINED = path_flag("pretrained", None, "A GPT-2 or Llama folder, or org/name of the hub.")
_STEP = flags.DEFINE_integer("step", None, "A checkpoint of the run; by default the last.",
                             lower_bound=0)  # fmt: skip
_PROMPT = flags.DEFINE_string("prompt", None, "The text to go on from; - reads it from stdin.")
_USUAL = 200
_TOKENS = flags.DEFINE_integer("tokens", None, f"How many symbols to add; {_USUAL}, or as many as "
                               "learned positions allow.", lower_bound=1)  # fmt: skip
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "What logits are divided by; 0 is greedy.",
                                  lower_bound=0.0)  # fmt: skip
_TOP_K = flags.DEFINE_integer("top_k", None, "Only so many of the likeliest.", lower_bound=1)
_TOP_P = flags.DEFINE_float("top_p", None, "Only the likeliest that make up this share.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**32 - 1)
_STOP = flags.DEFINE_string("stop", None, "The text ends where this would come.")
_SAMPLES = flags.DEFINE_integer("samples", None, "How many texts to draw.", lower_bound=1)
_BEAMS = flags.DEFINE_integer("beams", None, "Beam search of that width.", lower_bound=1)
_SOURCE = flags.DEFINE_string("source", None, "The sentence to translate.")
_BLEU = flags.DEFINE_boolean("bleu", False, "BLEU of a run on translation.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Test pairs of BLEU; by default all.",
                                 lower_bound=1)  # fmt: skip
_OF_DRAWS = ("temperature", "top_k", "top_p", "seed", "samples")
_OF_TEXT = ("prompt", "tokens", "stop", *_OF_DRAWS)
_OF_CHANCE = ("top_k", "top_p", "samples")
_OF_PAIRS = ("source", "bleu", "examples")


class Subject(NamedTuple):
    """What goes on with a text."""

    model: Any
    variables: Any
    prompt: Any  # its tokens
    spell: Callable[[list[int]], str]  # tokens behind them as a text
    ends: tuple[int, ...] = ()  # the tokens that end one, and are no part of it


def main() -> None:
    if (_RUN.value is None) == (_PRETRAINED.value is None):
        raise ConfigError("--run", _RUN.value, "name the folder of a run, or --pretrained")
    translates = _BLEU.value or _SOURCE.value is not None
    if _PROMPT.value is None and not translates:
        allowed = "give a text to go on from; of a run on translation --source or --bleu"
        raise ConfigError("--prompt", _PROMPT.value, allowed)
    _refuse(_OF_TEXT if translates else (), "is not for a run on translation")
    _refuse(("step",) if _PRETRAINED.value else (), "is of a run")
    _refuse(_OF_PAIRS if _PRETRAINED.value else (), "is for a run on translation")
    _refuse(_OF_DRAWS if _BEAMS.value else (), "is for draws; a beam draws nothing")
    _refuse(("stop",) if _BEAMS.value else (), "is for draws; a beam's score is of the whole text")
    _refuse(() if _BLEU.value else ("examples",), "is for --bleu")
    _refuse(() if _TEMPERATURE.value else _OF_CHANCE, "temperature 0 draws nothing")
    if _STOP.value == "":
        raise ConfigError("--stop", "", "must be a text")
    for name in ("prompt", "source", "stop"):
        _check_text(name, flags.FLAGS[name].value)
    prompt = _stdin() if _PROMPT.value == "-" else _PROMPT.value

    if _PRETRAINED.value is not None:
        return _continue(_pretrained(pathlib.Path(_PRETRAINED.value), prompt), prompt)

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
    given = task.encode(prompt)  # refused before the run is read
    return _continue(Subject(*load_run(folder, _STEP.value), given, spell), prompt)


def _pretrained(folder: pathlib.Path, prompt: str) -> Subject:
    from qkv_jax.interop.pretrained import load_pretrained

    found = load_pretrained(folder)
    if not found.encoder.is_causal:
        allowed = f"is a {found.kind}, which reads no text from left to right"
        raise ConfigError("--pretrained", str(folder), allowed)

    reader = found.reader
    if not prompt:
        return Subject(found.encoder, found.variables, found.begin, reader.text, found.ends)
    try:
        given = reader.tokens([prompt])[0]
    except ConfigError as error:
        raise ConfigError("--prompt", error.given, error.allowed) from None
    given = given[: len(given) - len(reader.end)]  # without what would end it
    # Some tokenizers spell a token otherwise where a text begins: without its space, say.
    last = given[-1:]
    spell = lambda tokens: reader.text([*last, *tokens])[len(reader.text(last)) :]
    return Subject(found.encoder, found.variables, given, spell, found.ends)


def _refuse(names: tuple[str, ...], allowed: str) -> None:
    """Refuses flags that the other flags leave nothing to say."""
    for name in names:
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name}", flags.FLAGS[name].value, allowed)


def _check_text(name: str, given: str | None) -> None:
    """Refuses bytes that are no text, which a shell hands on as they are."""
    try:
        (given or "").encode()
    except UnicodeEncodeError as error:
        shown = given.encode(errors="surrogateescape")
        allowed = f"is no UTF-8 at byte {len(given[: error.start].encode())}"
        raise ConfigError(f"--{name}", shown, allowed) from None


def _stdin() -> str:
    """What comes on stdin, but for the newline that ends it."""
    given = sys.stdin.buffer.read().decode(errors="surrogateescape")
    _check_text("prompt", given)
    return given.removesuffix("\n").removesuffix("\r")


def _translate(folder: pathlib.Path, task: Any) -> None:
    from qkv_jax.tasks.text import bleu
    from qkv_jax.training.checkpoint import load_run

    model, variables = load_run(folder, _STEP.value)
    beams = _BEAMS.value or bleu.BEAMS
    if _SOURCE.value is not None:
        _warn_of_cut(task)
        print(bleu.translate(model, variables, task, [_SOURCE.value], beams)[0])
    if _BLEU.value:
        found = bleu.bleu(model, variables, task, _EXAMPLES.value, beams)
        print(f"BLEU {found.score:.2f} on {found.sentences} test pairs, beam of {beams}")
        print(found.signature)


def _warn_of_cut(task: Any) -> None:
    beyond = task.beyond(_SOURCE.value)
    if beyond:
        line = f"--source is cut: the model reads {task.length} tokens, and leaves out {beyond}"
        print(f"warning: {line}", file=sys.stderr)


def _continue(subject: Subject, prompt: str) -> None:
    from qkv_jax.model.generate import Generator, Sampling

    tokens = np.asarray(subject.prompt, np.int32)[None]
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    generator = Generator(subject.model, _TOKENS.value or 1, sampling, subject.ends)
    if _TOKENS.value is None:
        new = max(1, min(_USUAL, generator.room(tokens.shape[1])))
        generator = dataclasses.replace(generator, new=new)
    console = Console(stderr=True, highlight=False)
    if _BEAMS.value is not None:
        from qkv_jax.model.beam import beam_search

        texts, scores = beam_search(generator, subject.variables, tokens, _BEAMS.value)
        there = np.isfinite(scores[0])  # more beams may be asked for than there are continuations
        heads = [f"{score:.2f} nats:" for score in scores[0][there]]
        _print_all(console, subject, prompt, heads, texts[0][there])
    elif (_SAMPLES.value or 1) > 1:
        rows = np.repeat(tokens, _SAMPLES.value, axis=0)
        texts = generator(subject.variables, rows, _SEED.value)
        heads = [f"sample {number}:" for number in range(1, 1 + len(texts))]
        _print_all(console, subject, prompt, heads, texts)
    else:
        _stream(console, subject, prompt, generator, tokens)


def _print_all(console: Console, subject: Subject, prompt: str, heads, texts) -> None:
    first_line.say(console, f"the prompt goes on by {_RUN.value or _PRETRAINED.value}.")
    for head, text in zip(heads, texts, strict=True):
        console.print(f"[dim]{head}[/dim]")
        end = next((i for i, token in enumerate(text.tolist()) if token in subject.ends), None)
        print(prompt + _until_stop(subject.spell(text[:end].tolist()))[0], flush=True)


def _until_stop(text: str, whole: bool = True) -> tuple[str, bool]:
    """What of a text stands before --stop, and whether that has come. Of a text that is not `whole`
    what may be the beginning of it is left out."""
    stop = _STOP.value
    if stop is None:
        return text, False
    before, found, _ = text.partition(stop)
    if not (found or whole):
        sizes = range(len(stop) - 1, 0, -1)
        held = next((size for size in sizes if before.endswith(stop[:size])), 0)
        before = before[: len(before) - held]
    return before, bool(found)


def _stream(console: Console, subject: Subject, prompt: str, generator, rows) -> None:
    """Prints a text as it comes."""
    import jax

    stream = generator.stream(subject.variables, rows, _SEED.value)
    tokens = [int(token) for token in next(stream)]  # refuses what cannot be before it prints
    first_line.say(console, f"the prompt goes on by {_RUN.value or _PRETRAINED.value}.")
    sys.stdout.write(prompt)
    said, times = "", [time.monotonic()]
    for token in itertools.chain(stream, [None]):
        ended = tokens[-1] in subject.ends
        last = ended or token is None
        text = subject.spell(tokens[:-1] if ended else tokens)
        ready, stopped = _until_stop(text, last)
        half = text.endswith("\N{REPLACEMENT CHARACTER}") and not stopped
        if last or not half:  # half of a sign
            sys.stdout.write(ready[len(said) :])
            sys.stdout.flush()
            said = ready
        if stopped or last:
            break
        tokens.append(int(token[0]))
        times.append(time.monotonic())
    print(flush=True)
    slots = generator.slots(rows.shape[1])
    size = jax.eval_shape(lambda: subject.model.init_cache(1, slots)).nbytes
    line = f"{len(times)} symbols; a cache of {size / 2**10:,.0f} KiB"
    if len(times) > 2:  # the first two are what the two programs were compiled for
        line += f"; {(len(times) - 2) / (times[-1] - times[1]):,.0f} symbols a second"
    console.print(line, style="dim", markup=False)


if __name__ == "__main__":
    entry.enter(main)
