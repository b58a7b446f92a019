"""`--help`: the flags of a command, the config files that there are, and their fields."""

import ast
import dataclasses
import functools
import inspect
import io
import pathlib
import re
import shutil
import sys
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from typing import Any

from absl import flags

from qkv_jax.config_files import fields
from qkv_jax.tasks import REGISTRY

from . import config_file, place

_COLUMN = 44  # where the meaning of a field begins


def show(own: list[flags.Flag], cls: type | None) -> None:
    """Prints all of it; `cls`: what the command's config file is read into, if it takes one."""
    print(place.as_typed(inspect.cleandoc(sys.modules["__main__"].__doc__ or "")))
    print("\nFlags:")
    for flag in own:
        default = "" if flag.default in (None, "", []) else f"={flag.default}"
        print(_line(f"--{flag.name}{default}", flag.help.partition(";\n")[0]))
    if not cls:
        return
    print("\nConfigs, --config=NAME, or the path of a file of your own:")
    for name in place.shipped():
        about = _docstring(place.CONFIGS / f"{name}.py")
        if f"experiments.{config_file.command_of(cls)} " in about:
            print(_line(name, about.partition("\n\n")[0]))
    print("\nFields of the config, --config.FIELD=VALUE:")
    for name, default, about in described(cls):
        print(_line(f"{name}={default}" if default else name, about))
    print("\nOptions of a task, by its kind:")
    for kind, task in sorted(REGISTRY.items()):
        print(f"  {kind}")
        for name, _, default in fields(task):
            print(_line(f"  options.{name}={default}", comments(task).get(name, "")))


def _docstring(path: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def described(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of every field, parts below the fields that hold them; a part that
    was listed is not listed again."""
    parts, listed = [("", cls)], {cls: ""}
    for prefix, part in parts:  # which grow on the way
        for name, kind, default in fields(part):
            about = comments(part).get(name, "")
            inner, path = kind, f"{prefix}{name}."
            if typing.get_origin(kind) is dict and dataclasses.is_dataclass(_item(kind)):
                inner, path = _item(kind), f"{prefix}{name}.NAME."
            if inner in listed:
                yield f"{path}…", "", f"the fields of {listed[inner]}…"
            elif dataclasses.is_dataclass(inner):
                listed[inner] = path
                parts.append((path, inner))
            elif inspect.isfunction(inner):
                yield f"{path}…", "", "see below, by kind"
            else:
                yield f"{prefix}{name}", default, about


def _item(kind: Any) -> Any:
    return typing.get_args(kind)[1]


@functools.cache
def comments(cls: type) -> dict[str, str]:
    """What the source says of each field: an entry under "Attributes:" in the docstring, the
    comment at the end of its line, or the one above it."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _above_or_beside(inspect.getsource(base)) | _attributes(base.__doc__ or "")
    return found


def _above_or_beside(source: str) -> dict[str, str]:
    found, above = {}, []
    for line in _lines(textwrap.dedent(source) + "\n"):
        names = [token.string for token in line if token.type == tokenize.NAME]
        about = [t.string.lstrip("# ") for t in line if t.type == tokenize.COMMENT]
        about = [text for text in about if not text.startswith(("noqa", "fmt:"))]
        if not names:
            above += about
            continue
        if any(token.string == ":" for token in line) and (about or above):
            found.setdefault(names[0], " ".join(about or above))
        above = []
    return found


def _lines(source: str) -> Iterator[list[tokenize.TokenInfo]]:
    line = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line.append(token)
        if token.type in (tokenize.NEWLINE, tokenize.NL) and token.line.strip():
            yield line
            line = []


def _attributes(doc: str) -> dict[str, str]:
    """{name: text} of the section Attributes, of each name where several share a text."""
    section = re.search(r"^Attributes:\n((?:  .*\n|\n(?=  ))*)", inspect.cleandoc(doc) + "\n", re.M)
    entries = re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section[1] if section else "", re.M)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _line(left: str, about: str) -> str:
    """One entry, in two columns; what is left of the second may begin on the next line."""
    width = min(100, max(60, shutil.get_terminal_size((100, 24)).columns))
    about = textwrap.wrap(" ".join(about.split()), width - _COLUMN)
    left = f"  {left}" if len(left) <= _COLUMN - 4 or not about else f"  {left}\n"
    gap = " " * (_COLUMN - len(left) if left[-1] != "\n" else _COLUMN)
    return (left + gap + f"\n{' ' * _COLUMN}".join(about)).rstrip()
