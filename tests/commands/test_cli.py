"""The command line: whatever a user gets wrong is one line that says what, and exit code 2.

The commands run as `__main__` of their own process (tests/support/cli_server.py), in an empty
folder: a refusal must leave it, and every folder it was pointed at, as they were.
"""

import pytest

from experiments.cli.place import shipped
from qkv_jax.tasks import REGISTRY
from tests.support.folders import command_place
from tests.support.folders.command_place import (
    ABLATE,
    BENCHMARK,
    FIELDS,
    STUDY,
    TEMPLATE,
    TIES,
    TRAIN,
    arguments_of,
)

place = command_place.place
command = command_place.command
refused = command_place.refused


KINDS = ", ".join(sorted(REGISTRY))
SHIPPED = ", ".join(shipped())

ABLATE_FLAGS = (
    "--workdir, --plan, --accept_changes, --tasks, --arms, --config, --max_hours, "
    "--checkpoint_minutes, --launcher, --status, --part, "
    "--slurm_partition, --slurm_account, --slurm_gpus, --slurm_cpus, --slurm_hours, "
    "--slurm_parallel, --slurm_retries, --slurm_setup, --slurm_option, --slurm_poll"
)


MODEL, TRAINING = (f"tasks.one, arm 'separate': {part}" for part in ("model", "train"))
SHARED = "tasks.one, arm 'shared': model.tie"

OVERRIDES = {
    # Names that are not there.
    "modle.width=8": "modle: given '8'; unknown key; did you mean 'model'? allowed: "
                     "name, tasks, arms, model, train, study, claims, title, question, part",
    "model.widht=8": "model.widht: given '8'; unknown key; did you mean 'width'? allowed: "
                     f"{FIELDS}",
    "model.bias=1": f"model.bias: given '1'; unknown key; did you mean 'use_bias'? allowed: "
                    f"{FIELDS}",
    "name.first=x": "name.first: given 'x'; there are no fields",
    "arms.third.model.tie=K=V": "arms.third: given 'K=V'; unknown key; allowed: separate, shared",
    "study.baseline=sepaarte": "study.baseline: given 'sepaarte'; arms: separate, shared",
    # Values of another type.
    "model.width=abc": "model.width: given 'abc'; must be a whole number",
    "model.width=8.5": "model.width: given '8.5'; must be a whole number",
    "model.width=": "model.width: given ''; must be a whole number",
    "model.dropout=much": "model.dropout: given 'much'; must be a number",
    "study.learning_rates=abc": "study.learning_rates[0]: given 'abc'; must be a number",
    # Words that are not in the list.
    "study.match=parms": "study.match: given 'parms'; did you mean 'params'? allowed: none, "
                         "params, flops",
    "model.positions=rotory": "model.positions: given 'rotory'; did you mean 'rotary'? allowed: "
                              "none, sinusoidal, learned, rotary, relative, alibi",
    "train.decay=linaer": "train.decay: given 'linaer'; did you mean 'linear'? allowed: "
                          "linear, cosine, wsd, constant",
    "tasks.one.kind=revers": "tasks.one.kind: given 'revers'; did you mean 'reverse'? allowed: "
                             f"{KINDS}",
    # Sizes, steps, seeds and rates that cannot be.
    "model.width=0": f"{MODEL}.width: given 0; must be a whole number above 0",
    "model.layers=-1": f"{MODEL}.layers: given -1; must be a whole number above 0",
    "model.dropout=1": f"{MODEL}.dropout: given 1.0; must be at least 0.0 and below 1.0",
    "train.steps=0": f"{TRAINING}.steps: given 0; must be a whole number above 0",
    "train.steps=25": f"{TRAINING}.steps: given 25; must be a multiple of report_every = 10",
    "train.batch_size=-8": f"{TRAINING}.batch_size: given -8; must be a whole number above 0",
    "train.learning_rate=nan": "train.learning_rate: given nan; the study tunes it in every cell; "
                               "give learning_rates",
    "study.tune_seeds=0": "study.tune_seeds: given 0; must be a whole number above 0",
    "study.eval_seeds=-5": "study.eval_seeds: given -5; must be a whole number above 0",
    "study.eval_seeds=1000001": "study.eval_seeds: given 1000001; at most 1000000: tuning seeds "
                                "start there",
    "study.learning_rates=(1e-3,1e400)": "study.learning_rates: given inf; each must be a finite "
                                         "number above 0",
    "study.learning_rates=(0.0,1e-3)": "study.learning_rates: given 0.0; each must be a finite "
                                       "number above 0",
    "study.learning_rates=(2e-3,1e-3)": "study.learning_rates: given (0.002, 0.001); must ascend, "
                                        "each rate once",
    "study.learning_rates=()": "study.learning_rates: given (); must hold at least one rate",
    "tasks.one.options.length=1": "tasks.one.options.length: given 1; must be at least 2",
    "tasks.one.options.margin=-1": "tasks.one.options.margin: given -1.0; must be a finite number "
                                   "above 0",
    "name=": "name: given ''; must not be empty or hold a slash",
    "name=../x": "name: given '../x'; must not be empty or hold a slash",
    # Combinations.
    "model.heads=3": f"{MODEL}.width: given 8; must be divisible by heads = 3",
    "arms.shared.model.tie=K=Z": f"{SHARED}: given 'K=Z'; 'K=Z' is not a tie; write one of "
                                 f"{TIES}, or 'copies' for the last",
    "arms.shared.model.tie=Q==K": f"{SHARED}: given 'Q==K'; 'Q==K' is not a tie; write one of "
                                  f"{TIES}, or 'copies' for the last",
    "arms.shared.model.tie=K=V*2|separate": f"{SHARED}: given 'K=V*2|separate'; 'K=V*2|separate' "
                                            "names 3 layers, but the model has 1",
    "model.frozen=('value',)": f"{SHARED}: given 'K=V'; layer 0: frozen source 'value': tie K=V "
                               "has the sources: query, key",
    "model.frozen=('kye',)": f"{MODEL}.frozen: given 'kye'; allowed: query, key, value",
    "model.scale=-2": f"{MODEL}.scale: given -2.0; must be a finite number above 0",
    "model.scale=root": f"{MODEL}.scale: given 'root'; allowed: sqrt, learned_per_head",
}  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_config_that_cannot_be_is_refused(override, refused, place):
    """The field, what was given, what is allowed; nothing is written."""
    message = refused(ABLATE, *arguments_of(place, ABLATE, [f"--config.{override}"]))
    assert message == OVERRIDES[override]


