"""A tie imposed on a trained model: `python -m experiments.surgery --run=runs/one --tie=K=V`.

    --run=runs/one                    a run of experiments.train, measured by its task's test metric
    --pretrained=DIR --texts=FILE     a Hugging Face folder, measured on every other text
    --method=fit --method=average     also keep_query, keep_key, keep_value; average, fit by default
    --layers=0,2                      which layers may be tied; all by default
    --steps=500 --learning_rate=1e-3  how long the tied model is trained on: on the run's task, the
                                      original beside it, or by distilling a pretrained original's
                                      hidden states; 0 steps by default. Without a rate: 1e-3 for a
                                      run; 1e-3 or 1e-4 for a pretrained model, whichever is better
                                      on a fifth of the training texts
    --workdir=runs/surgery            tables, a figure, report.html, and the tied models

The other commands read a tied model by --pretrained=runs/surgery/models/fit.
"""

import pathlib
import shlex
import sys
import time

from absl import flags, logging
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.tie import Tie, TieError

from .cli import entry, first_line, place
from .cli.paths import path_flag

_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_PRETRAINED = path_flag("pretrained", None, "A Hugging Face folder, or org/name of the hub.")
_TEXTS = path_flag("texts", None, "A file with one text per line, for --pretrained; by "
                                            "default sentences of Shakespeare.")  # fmt: skip
_SENTENCES = flags.DEFINE_integer("sentences", 200, "How many texts.", lower_bound=4)
_TIE = flags.DEFINE_string("tie", "K=V", "The tie to impose.")
_METHOD = flags.DEFINE_multi_string("method", ["average", "fit"], "How; give it again for several.")
_LAYERS = flags.DEFINE_list("layers", None, "Numbers of layers, from 0; all by default.")
_STEPS = flags.DEFINE_integer("steps", 0, "Steps of further training.", lower_bound=0)
_RATE = flags.DEFINE_float("learning_rate", None, "Of further training; by default 1e-3, and for "
                           "--pretrained 1e-3 or 1e-4, as suits it.")  # fmt: skip
_UNKNOWN = flags.DEFINE_boolean("allow_unknown", None, "Also texts that are more than half unknown "
                                "to the tokenizer of --pretrained.")  # fmt: skip
_WORKDIR = path_flag("workdir", "runs/surgery", "Folder to write; must not hold files.")


def main() -> None:
    tie = _tie()
    _check_rate()
    folder = pathlib.Path(_WORKDIR.value)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("--workdir", _WORKDIR.value, "holds files already; name a new folder")
    chosen = [name for name in ("run", "pretrained") if flags.FLAGS[name].value is not None]
    if len(chosen) != 1:
        given = _PRETRAINED.value if chosen else None
        raise ConfigError("--run", given, "name one model: --run or --pretrained")
    for flag in (_TEXTS, _UNKNOWN):
        if flag.value is not None and chosen != ["pretrained"]:
            raise ConfigError(f"--{flag.name}", flag.value, "is for --pretrained")

    from qkv_jax.surgery.impose import check

    started = time.monotonic()
    logging.set_verbosity(logging.ERROR)  # Orbax warns at length of what is refused here
    edited = _of_run() if chosen == ["run"] else _of_pretrained()
    methods = tuple(dict.fromkeys(_METHOD.value))
    try:
        check(edited.encoder, tie, methods)
    except ConfigError as error:
        field = error.field if error.field in ("tie", "method") else chosen[0]
        raise ConfigError(field, error.given, error.allowed) from None
    layers = _layers(edited.encoder.config.layers)

    from qkv_jax.surgery.operation import operate
    from qkv_jax.surgery.page import console_table, notes, result_sentences, write_surgery
    from qkv_jax.surgery.store import save_tied

    source, console = pathlib.Path(_RUN.value or _PRETRAINED.value), Console(highlight=False)
    first_line.say(console, f"imposing {tie} on {edited.name} …")
    keep = lambda method, *tied: save_tied(folder / "models" / method, source, *tied)
    say = lambda what: console.print(f"{what} …", style="dim", markup=False)
    found, rates = operate(edited, tie, methods, layers, _STEPS.value, keep, say)
    command = shlex.join([*place.typed("surgery"), *sys.argv[1:]])
    record = {
        "methods": methods, "steps": _STEPS.value, "learning_rate": rates, "command": command,
    }  # fmt: skip
    page = write_surgery(folder, edited, str(tie), found, record)
    console.print(edited.name, console_table(found, edited, str(tie)), sep="\n")
    if _STEPS.value:
        chosen = ", ".join(f"{method} at {rate:g}" for method, rate in rates.items())
        console.print(f"Learning rate of further training: {chosen}.", markup=False)
    for line in result_sentences(found, edited, str(tie)) + notes(found, edited):
        console.print(line, markup=False)
    seconds = time.monotonic() - started
    console.print(f"\nReport: {page} ({seconds:.0f} s)", soft_wrap=True, markup=False)


def _of_run():
    from qkv_jax.surgery.damage import model_of_run

    return model_of_run(pathlib.Path(_RUN.value), 1e-3 if _RATE.value is None else _RATE.value)


def _of_pretrained():
    from qkv_jax.surgery.damage import model_of_pretrained
    from qkv_jax.survey import texts

    if _TEXTS.value is None:
        some = texts.shakespeare_sentences(_SENTENCES.value, 0)
    else:
        some = texts.read_texts(pathlib.Path(_TEXTS.value), _SENTENCES.value)
    if len(some) < 4:
        raise ConfigError("--texts", _TEXTS.value, "must hold 4 texts at least")
    folder = pathlib.Path(_PRETRAINED.value)
    return model_of_pretrained(folder, some, _RATE.value, bool(_UNKNOWN.value))


def _tie() -> Tie:
    try:
        tie = Tie.parse(_TIE.value)
    except TieError as error:
        raise ConfigError("--tie", _TIE.value, str(error)) from None
    if tie == Tie.parse("separate"):
        raise ConfigError("--tie", _TIE.value, "ties nothing")
    return tie


def _check_rate() -> None:
    if _RATE.value is not None and not 0 < _RATE.value < float("inf"):  # nan is neither
        raise ConfigError("--learning_rate", _RATE.value, "must be positive and finite")


def _layers(count: int) -> list[int]:
    if _LAYERS.value is None:
        return list(range(count))
    if not _LAYERS.value:
        raise ConfigError("--layers", "", f"the model has layers 0 to {count - 1}")
    for given in _LAYERS.value:
        digits = given.strip()
        if not digits.isdecimal() or len(digits) > 18 or int(digits) >= count:
            raise ConfigError("--layers", given, f"the model has layers 0 to {count - 1}")
    return sorted({int(given) for given in _LAYERS.value})


if __name__ == "__main__":
    entry.enter(main)
