"""README.md and docs/: every command runs as printed, and every name that is mentioned is there."""

import ast
import configparser
import contextlib
import dataclasses
import json
import pkgutil
import re
import runpy
import subprocess
import typing

import flax.traverse_util
import pandas as pd
import pytest

from qkv_jax.model.config import ModelConfig
from qkv_jax.study.claims import Claim
from qkv_jax.study.config import ArmEntry, StudyConfig, StudyFile, TaskEntry
from qkv_jax.study.protocol.verdicts import Reason
from qkv_jax.tasks import REGISTRY
from qkv_jax.training.mesh import MeshConfig
from qkv_jax.training.state import TrainConfig
from tests.support import commands
from tests.support.doc_pages import PAGES, Sandbox, blocks
from tests.support.warm_python import ROOT

# What is not run, by words of the command or block, and why.
EXCEPTIONS = {
    "--launcher=slurm": "needs Slurm: test_cluster.py and test_slurm.py run it",
    "sword": "fetches packages: tests/commands/test_verses.py reads made ones",
    "configs/translation.py": "needs those; test_generate_command.py has a small run",
    "--run=runs/verses": "likewise",
    "--status": "needs that study of Slurm's: likewise",
    "experiments.analyze --run": "its ten figures, as with --study; test_survey_command.py",
    "experiments.analyze --pretrained": "likewise",
    "gensim": "downloads 28 MB: tests/commands/test_wikipedia.py has small dumps",
    "data/wikipedia": "needs those",
    "smollm2": "downloads 93 MB; test_decoders.py, test_gguf.py and test_decoder_surgery.py have "
               "small ones",
    "experiments.benchmark": "takes a minute at sizes of its own",
    "configs/big.py:1b --workdir": "needs eight accelerators",
    "#SBATCH": "needs Slurm: tests/study/cluster/test_slurm.py submits it",
    "gcloud compute": "needs TPUs",
    "--coordinator=HOST:PORT": "needs two machines: test_distributed.py joins two processes",
    "--distributed": "needs a TPU pod or srun: tests/training/test_distributed.py",
    "--compile_only=": "needs libtpu and minutes: tests/compile/test_topology.py",
    "v5e:8x8: 64 x": "likewise; tests/compile/test_topology.py has the form of it",
    "config.mesh.rules = (": "a part of a config: tests/training/test_rules.py gives it to a run",
    "  tie.py config.py": "a list of files, which are looked up below",
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    with contextlib.closing(Sandbox(tmp_path_factory.mktemp("docs"))) as made:
        yield made


@pytest.fixture(scope="module")
def read(sandbox):
    """`read(page)` is what came of running a page, which is done once."""
    readings = {}

    def once(page):
        if page not in readings:
            readings[page] = sandbox.read(page, tuple(EXCEPTIONS))
        return readings[page]

    return once


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_as_printed(page, read):
    reading = read(page)
    assert reading.code == 0, reading.err
    for block in blocks(page):
        if block.language == "text" and not any(words in block.text for words in EXCEPTIONS):
            missing = [line for line in block.text.splitlines() if line not in reading.out]
            assert not missing, f"{page}:{block.line}: is not what the commands printed"


def test_every_block_has_a_language_and_every_exception_is_one():
    found = [block for page in PAGES for block in blocks(page)]
    for block in found:
        assert block.language in ("bash", "python", "text"), f"{block.page}:{block.line}"
    for page in PAGES:  # no fence that the pattern does not see
        assert (ROOT / page).read_text().count("```") == 2 * len(blocks(page)), page
    for words in EXCEPTIONS:
        assert any(words in block.text for block in found), words


# --- what they give


def values(block, folder, monkeypatch):
    """(what its comment says, what it is) of each line of a block of Python that shows a value."""
    monkeypatch.chdir(folder)
    names, shown, lines = {}, [], block.text.splitlines()
    for statement in ast.parse(block.text).body:
        if isinstance(statement, ast.Expr):
            comment = lines[statement.lineno - 1].partition("#")[2].strip()
            shown.append((comment, eval(ast.unparse(statement), names)))
        else:
            exec(ast.unparse(statement), names)
    return names, shown


def test_the_notebook_example_gives_what_it_says(read, monkeypatch):
    page = next(p for p in PAGES for b in blocks(p) if "load_study" in b.text)
    block = next(b for b in blocks(page) if "load_study" in b.text)
    names, shown = values(block, read(page).clone, monkeypatch)
    (tables, frames), (columns, curve), (_, score) = shown
    assert tables == "DataFrames"
    assert all(isinstance(frame, pd.DataFrame) and len(frame) for frame in frames)
    assert columns == ", ".join(curve.columns) and len(curve)
    best = names["study"].summary[["arm", "learning_rate"]]
    runs = names["study"].runs.merge(best).query("arm == 'K=V' and seed == 0")
    assert abs(float(score) - runs["test"].item()) < 1e-6


def test_a_study_from_outside_the_package_ends_in_a_report(read):
    """docs/extending.md: an adapter, a scheme, a task and a study in somebody's own folder."""
    files = {block.file: block.text for block in blocks("docs/extending.md") if block.file}
    assert set(files) == {"my_adapter.py", "my_scheme.py", "my_task.py", "my_study.py"}
    assert all(len(text.splitlines()) < 30 for text in files.values())
    folder = read("docs/extending.md").home.parent / "mine" / "runs" / "mine"
    summary = pd.read_csv(folder / "summary.csv").set_index("arm")
    assert set(summary.index) == {"separate", "Q=K", "Q=K + rotation", "exclusive", "placebo"}
    assert (summary["n"] == 5).all()
    # Two heads of width 8 have an angle for each of four pairs.
    assert summary["params"]["Q=K + rotation"] - summary["params"]["Q=K"] == 2 * 4
    assert "Previous symbol" in (folder / "report.html").read_text()


def test_what_an_adapter_of_ones_own_refuses_is_one_line(read, sandbox):
    folder = read("docs/extending.md").home.parent / "mine"
    command = [sandbox.python, "-m", "experiments.ablate", "--config=my_study.py", "--plan"]
    command += ["--config.model.width=18", "--config.model.positions=none"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "Q=K + rotation" in done.stderr and "needs an even head width, not 9" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# --- what they name

COMMANDS = {name: str(file.relative_to(ROOT)) for name, file in sorted(commands.FILES.items())}
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.py"))
TEXTS = {page: (ROOT / page).read_text() for page in PAGES} | {
    path: ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    for path in (*CONFIGS, *COMMANDS.values())
}
TARGETS = re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
FIELDS = {"model": ModelConfig, "train": TrainConfig, "mesh": MeshConfig, "study": StudyConfig}
# Flags of other programs.
FOREIGN = {
    "nodes", "ntasks-per-node", "gpus-per-node", "time", "requeue", "open-mode", "signal",
    "kill-on-bad-exit", "zone", "worker", "command", "plan", "help",
}  # fmt: skip


@pytest.fixture(scope="module")
def flags_of(sandbox):
    """The flags of each command, and their defaults."""
    code = (
        "import importlib, json, sys\nfrom absl import flags\nbefore = set(flags.FLAGS)\n"
        "importlib.import_module(NAME)\n"
        "print(json.dumps({n: flags.FLAGS[n].default for n in set(flags.FLAGS) - before}))"
    )
    found = {}
    for name, file in COMMANDS.items():
        module = file.removesuffix(".py").replace("/", ".")
        command = [sandbox.python, "-c", code.replace("NAME", repr(module))]
        printed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        source = (ROOT / file).read_text()
        others = dict.fromkeys(re.findall(r'add_argument\("--(\w+)"', source))
        found[name] = json.loads(printed) | others
    return found


@pytest.mark.parametrize("source", TEXTS)
def test_every_flag_is_one_of_the_command(source, flags_of):
    everywhere = {flag for flags in flags_of.values() for flag in flags} | FOREIGN
    for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", TEXTS[source]):
        assert flag in everywhere or flag.removeprefix("no") in everywhere, flag
    text = re.sub(r" *\\\n *", " ", TEXTS[source])
    text = re.sub(r"\bqkv (?=[a-z])", "python -m experiments.", text)
    for name, rest in re.findall(r"python -m experiments\.(\w+)([^\n`#]*)", text):
        given = re.findall(r" --([a-z]\w*)", rest)
        assert name in flags_of and set(given) <= {*flags_of[name], "config", "help"}, (name, given)


@pytest.mark.parametrize("source", TEXTS)
def test_every_field_is_one_of_its_part(source):
    """Written as `model.remat`; what commands override, they look up when they run."""
    for part, field in re.findall(
        r"(?<![/\w.])(model|train|mesh|study)\.(?!py)(\w+)", TEXTS[source]
    ):
        about_code = (part, field) in {("study", "runs"), ("study", "summary"), ("study", "find"),
                                       ("study", "curve"), ("study", "model"), ("study", "json"),
                                       ("study", "batch"),
                                       ("model", "safetensors")}  # fmt: skip
        fields = [known.name for known in dataclasses.fields(FIELDS[part])]
        assert about_code or field in fields, f"{part}.{field}"


def test_every_override_that_no_page_runs_is_of_a_field_of_some_config():
    """In docstrings, in a line of text, and in commands that are left out."""
    known = {path for config in CONFIGS for path in overrides(config)}
    kinds = [*FIELDS.items(), *(("options", task) for task in REGISTRY.values())]
    known |= {f"{part}.{field.name}" for part, kind in kinds for field in dataclasses.fields(kind)}
    known |= {f"task.{path}" for path in known if path.startswith("options.")}  # of a single run
    for source, text in TEXTS.items():
        for path in re.findall(r"--config\.((?:arms\.[^.\s]+\.)?[\w.]+\w)", text):
            run = any(f"--config.{path}" in c and not any(w in c for w in EXCEPTIONS)
                      for b in (blocks(source) if source in PAGES else ()) if b.language == "bash"
                      for c in b.commands)  # fmt: skip
            of_entry = re.sub(r"^(tasks|arms)\.[^.]+\.", "", path)
            assert run or {path, of_entry} & known, f"{source}: {path}"


def overrides(path):
    """The dotted paths of all fields of a config file."""
    get_config = runpy.run_path(str(ROOT / path)).get("get_config")
    return flax.traverse_util.flatten_dict(get_config().to_dict(), sep=".") if get_config else ()


def test_the_tables_of_fields_name_fields():
    known = {f.name for kind in (*FIELDS.values(), StudyFile, ArmEntry, TaskEntry, Claim)
             for f in dataclasses.fields(kind)}  # fmt: skip
    for page in PAGES:
        for table in re.findall(r"\| field \|.*\n\|[-|: ]+\|\n((?:\|.*\n)+)", TEXTS[page]):
            for row in table.splitlines():
                for field in re.findall(r"`([\w.]+)`", row.split("|")[1]):
                    assert field.rpartition(".")[2] in known, f"{page}: {field}"


def test_the_glossary_has_every_verdict_and_every_reason():
    words = re.findall(r"`([^`]+)`", TEXTS["docs/glossary.md"])
    assert {"better", "worse", "equivalent", "undecided"} <= set(words)
    assert set(typing.get_args(Reason)) - {""} <= set(words)


@pytest.mark.parametrize("source", TEXTS)
def test_every_path_module_target_and_link_leads_somewhere(source):
    text = TEXTS[source]
    folders = "configs|docs|experiments|qkv_jax|tests"
    for path in re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w/?)", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"\bqkv_jax(?:\.\w+)+", text):
        pkgutil.resolve_name(name)
    for name in re.findall(r"\bexperiments\.(\w+)|`qkv ([a-z]+)", text):
        name = "".join(name)
        assert name in COMMANDS, name
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / source).parent.joinpath(link).exists(), link
    for target in re.findall(r"(?:`|^|    )make ([a-z-]+)", text, re.MULTILINE):
        assert target in TARGETS, target