def test_grouped_heads_refuse_ties_that_need_all_heads(refused, place):
    """Two overrides, each fine alone, are refused together with the reason."""
    flags = ["--config.model.kv_heads=1", "--config.arms.shared.model.tie=Q=K"]
    assert refused(ABLATE, *arguments_of(place, ABLATE, flags)) == (
        "tasks.one, arm 'shared': model.tie: given 'Q=K'; layer 0: tie Q=K asks for Q=K, which "
        "needs as many key/value heads as query heads, not 1 and 2"
    )


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.tie=K=Z", f"given 'K=Z'; 'K=Z' is not a tie; write one of {TIES}, or 'copies' for "
                          "the last"),
        ("model.width=9", "given 9; must be divisible by heads = 2"),
        ("seed=-1", "given -1; must be a whole number, 0 or above, below 2**32"),
        ("seed=4294967296", "given 4294967296; must be a whole number, 0 or above, below 2**32"),
        ("checkpoint_steps=(5,)", "given 5; must be a multiple of report_every = 10, at most 20"),
        ("train.learning_rate=inf", "given inf; must be a finite number above 0"),
        ("task.kind=mask", f"given 'mask'; did you mean 'images'? allowed: {KINDS}"),
        ("task.options.length=0", "given 0; must be a whole number above 0"),
        ("task.options.files=('lost',)", "given 'lost'; cannot be read: No such file or "
                                         "directory"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(override, line, refused, place):
    """The same of `experiments.train`."""
    message = refused(TRAIN, *arguments_of(place, TRAIN, [f"--config.{override}"]))
    assert message == f"{override.partition('=')[0]}: {line}"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--frobnicate"], "command line: given '--frobnicate'; no such flag; allowed: "
                           f"{ABLATE_FLAGS}"),
        (["--paln"], "command line: given '--paln'; no such flag; did you mean '--plan'? allowed: "
                     f"{ABLATE_FLAGS}"),
        (["--slurm_gpus=2"], "--slurm_gpus: given 2; needs --launcher=slurm"),
        (["--tasks=two"], "--tasks: given 'two'; allowed: one"),
        (["--arms=separate,shred"], "--arms: given 'shred'; did you mean 'shared'? "
                                    "allowed: separate, shared"),
        (["--launcher=ssh"], "--launcher: given 'ssh'; value should be one of <local|slurm>"),
        (["--launcher=slurm", "--max_hours=1"], "--max_hours: given 1.0; not beside "
                                                "--launcher=slurm: --slurm_hours limits the jobs"),
        (["--launcher=slurm", "--slurm_hours=0"], "--slurm_hours: given '0'; allowed: number >= "
                                                  "0.016666666666666666"),
        (["--status", "--workdir=lost"], "--workdir: given 'lost'; no study there: No such file or "
                                         "directory"),
        (["--part=one/separate/tune/0.1:1000000-1000000", "--workdir=lost"],
         "--workdir: given 'lost'; no study there: No such file or directory"),
        (["stray"], "command line: given 'stray'; flags look like --name=value"),
        (["--plan", "a", "b"], "command line: given 'a b'; flags look like --name=value"),
        (["--plan=maybe"], "--plan: given 'maybe'; must be true or false"),
        (["--workdir"], "Missing value for flag --workdir"),
        (["--config"], f"--config: given ''; no such file; allowed: {SHIPPED}"),
        (["study.py"], "command line: given 'study.py'; did you mean --config=study.py? flags look "
                       "like --name=value"),
        (["."], "command line: given '.'; did you mean --workdir=.? flags look like --name=value"),
        (["--config=lost.py"], f"--config: given 'lost.py'; no such file; allowed: {SHIPPED}"),
        (["--config=."], f"--config: given '.'; no such file; allowed: {SHIPPED}"),
    ],
)  # fmt: skip
def test_flags_that_cannot_be_are_refused(flags, line, refused, place):
    """Unknown ones, stray words, values of another type, config files that are not there."""
    assert refused(ABLATE, *arguments_of(place, ABLATE, flags)) == line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("syntax", "line 2: SyntaxError: invalid syntax"),
        ("raises", "line 2: KeyError: 'lost'"),
        ("divides", "line 2: ZeroDivisionError: division by zero"),
        ("imports", "line 1: ModuleNotFoundError: No module named 'no_such_package'"),
        ("empty", "must define get_config() that returns a ConfigDict"),
        ("mapping", "must define get_config() that returns a ConfigDict"),
        ("tie", f"line 3: TieError: 'K=Z' is not a tie; write one of {TIES}, or 'copies' for the "
                "last"),
    ],
)  # fmt: skip
def test_a_broken_config_file_is_named_with_the_line(name, message, refused, place):
    """Whatever the file raises, and without its traceback."""
    file = place / "files" / f"broken_{name}.py"
    assert refused(ABLATE, f"--config={file}") == f"--config: given {str(file)!r}; {message}"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "benchmark: given ''; allowed: population, train, attention, study, decode, gpu"),
        (["populaton"], "benchmark: given 'populaton'; allowed: population, train, attention, "
                        "study, decode, gpu"),
        (["population", "--steps=5"], "--steps: given '5'; allowed: integer >= 10"),
        (["population", "--steps=x"], "--steps: given 'x'; allowed: integer >= 10"),
        (["population", "more"], "command line: given 'more'; flags look like --name=value"),
    ],
)
def test_a_benchmark_that_is_not_there_is_refused(flags, line, refused):
    """With the names of those that are."""
    assert refused(BENCHMARK, *flags) == line


