"""What a trained language model goes on to say: `python -m experiments.generate --run=runs/one`.

    --run=runs/lm --prompt="ROMEO:"   a run of experiments.train on a causal text task
    --tokens=200                      how many symbols to add
    --temperature=0.8 --top_k=40      how they are drawn; at temperature 0 the likeliest
    --beams=4                         beam search instead: the likeliest texts that it finds
    --source="In the beginning"       of a run on translation: the translation that a beam finds
    --bleu --examples=200             its BLEU on the first of its test pairs, by default on all

The text is printed as it comes. Without a window, the cache is as long as prompt and tokens
together; its bytes are said at the end. BLEU is printed with sacrebleu's signature.
"""

import codecs
import itertools
import pathlib
import sys
import time
from typing import Any

from absl import flags
from rich.console import Console

from experiments.cli import entry
from experiments.cli.paths import path_flag
from qkv_jax.config import ConfigError

_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_STEP = flags.DEFINE_integer("step", None, "A checkpoint of the run; by default the last.",
                             lower_bound=0)  # fmt: skip
_PROMPT = flags.DEFINE_string("prompt", None, "The text to go on from.")
_TOKENS = flags.DEFINE_integer("tokens", 200, "How many symbols to add.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "What logits are divided by; 0 is greedy.",
                                  lower_bound=0.0)  # fmt: skip
_TOP_K = flags.DEFINE_integer("top_k", None, "Only so many of the likeliest.", lower_bound=1)
_TOP_P = flags.DEFINE_float("top_p", None, "Only the likeliest that make up this share.",
                            lower_bound=0.0, upper_bound=1.0)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**32 - 1)
_BEAMS = flags.DEFINE_integer("beams", None, "Beam search of that width.", lower_bound=1)
_SOURCE = flags.DEFINE_string("source", None, "The sentence to translate.")
_BLEU = flags.DEFINE_boolean("bleu", False, "BLEU of a run on translation.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Test pairs of BLEU; by default all.",
                                 lower_bound=1)  # fmt: skip
_OF_DRAWS = ("temperature", "top_k", "top_p", "seed")
_OF_TEXT = ("prompt", "tokens", *_OF_DRAWS)


def main() -> None:
    if _RUN.value is None:
        raise ConfigError("--run", None, "name the folder of a run")
    translates = _BLEU.value or _SOURCE.value is not None
    if not (_PROMPT.value or translates):
        allowed = "give a text to go on from; of a run on translation --source or --bleu"
        raise ConfigError("--prompt", _PROMPT.value, allowed)
    _refuse(_OF_TEXT if translates else (), "is not for a run on translation")
    _refuse(_OF_DRAWS if _BEAMS.value else (), "is for draws; a beam draws nothing")
    _refuse(() if _BLEU.value else ("examples",), "is for --bleu")

    from qkv_jax.tasks.text.causal import CausalBytes
    from qkv_jax.tasks.text.translation import Translation
    from qkv_jax.training.checkpoint import run_trainer

    folder = pathlib.Path(_RUN.value)
    task = run_trainer(folder).task
    wanted, what = (Translation, "translation") if translates else (CausalBytes, "text")
    if not isinstance(task, wanted):
        allowed = f"is of the task {task.title!r}, which is no {what}"
        raise ConfigError("--run", str(folder), allowed)
    (_translate if translates else _continue)(folder, task)


def _refuse(names: tuple[str, ...], allowed: str) -> None:
    """Refuses flags that the other flags leave nothing to say."""
    for name in names:
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name}", flags.FLAGS[name].value, allowed)


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


def _continue(folder: pathlib.Path, task: Any) -> None:
    from qkv_jax.model.beam import beam_search
    from qkv_jax.model.generate import Generator, Sampling
    from qkv_jax.training.checkpoint import load_run

    prompt = task.encode(_PROMPT.value)
    model, variables = load_run(folder, _STEP.value)
    sampling = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
    generator = Generator(model, _TOKENS.value, sampling)
    console = Console(stderr=True, highlight=False)
    if _BEAMS.value is not None:
        texts, scores = beam_search(generator, variables, prompt[None], _BEAMS.value)
        for text, score in zip(texts[0], scores[0], strict=True):
            console.print(f"[dim]{score:.2f} nats:[/dim]")
            print(_PROMPT.value + task.decode(text).decode(errors="replace"), flush=True)
        return
    started, spelled = time.monotonic(), codecs.getincrementaldecoder("utf-8")("replace")
    stream = generator.stream(variables, prompt[None], _SEED.value)
    first = next(stream)  # refuses what cannot be, before anything is printed
    sys.stdout.write(_PROMPT.value)
    for token in itertools.chain([first], stream):
        sys.stdout.write(spelled.decode(task.decode(token)))
        sys.stdout.flush()
    print(spelled.decode(b"", final=True))
    seconds = time.monotonic() - started
    size = model.init_cache(1, generator.slots(len(prompt))).nbytes
    rate = _TOKENS.value / seconds
    console.print(
        f"{_TOKENS.value} symbols in {seconds:.1f} s, compiling included ({rate:.0f} a second); a "
        f"cache of {size / 2**10:,.0f} KiB",
        style="dim", markup=False,
    )  # fmt: skip


if __name__ == "__main__":
    entry.enter(main)