def test_every_target_of_the_makefile_is_declared():
    phony = re.search(r"\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text())[1]
    assert sorted(phony.replace("\\\n", " ").split()) == sorted(TARGETS)


def test_every_extra_is_one_of_setup_cfg_and_installs_from_a_clone():
    """In pages, refusals and the Makefile alike: the package is on no index."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    sources = [ROOT / name for name in (*PAGES, "Makefile", *TEXTS)]
    sources += (ROOT / "qkv_jax").rglob("*.py")
    named = set()
    for path in sources:
        text = path.read_text()
        assert "qkv_jax[" not in text, path
        found = re.findall(r"pip install -e '\.\[([\w,]+)\]'|EXTRAS=([\w,]+)", text)
        named |= {extra for pair in found for part in pair for extra in part.split(",") if extra}
    assert {"gpu", "text", "tpu", "cluster"} <= named <= extras


def test_the_defaults_of_flags_are_those_of_the_page(flags_of):
    """docs/cluster.md: where the table has one number or one word."""
    rows = re.findall(r"^\| (`--.*?) \|.*\| `?([\w.]+)`? \|$", TEXTS["docs/cluster.md"], re.M)
    assert len(rows) >= 5
    for names, default in rows:
        for flag in re.findall(r"--(\w+)", names):
            given = flags_of["ablate"][flag]
            assert str(given) == default or float(given) == float(default), flag


def test_the_list_of_modules_in_the_readme_is_a_list_of_modules():
    """Files by name, folders with a slash, a line or two of what is in them."""
    block = next(b for b in blocks("README.md") if "qkv_jax/" in b.text and b.language == "text")
    for line in block.text.splitlines():
        for name in re.match(r" *((?:[\w.]+(?:/|\.py) ?)+)", line)[1].split():
            assert any((ROOT / where / name).exists() for where in ("", "qkv_jax")), name