def test_the_calibration_refuses_in_one_line_too(refused):
    """Its flags are read in the same way."""
    message = refused("experiments.calibrate", "--frobnicate")
    assert message == (
        "command line: given '--frobnicate'; no such flag; allowed: --studies, --seed, --workers, "
        "--protocol, --real, --placebos, --outcome"
    )
    assert refused("experiments.calibrate", "--studies=0") == (
        "--studies: given '0'; allowed: a positive integer"
    )
    assert refused("experiments.calibrate", "--outcome=solve") == (
        "--outcome: given 'solve'; is of --protocol=fixed: hostile cases have their own outcomes"
    )


# --- data


def test_texts_that_cannot_be_used_are_refused_before_anything_starts(refused, place):
    """Missing, empty and too short ones, named with their task, even where another task comes
    first: no study stops half way for them."""
    files = place / "files"
    for name, message in [
        ("empty", "is empty"),
        ("short", "holds 3 bytes; a sequence needs 16"),
        ("middling", "too short: the validation split (5 % of the text) must hold at least one "
                     "sequence of 16 bytes"),
    ]:  # fmt: skip
        line = refused(ABLATE, f"--config={files / name}_study.py", "--workdir=results")
        assert line == f"tasks.text.options.files: given {str(files / name)!r}; {message}"
    lost = f"--config.tasks.text.options.files=('{files / 'lost'}',)"
    line = refused(ABLATE, f"--config={files / 'good'}_study.py", "--workdir=results", lost)
    given = f"tasks.text.options.files: given {str(files / 'lost')!r}"
    assert line == f"{given}; cannot be read: No such file or directory"


def test_a_batch_larger_than_the_data_is_refused_before_anything_starts(refused, place):
    """MNIST-5k has 3500 images to train on."""
    config = place / "files" / "images.py"
    tasks = {"images": {"kind": "mnist5k"}}
    config.write_text(TEMPLATE.format({**STUDY, "tasks": tasks}))
    flags = [f"--config={config}", "--workdir=results", "--config.train.batch_size=3501"]
    assert refused(ABLATE, *flags) == (
        "tasks.images, arm 'separate': train.batch_size: given 3501; must be at most the 3500 "
        "examples"
    )
