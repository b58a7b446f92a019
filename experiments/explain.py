"""One worked example of attention, with every number: `python -m experiments.explain --text="the
cat sat"`.

    --tie=separate --tie=Q=K          what a tie changes, side by side (or --tie="separate|Q=K")
    --run=runs/one --steps=0,100,1000 a trained model, at several points of its training
    --pretrained=DIR --layer=5        a Hugging Face folder, such as that of MiniLM
    --html=explain.html               the same as a page with figures

Otherwise the layer is a small one with random weights: --width, --heads, --positions, --seed.
"""

import os
import pathlib

from absl import flags, logging
from rich.console import Console

from experiments import door
from qkv_jax.config import ConfigError
from qkv_jax.tie import Tie, TieError

# The flags that only some kinds of model take, and the flags that choose such a kind.
_MEANT_FOR = dict.fromkeys(("tie", "width", "heads", "positions", "seed"), ())
_MEANT_FOR |= dict.fromkeys(("steps", "example"), ("run",)) | {"layer": ("run", "pretrained")}

_TEXT = flags.DEFINE_string("text", "the cat sat", "What is walked through the layer.")
_TIE = flags.DEFINE_multi_string("tie", ["separate"], "A tie; give it again to compare several.")
_WIDTH = flags.DEFINE_integer("width", 8, "D.", lower_bound=1, upper_bound=1024)
_HEADS = flags.DEFINE_integer("heads", 2, "N.", lower_bound=1, upper_bound=1024)
_POSITIONS = flags.DEFINE_string("positions", "sinusoidal", "A kind of positions.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the weights.", lower_bound=0, upper_bound=2**32 - 1)
_RUN = flags.DEFINE_string("run", None, "Folder of a run of experiments.train.")
_PRETRAINED = flags.DEFINE_string("pretrained", None, "A Hugging Face folder.")
_LAYER = flags.DEFINE_integer("layer", 0, "Which layer of the model, from 0.", lower_bound=0)
_STEPS = flags.DEFINE_list("steps", None, "Steps of the run that have checkpoints; by default "
                                          "the last.")  # fmt: skip
_EXAMPLE = flags.DEFINE_integer("example", 0, "Which validation example of the run's task.",
                                lower_bound=0)  # fmt: skip
_HTML = flags.DEFINE_string("html", None, "A page to write.")


def main() -> None:
    _check_flags()
    ties, steps = _ties(), _steps()
    page = None if _HTML.value is None else pathlib.Path(_HTML.value)
    if page and page.is_dir():
        raise ConfigError("--html", _HTML.value, "is a folder; name a file")

    # Imported when all that can be refused without them is: JAX takes a second.
    import jax

    from qkv_jax.analysis.walkthrough_remarks import remarks
    from qkv_jax.analysis.walkthrough_steps import steps as steps_of
    from qkv_jax.analysis.walkthrough_terminal import print_walks

    # One example: to compile well would take longer than to compute.
    jax.config.update("jax_disable_most_optimizations", True)
    if _RUN.value is not None:
        about, walks, start = _of_run(steps)
    elif _PRETRAINED.value is not None:
        about, walks, start = _of_pretrained()
    else:
        about, walks, start = _at_random(ties)
    said, told = remarks(walks, start), steps_of(walks)
    console = Console(highlight=False)
    print_walks(console, about, walks, told, said)
    if page:
        from qkv_jax.analysis.walkthrough_page import write_page

        write_page(page, about, walks, told, said)
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


def _ties() -> list[Tie]:
    try:
        read = [Tie.parse(name) for given in _TIE.value for name in given.split("|")]
    except TieError as error:
        raise ConfigError("--tie", "|".join(_TIE.value), str(error)) from None
    return list(dict.fromkeys(read))


def _name(tie: Tie) -> str:
    return "copies" if tie == Tie.all()[-1] else str(tie)


def _steps() -> list[int]:
    if _STEPS.value is None:
        return []
    if not _STEPS.value or not all(step.strip().isdecimal() for step in _STEPS.value):
        raise ConfigError("--steps", ",".join(_STEPS.value), "write whole numbers, as in 0,100")
    return list(dict.fromkeys(map(int, _STEPS.value)))


