"""A trained model as a Hugging Face folder: `python -m experiments.export --run=runs/one
--out=runs/one-hf`.

    --run=runs/one --step=1000        a run of experiments.train, by default at its last checkpoint
    --study=runs/quick --task=relation --arm=K=V --seed=0       a trained model of a study
    --out=DIR                         config.json, model.safetensors, tokenizer.json of text tasks,
                                      and a model card, README.md

A `separate` model becomes a GPT-2, Llama, BERT or ViT where one computes exactly the same, which
transformers loads; any other has a `model_type` of our own. Both are read back before it ends, by
`qkv_jax.interop.pretrained.load_pretrained`, as `--pretrained` of other commands does.
"""

import pathlib
from typing import Any, NamedTuple

from absl import flags, logging
from rich.console import Console

from qkv_jax.config import ConfigError

from .cli import entry
from .cli.paths import path_flag

_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_STEP = flags.DEFINE_integer("step", None, "A checkpoint of the run; by default the last.",
                             lower_bound=0)  # fmt: skip
_STUDY = path_flag("study", None, "Folder of a study; name --task and --arm.")
_TASK = flags.DEFINE_string("task", None, "A task of the study.")
_ARM = flags.DEFINE_string("arm", None, "An arm of the study.")
_SEED = flags.DEFINE_integer("seed", None, "Which run of the arm; by default 0.", lower_bound=0)
_OUT = path_flag("out", None, "Folder to write; must not hold files.")


class _Model(NamedTuple):
    """What is exported: `task` is that of the run, `numbers` what was measured, in sentences."""

    encoder: Any
    variables: Any
    task: Any
    numbers: list[str]


def main() -> None:
    _check_flags()
    folder = pathlib.Path(_OUT.value)

    import numpy as np

    from qkv_jax.interop.card import card
    from qkv_jax.interop.export import new_folder, save_model
    from qkv_jax.interop.pretrained import load_pretrained
    from qkv_jax.interop.task_tokens import tokenizer_json
    from qkv_jax.model.encoder import Encoder
    from qkv_jax.runtime.files import write_whole

    try:
        new_folder(folder)
    except ConfigError as error:
        raise ConfigError("--out", _OUT.value, error.allowed) from None
    logging.set_verbosity(logging.ERROR)  # Orbax warns at length of what is refused here
    model = _of_run() if _RUN.value is not None else _of_study()
    if not isinstance(model.encoder, Encoder):
        what = "is of an encoder-decoder, which is not exported"
        raise ConfigError("--run" if _RUN.value else "--task", _RUN.value or _TASK.value, what)
    exported = save_model(folder, model.encoder, model.variables, tokenizer_json(model.task))
    back = load_pretrained(folder)
    inputs = model.task.example()["inputs"]
    given = inputs
    if inputs.ndim == 2 and len(getattr(back.encoder.stem, "vocabulary", ())) > 1:
        given = np.stack([inputs, np.zeros_like(inputs)], -1)  # a BERT's tokens have types
    expected = model.encoder.apply(model.variables, inputs)
    found = back.encoder.apply(back.variables, given)
    difference = float(np.abs(np.asarray(expected) - np.asarray(found)).max())
    about = f"{model.task.title}: {model.task.description}"
    has_tokenizer = back.tokenizer is not None
    text = card(_OUT.value, about, model.encoder, given, exported, model.numbers, has_tokenizer)
    write_whole(folder / "README.md", text)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{folder}: model_type {exported.kind}; read back, its logits differ by "
                  f"{difference:.1g} at most", markup=False)  # fmt: skip
    if exported.why_own:
        why = f"No published architecture computes the same: {exported.why_own}"
        console.print(f"{why}.", markup=False)


def _check_flags() -> None:
    if (_RUN.value is None) == (_STUDY.value is None):
        raise ConfigError("--run", _RUN.value, "name one model: --run, or --study")
    for flag in (_TASK, _ARM):
        if (flag.value is None) == (_STUDY.value is not None):
            what = "is for --study" if _RUN.value else "a study needs --task and --arm"
            raise ConfigError(f"--{flag.name}", flag.value, what)
    if _RUN.value and _SEED.value is not None:
        raise ConfigError("--seed", _SEED.value, "is for --study")
    if _STUDY.value and _STEP.value is not None:
        raise ConfigError("--step", _STEP.value, "is for --run")
    if _OUT.value is None:
        raise ConfigError("--out", None, "name the folder to write")


def _of_run() -> _Model:
    import json

    from qkv_jax.training.checkpoint import load_run, run_steps, run_trainer

    folder = pathlib.Path(_RUN.value)
    task = run_trainer(folder).task
    encoder, variables = load_run(folder, _STEP.value)
    last = run_steps(folder)[-1]
    step = last if _STEP.value is None else _STEP.value
    result, numbers = folder / "result.json", []
    if result.is_file() and step == last:
        found, unit = json.loads(result.read_text(encoding="utf-8")), task.outcome.unit
        scores = ", ".join(f"{name} {found[name]:.4g} {unit}" for name in ("test", "validation"))
        numbers = [f"{scores}: one run, of seed {found['seed']}, after {step} steps"]
    return _Model(encoder, variables, task, numbers or [f"nothing yet, after {step} steps"])


def _of_study() -> _Model:
    from qkv_jax.study.results import load_study

    task, arm, seed = _TASK.value, _ARM.value, _SEED.value or 0
    with entry.renamed(workdir="study"):
        study = load_study(_STUDY.value)
        kind, _ = study.find(task, arm)
        encoder, variables = study.model(task, arm, seed)
    return _Model(encoder, variables, kind, study.in_words(task, arm, seed))


if __name__ == "__main__":
    entry.enter(main)
