"""Makes data files, and folders of models, out of what a package or a site publishes:

    python -m experiments.prepare reviews --sdist=vaderSentiment-3.3.2.tar.gz --out=data/reviews.tsv
    python -m experiments.prepare gguf --gguf=SmolLM2-135M-Instruct.Q4_1.gguf --out=data/smollm2
    python -m experiments.prepare verses --sword=usr/share/sword --out=data/verses.tsv
    python -m experiments.prepare wikipedia --dump=enwiki.xml.bz2 --out=data/wikipedia

`reviews`: the movie-review snippets of Hutto & Gilbert (2014), rated by people from -4 to 4 and
here labelled by the sign of their mean rating, without those at zero. `make reviews` fetches the
source distribution of vaderSentiment (MIT licence), in which they lie, and runs this.

`gguf`: a GGUF file of the llama architecture as a Hugging Face folder, see `qkv_jax.interop.gguf`.

`verses`: the verses of the World English Bible beside those of the Reina-Valera of 1909, both in
the public domain, from the modules of the SWORD project that Debian packages as sword-text-web and
sword-text-sparv. It needs the package `pysword`.

`wikipedia`: the articles of a dump of Wikipedia as plain words, an article per row, in the form of
text8 (see `qkv_jax.tasks.text.wikipedia`); a small dump is among the test data of gensim.
"""

import io
import json
import math
import pathlib
import re
import tarfile
import zlib

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import write_whole
from qkv_jax.tasks.text.wikipedia import articles

from .cli import entry
from .cli.paths import path_flag

_SDIST = path_flag("sdist", None, "The source distribution of vaderSentiment, .tar.gz.")
_GGUF = path_flag("gguf", None, "A GGUF file.")
_SWORD = path_flag("sword", None, "The folder of SWORD modules, with mods.d in it.")
_DUMP = path_flag("dump", None, "A dump of Wikipedia, .xml or .xml.bz2.")
_OUT = path_flag("out", None, "The file to write, by default data/NAME.tsv; of a model and of "
                              "articles, the folder.")  # fmt: skip

_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS = "movieReviewSnippets_GroundTruth.txt"
_BIBLES = ("engWEB2015eb", "spaRV1909eb")


def reviews() -> None:
    """Columns id, label (negative or positive) and text, separated by tabs."""
    if not _SDIST.value:
        raise ConfigError("--sdist", None, "name the source distribution of vaderSentiment")
    archive = pathlib.Path(_SDIST.value).read_bytes()
    content = member(member(archive, _INNER, _SDIST.value), _SNIPPETS, _SDIST.value)
    rows = []
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError("--sdist", _SDIST.value, f"{_SNIPPETS} is no UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            name, rating, text = line.split("\t")
            sign = float(rating)
            if math.isnan(sign):
                raise ValueError
        except ValueError:
            allowed = f"line {number} of {_SNIPPETS} is no id, rating and text"
            raise ConfigError("--sdist", _SDIST.value, allowed) from None
        if sign:
            rows.append((name, "positive" if sign > 0 else "negative", text.strip()))
    out = _write("data/reviews.tsv", _tabbed([("id", "label", "text"), *rows]))
    positive = sum(label == "positive" for _, label, _ in rows)
    print(f"{out}: {len(rows)} snippets, {positive} positive and {len(rows) - positive} negative")


def gguf() -> None:
    """config.json, model.safetensors and, if it can be made, tokenizer.json."""
    for flag, what in ((_GGUF, "name a GGUF file"), (_OUT, "name the folder to write")):
        if not flag.value:
            raise ConfigError(f"--{flag.name}", flag.value, what)

    from qkv_jax.interop.gguf import convert

    lack = convert(pathlib.Path(_GGUF.value), pathlib.Path(_OUT.value))
    print(f"{_OUT.value}: config.json, model.safetensors" + ", tokenizer.json" * (lack is None))
    if lack is not None:
        print(f"no tokenizer.json: {lack}")


def verses() -> None:
    """Two columns without a header: a verse and its translation."""
    if not _SWORD.value:
        raise ConfigError("--sword", None, "name the folder of SWORD modules")
    try:
        from pysword.cleaner import OSISCleaner
        from pysword.modules import SwordModules
    except ImportError:
        advice = "needs the package 'pysword': pip install pysword"
        raise ConfigError("--sword", _SWORD.value, advice) from None
    modules = SwordModules(_SWORD.value)
    found = modules.parse_modules() if pathlib.Path(_SWORD.value, "mods.d").is_dir() else {}
    for name in _BIBLES:
        if name not in found:
            allowed = f"has no module {name}; there: {', '.join(sorted(found)) or 'none'}"
            raise ConfigError("--sword", _SWORD.value, allowed)
    bibles = [modules.get_bible_from_module(name) for name in _BIBLES]
    chapters = [
        {book.name: book.num_chapters for part in bible.get_structure().get_books().values()
         for book in part}
        for bible in bibles
    ]  # fmt: skip
    # A footnote may stand where the space between two words should.
    between, cleaner = re.compile(r"</note>(?=(<[^>]*>)*\w)"), OSISCleaner()
    plain = lambda text: " ".join(cleaner.clean(between.sub("</note> ", text)).split())
    rows = []
    for book in chapters[0]:
        for chapter in range(1, min(each.get(book, 0) for each in chapters) + 1):
            sides = (bible.get_iter(book, chapter, clean=False) for bible in bibles)
            # Versifications differ: of a chapter the verses that both have.
            rows += [tuple(map(plain, row)) for row in zip(*sides, strict=False)]
    rows = [row for row in rows if all(row)]
    print(f"{_write('data/verses.tsv', _tabbed(rows))}: {len(rows)} pairs of verses")


def wikipedia() -> None:
    """A data set of one file, train.jsonl, with the columns title and text."""
    if not _DUMP.value:
        raise ConfigError("--dump", None, "name a dump of Wikipedia")
    found = [
        (title, text) for title, text in articles(pathlib.Path(_DUMP.value), "--dump") if text
    ]
    if not found:
        raise ConfigError("--dump", _DUMP.value, "holds no articles")
    rows = (json.dumps({"title": title, "text": text}) for title, text in found)
    out = _write("data/wikipedia", "\n".join(rows), within="train.jsonl")
    print(f"{out}: {len(found)} articles of {sum(len(text) for _, text in found):,} letters")


def _tabbed(rows: list[tuple[str, ...]]) -> str:
    return "\n".join(map("\t".join, rows))


def _write(default: str, content: str, within: str = "") -> pathlib.Path:
    """Writes a new file, or the one `within` the folder that is named.

    Raises:
      ConfigError: `--out`, if there is another file.
    """
    out = pathlib.Path(_OUT.value or default, within)
    text = f"{content}\n".encode()
    if out.exists() and (not out.is_file() or out.read_bytes() != text):
        raise ConfigError("--out", str(out), "is there already, and something else; name another")
    write_whole(out, text)
    return out


def member(archive: bytes, ending: str, name: str) -> bytes:
    """The one file of a gzipped tar archive whose name ends so; nothing is unpacked to disk.

    Raises:
      ConfigError: `--sdist`, given `name`, if the archive is damaged or holds no such file.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
            for entry in files:
                if entry.isfile() and entry.name.endswith(f"/{ending}"):
                    return files.extractfile(entry).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ConfigError("--sdist", name, f"no whole .tar.gz archive: {error}") from None
    raise ConfigError("--sdist", name, f"holds no {ending}")


_MADE = {"reviews": reviews, "gguf": gguf, "verses": verses, "wikipedia": wikipedia}

if __name__ == "__main__":
    entry.enter_one("data set", _MADE)
