"""One worked example of attention, with every number: `python -m experiments.explain --text="the
cat sat"`.

    --tie=separate --tie=Q=K          what a tie changes, side by side (or --tie="separate|Q=K")
    --run=runs/one --steps=0,100,1000 a trained model, at several points of its training
    --pretrained=DIR --layer=5        a Hugging Face folder, such as that of MiniLM
    --html=explain.html               the same as a page with figures

Otherwise the layer is a small one with random weights: --width, --heads, --positions, --seed.
"""

import pathlib

from absl import flags, logging
from rich.console import Console

from qkv_jax.config import ConfigError
from qkv_jax.tie import Tie, TieError

from .cli import entry, first_line
from .cli.paths import path_flag

# The flags that only some kinds of model take, and the flags that choose such a kind.
_MEANT_FOR = dict.fromkeys(("tie", "width", "heads", "positions", "seed"), ())
_MEANT_FOR |= dict.fromkeys(("steps", "example"), ("run",)) | {"layer": ("run", "pretrained")}

_TITLE = b"<title>How attention turns X into Q, K and V"  # begins every page: see the template

_TEXT = flags.DEFINE_string("text", None, "What is walked; by default: the cat sat.")
_TIE = flags.DEFINE_multi_string("tie", ["separate"], "A tie, or several: separate|Q=K.")
_WIDTH = flags.DEFINE_integer("width", 8, "D, of X.", lower_bound=1, upper_bound=1024)
_HEADS = flags.DEFINE_integer("heads", 2, "N, their number.", lower_bound=1, upper_bound=1024)
_POSITIONS = flags.DEFINE_string("positions", "sinusoidal", "A kind of positions.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the weights.", lower_bound=0, upper_bound=2**32 - 1)
_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_PRETRAINED = path_flag("pretrained", None, "A Hugging Face folder, or org/name of the hub.")
_LAYER = flags.DEFINE_integer("layer", 0, "Which layer of the model, from 0.", lower_bound=0)
_STEPS = flags.DEFINE_list("steps", None, "Steps of the run that have checkpoints; by default "
                                          "the last.")  # fmt: skip
_EXAMPLE = flags.DEFINE_integer("example", None, "Which validation example of the run's task.",
                                lower_bound=0)  # fmt: skip
_HTML = path_flag("html", None, "A page to write.")


def main() -> None:
    _check_flags()
    ties, steps = _ties(), _steps()
    page = None if _HTML.value is None else pathlib.Path(_HTML.value)
    if page:
        _check_page(page)

    # Imported when all that can be refused without them is: JAX takes a second.
    import jax

    from qkv_jax.explain import examples, sources
    from qkv_jax.explain.explanation import explain
    from qkv_jax.explain.terminal import print_walks

    # One example: to compile well would take longer than to compute.
    jax.config.update("jax_disable_most_optimizations", True)
    text = examples.TEXT if _TEXT.value is None else _TEXT.value
    if _RUN.value is not None:
        logging.set_verbosity(logging.ERROR)  # Orbax warns at length of what is refused here
        chosen = {"layer": _LAYER.value, "text": _TEXT.value, "example": _EXAMPLE.value}
        walked = sources.run_walks(pathlib.Path(_RUN.value), steps, **chosen)
    elif _PRETRAINED.value is not None:
        walked = sources.pretrained_walk(_PRETRAINED.value, layer=_LAYER.value, text=text)
    else:
        sizes = {"width": _WIDTH.value, "heads": _HEADS.value, "positions": _POSITIONS.value}
        walked = sources.random_walks(text, ties, seed=_SEED.value, **sizes)
    explanation, console = explain(walked), Console(highlight=False)
    first_line.say(console, "every number of one layer.")
    print_walks(console, explanation)
    if page:
        from qkv_jax.explain.page import write_page

        write_page(page, explanation)
        console.print(f"Page: {page}", soft_wrap=True, markup=False)
    else:
        console.print("--html=explain.html writes all of it as a page with figures.", style="dim")


def _check_flags() -> None:
    """Refuses flags that the kind of model chosen does not have."""
    chosen = [name for name in ("run", "pretrained") if flags.FLAGS[name].value is not None]
    if len(chosen) > 1:
        raise ConfigError("--pretrained", _PRETRAINED.value, "--run is given as well; choose one")
    for name, kinds in _MEANT_FOR.items():
        if not flags.FLAGS[name].present or (set(chosen) & set(kinds) if kinds else not chosen):
            continue
        value = flags.FLAGS[name].value
        given = ",".join(value) if isinstance(value, list) else value
        allowed = "is for the random layer; a trained model has its own"
        if kinds:
            wanted = " or ".join(f"--{kind}" for kind in kinds)
            allowed = f"is for a trained model; name its folder by {wanted}"
        raise ConfigError(f"--{name}", given, allowed)
    if flags.FLAGS["example"].present and flags.FLAGS["text"].present:
        raise ConfigError("--example", _EXAMPLE.value, "a text is given as well; choose one")


def _check_page(page: pathlib.Path) -> None:
    """Refuses what cannot be written, or holds what somebody else wrote."""
    if page.is_dir():
        raise ConfigError("--html", _HTML.value, "is a folder; name a file")
    if page.exists():
        if not page.is_file():  # to read it might never end
            raise ConfigError("--html", _HTML.value, "is a pipe or a device, no file")
        with page.open("rb") as there:
            if _TITLE not in there.read(1000):
                allowed = "is there already, and no page of this command; name another file"
                raise ConfigError("--html", _HTML.value, allowed)


def _ties() -> list[Tie]:
    try:
        read = [Tie.parse(name) for given in _TIE.value for name in given.split("|")]
    except TieError as error:
        raise ConfigError("--tie", "|".join(_TIE.value), str(error)) from None
    return list(dict.fromkeys(read))


def _steps() -> list[int]:
    if _STEPS.value is None:
        return []
    given = [step.strip() for step in _STEPS.value]
    if not given or not all(step.isdecimal() and len(step) <= 18 for step in given):  # 64 bits
        raise ConfigError("--steps", ",".join(_STEPS.value), "write whole numbers, as in 0,100")
    return list(dict.fromkeys(map(int, given)))


if __name__ == "__main__":
    entry.enter(main)
