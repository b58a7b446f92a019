"""Makes data files out of what a package or a site publishes:

    python -m experiments.prepare reviews --sdist=vaderSentiment-3.3.2.tar.gz --out=data/reviews.tsv

`reviews`: the movie-review snippets of Hutto & Gilbert (2014), rated by people from -4 to 4 and
here labelled by the sign of their mean rating, without those at zero. `make reviews` fetches the
source distribution of vaderSentiment (MIT licence), in which they lie, and runs this.
"""

import io
import os
import pathlib
import sys
import tarfile
import zlib

from absl import flags

from experiments import door
from qkv_jax.config import ConfigError

_SDIST = flags.DEFINE_string("sdist", None, "The source distribution of vaderSentiment, .tar.gz.")
_OUT = flags.DEFINE_string("out", "data/reviews.tsv", "The file to write.")

_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS = "movieReviewSnippets_GroundTruth.txt"


def reviews() -> None:
    """Columns id, label (negative or positive) and text, separated by tabs."""
    if not _SDIST.value:
        raise ConfigError("--sdist", None, "name the source distribution of vaderSentiment")
    archive = pathlib.Path(_SDIST.value).read_bytes()
    content = member(member(archive, _INNER, _SDIST.value), _SNIPPETS, _SDIST.value)
    rows = []
    for number, line in enumerate(content.decode().splitlines(), 1):
        try:
            name, rating, text = line.split("\t")
            sign = float(rating)
        except ValueError:
            allowed = f"line {number} of {_SNIPPETS} is no id, rating and text"
            raise ConfigError("--sdist", _SDIST.value, allowed) from None
        if sign:
            rows.append((name, "positive" if sign > 0 else "negative", text.strip()))
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    lines = ["\t".join(row) for row in [("id", "label", "text"), *rows]]
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(part, out)
    positive = sum(label == "positive" for _, label, _ in rows)
    print(f"{out}: {len(rows)} snippets, {positive} positive and {len(rows) - positive} negative")


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


def _enter() -> None:
    names = {"reviews": reviews}
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if name not in names:
        sys.exit(door.refuse(str(ConfigError("data set", name, f"allowed: {', '.join(names)}"))))
    door.enter(names[name])


if __name__ == "__main__":
    _enter()
