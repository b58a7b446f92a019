"""Self-contained pages out of Jinja templates, written as a whole or not at all."""

import functools
import pathlib
import re
from typing import Any

import jinja2

from qkv_jax.runtime.files import write_whole


def write_page(path: pathlib.Path, template: pathlib.Path, context: dict[str, Any]) -> pathlib.Path:
    """Fills a template, which may include others of its folder, and those of this package; returns
    the page's path."""
    write_whole(path, _environment(template.parent).get_template(template.name).render(context))
    return path


@functools.cache
def _environment(folder: pathlib.Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, pathlib.Path(__file__).parent]),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": markdown, "unbroken": unbroken}
    return environment


def unbroken(text: Any) -> str:
    """No line break inside "95 %", "p < 0.0001" and between a number and its seeds."""
    text = re.sub(r"(\d) (%|seeds?\b)", "\\1\u00a0\\2", str(text))
    return re.sub(r"\bp ([=<≤]) ", "p\u00a0\\1\u00a0", text)


def markdown(text: Any) -> str:
    """Text with all that Markdown or HTML would take for markup escaped, for one line."""
    text = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|#\[\]~$])", r"\\\1", text).replace("\n", " ")
