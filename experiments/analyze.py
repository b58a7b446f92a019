"""The geometry of X, Q, K and V in a trained model: `python -m experiments.analyze --run=runs/one`.

    --run=runs/one --step=1000        a run of experiments.train; its checkpoints show movement
    --study=runs/quick --task=relation --arm=K=V --seed=0       a trained model of a study
    --pretrained=DIR --texts=FILE     a Hugging Face folder, such as that of MiniLM, on a text a
                                      line (by default sentences of Shakespeare)
    --sentences=500                   how many texts, or validation examples of the task
    --workdir=runs/analysis           what to write: tables, figures, report.html

Every figure is invariant to the changes of basis within a head that leave the model as it is, or
stands beside its null: random bases, random projections, the untrained model.
"""

import pathlib
import time

from absl import flags, logging
from rich.console import Console

from qkv_jax.config import ConfigError

from .cli import entry, first_line
from .cli.paths import path_flag

_SOURCES = ("run", "study", "pretrained")
# The flags that only some kinds of model take.
_MEANT_FOR = {"step": "run", "task": "study", "arm": "study", "texts": "pretrained",
              "allow_unknown": "pretrained"}  # fmt: skip

_RUN = path_flag("run", None, "Folder of a run of experiments.train.")
_STUDY = path_flag("study", None, "Folder of a study; name --task and --arm.")
_PRETRAINED = path_flag("pretrained", None, "A Hugging Face folder, or org/name of the hub.")
_STEP = flags.DEFINE_integer("step", None, "A checkpoint of the run; by default the last.",
                             lower_bound=0)  # fmt: skip
_TASK = flags.DEFINE_string("task", None, "A task of the study.")
_ARM = flags.DEFINE_string("arm", None, "An arm of the study.")
_TEXTS = path_flag("texts", None, "A file with one text per line, for --pretrained; by "
                                            "default sentences of Shakespeare.")  # fmt: skip
_UNKNOWN = flags.DEFINE_boolean("allow_unknown", None, "Also texts that are more than half unknown "
                                "to the model's tokenizer.")  # fmt: skip
_SENTENCES = flags.DEFINE_integer("sentences", 500, "How many texts, or validation examples of "
                                  "the task.", lower_bound=1)  # fmt: skip
_SEED = flags.DEFINE_integer("seed", 0, "Of the nulls, the untrained model and the choice of "
                             "sentences; of a study, also which run.",
                             lower_bound=0, upper_bound=2**32 - 1)  # fmt: skip
_WORKDIR = path_flag("workdir", "runs/analysis", "Folder to write; must not hold files.")


def main() -> None:
    source = _checked()
    folder = pathlib.Path(_WORKDIR.value)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("--workdir", _WORKDIR.value, "holds files already; name a new folder")

    from qkv_jax.survey.page import write_survey
    from qkv_jax.survey.survey import survey
    from qkv_jax.survey.terminal import print_survey

    started = time.monotonic()
    logging.set_verbosity(logging.ERROR)  # Orbax warns at length of what is refused here
    subject = {"run": _of_run, "study": _of_study, "pretrained": _of_pretrained}[source]()
    console = Console(highlight=False)
    first_line.say(console, f"comparing X, Q, K and V in {subject.name}, on {subject.inputs} …")
    found = survey(subject, _SEED.value)
    console.print("Drawing the figures and writing the page …", style="dim")
    given = {name: flags.FLAGS[name].value for name in (*_SOURCES, *_MEANT_FOR)}
    record = {name: value for name, value in given.items() if value is not None}
    page = write_survey(folder, subject, found, record | {"seed": _SEED.value})
    print_survey(console, subject, found)
    seconds = time.monotonic() - started
    console.print(
        f"\nReport: {page} (every figure in figures.csv beside it; {seconds:.0f} s)",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _checked() -> str:
    """The kind of model that is named; refuses flags that it does not take."""
    chosen = [name for name in _SOURCES if flags.FLAGS[name].value is not None]
    if not chosen:
        raise ConfigError("--run", None, "name a model: --run, --study or --pretrained")
    if len(chosen) > 1:
        value = flags.FLAGS[chosen[1]].value
        raise ConfigError(f"--{chosen[1]}", value, f"--{chosen[0]} is given as well; choose one")
    for name, kind in _MEANT_FOR.items():
        value = flags.FLAGS[name].value
        if value is not None and kind != chosen[0]:
            raise ConfigError(f"--{name}", value, f"is for --{kind}")
        if value is None and kind == chosen[0] == "study":
            raise ConfigError(f"--{name}", None, "a study needs --task and --arm")
    return chosen[0]


def _of_run():
    from qkv_jax.survey.subjects import of_run

    return of_run(pathlib.Path(_RUN.value), _STEP.value, _SENTENCES.value)


def _of_pretrained():
    from qkv_jax.survey import texts as survey_texts
    from qkv_jax.survey.subjects import of_pretrained

    if _TEXTS.value is None:
        texts = survey_texts.shakespeare_sentences(_SENTENCES.value, _SEED.value)
    else:
        texts = survey_texts.read_texts(pathlib.Path(_TEXTS.value), _SENTENCES.value)
    folder, allow = pathlib.Path(_PRETRAINED.value), bool(_UNKNOWN.value)
    return of_pretrained(folder, texts, _SEED.value, allow)


def _of_study():
    from qkv_jax.analysis.layers import layer_weights
    from qkv_jax.study.results import load_study
    from qkv_jax.survey.subjects import Subject, about, task_batches

    task, arm, seed = _TASK.value, _ARM.value, _SEED.value
    with entry.renamed(workdir="study"):
        study = load_study(_STUDY.value)
        kind, trained = study.find(task, arm)
        encoder, variables = study.model(task, arm, seed)
    start = study.untrained(task, arm, seed)
    batches, inputs = task_batches(encoder, kind, _SENTENCES.value)
    name = f"{_STUDY.value}, {task}, arm {arm}, seed {seed}: {about(encoder)}"
    past = {
        0: layer_weights(encoder, start),
        trained.trainer.train_config.steps: layer_weights(encoder, variables),
    }
    return Subject(name, inputs, encoder, variables, batches, start,
                   "the same run before training", past)  # fmt: skip


if __name__ == "__main__":
    entry.enter(main)
