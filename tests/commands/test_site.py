"""The site of docs/: built without a warning, every link of it leads somewhere, and it has every
option and every package."""

import dataclasses
import html.parser
import os
import pathlib
import pkgutil
import subprocess
import sys
import urllib.parse

import pytest

import qkv_jax
from qkv_jax.model.config import ModelConfig
from qkv_jax.study.config import StudyConfig
from qkv_jax.tasks import REGISTRY
from tests.support.warm_python import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


class Page(html.parser.HTMLParser):
    """Of a page: what it links to, and the places in it that can be linked to."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.path, self.links, self.places = path, [], {""}
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


def test_every_link_leads_to_a_place(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(list((ROOT / "docs").glob("*.md")))
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else path.parent / urllib.parse.unquote(parts.path)
            target = pathlib.Path(os.path.normpath(target))
            assert target.exists(), f"{path.relative_to(site)}: {link}"
            if target in pages:
                place = urllib.parse.unquote(parts.fragment)
                assert place in pages[target].places, f"{path.relative_to(site)}: {link}"


def test_it_has_every_page_option_and_package(site):
    for path in [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")]:
        assert (site / f"{path.stem}.html").exists(), path.name
    options = (site / "options.html").read_text(encoding="utf-8")
    for cls in (ModelConfig, StudyConfig, *REGISTRY.values()):
        for field in dataclasses.fields(cls):
            assert not field.init or f"<code>{field.name}</code>" in options, field.name
    packages = [found.name for found in pkgutil.walk_packages(qkv_jax.__path__, "qkv_jax.")
                if found.ispkg]  # fmt: skip
    assert len(packages) > 15
    for name in packages:
        assert (site / "api" / f"{name}.html").exists(), name
    tutorial = (site / "tutorial.html").read_text(encoding="utf-8")
    assert tutorial.count('<img alt="') == 4 and "No description" not in tutorial
    attention = (site / "api" / "qkv_jax.model.html").read_text(encoding="utf-8")
    assert "usable alone in any Linen model" in attention
