"""A hook of MkDocs: the pages of the site that are no files of docs/.

    index.md              README.md
    options.md            every field of every config, read off the dataclasses
    api/PACKAGE.md        the docstrings of a package's modules, by mkdocstrings
"""

import json
import logging
import pathlib
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator
from html import escape
from typing import Any

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # `mkdocs` is a command: the clone is not on its path

import qkv_jax  # noqa: E402
from experiments.cli import help  # noqa: E402
from experiments.train import TrainFile  # noqa: E402
from qkv_jax.config_files import fields  # noqa: E402
from qkv_jax.model.config import ModelConfig  # noqa: E402
from qkv_jax.study.claims import Claim  # noqa: E402
from qkv_jax.study.config import ArmEntry, StudyConfig, StudyFile, TaskEntry  # noqa: E402
from qkv_jax.tasks import REGISTRY  # noqa: E402
from qkv_jax.training.mesh import MeshConfig  # noqa: E402
from qkv_jax.training.state import TrainConfig  # noqa: E402

_NO_ALT = 'alt="No description has been provided for this image"'
logging.getLogger("traitlets").setLevel(logging.ERROR)  # which warns that this is put there

# Where the fields of a dataclass stand in a config.
PARTS = {
    "A study": StudyFile,
    "`study`: the protocol": StudyConfig,
    "`arms.NAME`": ArmEntry,
    "`tasks.NAME`": TaskEntry,
    "`claims.NAME`": Claim,
    "`model`": ModelConfig,
    "`train`": TrainConfig,
    "A single run": TrainFile,
    "`mesh`": MeshConfig,
}
OPTIONS = """# Options

Every field that a config can give, with its default; a line of config or a flag of the command,
`--config.model.tie=K=V`. What they do together: [studies.md](studies.md), [tasks.md](tasks.md),
[parallelism.md](parallelism.md).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {"index.md": home(), "options.md": options(), **api()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    names = {path: path.removeprefix("api/").removesuffix(".md") for path in pages}
    modules = [{name: path} for path, name in names.items() if path.startswith("api/")]
    reference.append({"API": modules})
    return files


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """What mkdocs-jupyter leaves undone: links between pages, and what is said of pictures."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    cells = json.loads(pathlib.Path(page.file.abs_src_path).read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    pictures = (output["metadata"].get("image/png") for output in outputs)
    words = iter([picture["alt"] for picture in pictures if picture])
    html = re.sub(_NO_ALT, lambda _: f'alt="{escape(next(words))}"', html)
    return re.sub(r'href="(\w+)\.md', r'href="\1.html', html)


def home() -> str:
    """The README, seen from docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](README.md", "](index.md")


def options() -> str:
    """A table for each part of a config and for each kind of task."""
    parts = [OPTIONS]
    for title, cls in PARTS.items():
        parts += [f"## {title}", _summary(cls), _table(cls)]
    parts.append("## `options` of a task, by `kind`")
    for kind, cls in sorted(REGISTRY.items()):
        parts += [f"### `{kind}`", _summary(cls), _table(cls)]
    return "\n\n".join(parts) + "\n"


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].split())


def _table(cls: type) -> str:
    about, rows = help.comments(cls), []
    for name, kind, default in fields(cls):
        part = _part(kind)
        values = [part or _code(_values(kind)), "" if part else _code(default)]
        meaning = about.get(name, "").replace("|", "\\|")
        rows.append(f"| `{name}` | {' | '.join(values)} | {meaning} |")
    return "\n".join(["| field | values | default | meaning |", "|---|---|---|---|", *rows])


def _part(kind: Any) -> str:
    """A link to the fields of a part, where a field is one or a mapping of such; else nothing."""
    inner = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else kind
    titles = [title.replace("`", "") for title, cls in PARTS.items() if cls is inner]
    return "".join(f"[{title}](#{slugify(title, '-')})" for title in titles)


def _values(kind: Any) -> str:
    """An annotation as a reader would write it."""
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
    return re.sub(r"\b(?:typing|collections\.abc|\w+(?:\.\w+)+)\.(?=\w)", "", text)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def api() -> dict[str, str]:
    """A page per package: its docstring, and its modules with theirs."""
    return {f"api/{name}.md": "\n\n".join(page) for name, page in _packages(qkv_jax)}


def _packages(package: Any) -> Iterator[tuple[str, list[str]]]:
    found = list(pkgutil.iter_modules(package.__path__, f"{package.__name__}."))
    modules = [f"::: {module.name}" for module in found if not module.ispkg]
    yield package.__name__, [f"# {package.__name__}", *modules]
    for inner in found:
        if inner.ispkg:
            __import__(inner.name)
            yield from _packages(sys.modules[inner.name])