def _at_random(ties: list[Tie]):
    """(what is walked, the walks, None)."""
    from qkv_jax.analysis.walkthrough import walk_through
    from qkv_jax.analysis.walkthrough_inputs import random_layer, words_of
    from qkv_jax.model_config import ModelConfig

    example = words_of(_TEXT.value)
    sizes = {"width": _WIDTH.value, "heads": _HEADS.value, "positions": _POSITIONS.value}
    walks = []
    for tie in ties:
        try:
            config = ModelConfig(tie=str(tie), layers=1, mlp_width=_WIDTH.value, **sizes)
        except ConfigError as error:
            raise ConfigError(f"--{error.field}", error.given, error.allowed) from None
        encoder, variables = random_layer(config, _SEED.value)
        name = _name(tie)
        walks.append(walk_through(encoder, variables, example.inputs, example.tokens, name=name))
    about = (
        f"“{_TEXT.value}” through one layer of attention that nobody has trained: seed "
        f"{_SEED.value}, width {_WIDTH.value}, {_HEADS.value} heads of "
        f"{_WIDTH.value // _HEADS.value}, positions {_POSITIONS.value}. "
        f"Tie: {'; '.join(map(_name, ties))}."
    )
    if _POSITIONS.value == "relative":
        about += " The relative bias, zero in a new layer, is drawn at random."
    return about, walks, None


def _of_run(steps: list[int]):
    """(what is walked, the walks, the layer before training if its checkpoint is there)."""
    from qkv_jax.analysis import walkthrough_inputs as inputs
    from qkv_jax.analysis.layers import layer_weights
    from qkv_jax.analysis.walkthrough import walk_through

    logging.set_verbosity(logging.ERROR)  # Orbax warns at length of what is refused here
    folder = pathlib.Path(_RUN.value)
    known = inputs.run_steps(folder)
    for step in steps:
        if step not in known:
            raise ConfigError("--steps", step, f"checkpoints there: {', '.join(map(str, known))}")
    steps, task = steps or known[-1:], inputs.run_task(folder)
    texts = inputs.is_text(task)
    if flags.FLAGS["text"].present and not texts:
        allowed = f"the run's task, {task.title}, is not of text; choose an example by --example"
        raise ConfigError("--text", _TEXT.value, allowed)
    if texts and not flags.FLAGS["example"].present:
        example, what = inputs.text_example(task, _TEXT.value), f"“{_TEXT.value}”"
    else:
        example = inputs.task_example(task, _EXAMPLE.value)
        what = f"Validation example {_EXAMPLE.value}"
    models = {s: inputs.run_model(folder, s) for s in {*steps, 0} & {*known}}
    encoder, _ = models[steps[0]]
    _check_layer(encoder.config.layers)
    walks = [
        walk_through(
            *models[step], example.inputs, example.tokens, name=f"step {step}",
            layer=_LAYER.value, padding=example.padding,
        )
        for step in steps
    ]  # fmt: skip
    start = layer_weights(*models[0])[_LAYER.value] if 0 in models else None
    about = (
        f"{what} through layer {_LAYER.value} (of 0 to {encoder.config.layers - 1}) of the model "
        f"in {os.fspath(folder)}: {task.title}, tie {walks[0].tie}, positions "
        f"{encoder.config.positions}, step {', '.join(map(str, steps))}."
    )
    return about, walks, start


def _of_pretrained():
    """(what is walked, the walk, None)."""
    from qkv_jax.analysis.walkthrough import walk_through
    from qkv_jax.analysis.walkthrough_inputs import pretrained_example
    from qkv_jax.interop.huggingface import load_pretrained

    try:
        model = load_pretrained(_PRETRAINED.value)
    except ConfigError as error:
        raise ConfigError(f"--{error.field}", error.given, error.allowed) from None
    config = model.encoder.config
    _check_layer(config.layers)
    example = pretrained_example(model, _TEXT.value)
    walk = walk_through(
        model.encoder, model.variables, example.inputs, example.tokens,
        name=str(model.config.get("model_type")), layer=_LAYER.value,
    )  # fmt: skip
    about = (
        f"“{_TEXT.value}” through layer {_LAYER.value} (of 0 to {config.layers - 1}) of the model "
        f"in {_PRETRAINED.value}: {walk.name}, width {config.width}, {config.heads} heads."
    )
    return about, [walk], None


def _check_layer(layers: int) -> None:
    if _LAYER.value >= layers:
        raise ConfigError("--layer", _LAYER.value, f"the model has layers 0 to {layers - 1}")


if __name__ == "__main__":
    door.enter(main)
