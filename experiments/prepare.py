"""Makes data files out of what a package or a site publishes:

    python -m experiments.prepare reviews --sdist=vaderSentiment-3.3.2.tar.gz --out=data/reviews.tsv

`reviews`: the movie-review snippets of Hutto & Gilbert (2014), rated by people from -4 to 4 and
here labelled by the sign of their mean rating, without those at zero. `make reviews` fetches the
source distribution of vaderSentiment (MIT licence), in which they lie, and runs this.
"""

import io
import math
import pathlib
import tarfile
import zlib

from experiments import door
from experiments.paths import path_flag
from qkv_jax.config import ConfigError
from qkv_jax.training.files import write_whole

_SDIST = path_flag("sdist", None, "The source distribution of vaderSentiment, .tar.gz.")
_OUT = path_flag("out", "data/reviews.tsv", "The file to write.")

_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS = "movieReviewSnippets_GroundTruth.txt"


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
    out = pathlib.Path(_OUT.value)
    lines = ["\t".join(row) for row in [("id", "label", "text"), *rows]]
    text = ("\n".join(lines) + "\n").encode()
    if out.exists() and (not out.is_file() or out.read_bytes() != text):
        raise ConfigError("--out", _OUT.value, "is there already, and something else; name another")
    write_whole(out, text)
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


if __name__ == "__main__":
    door.enter_one("data set", {"reviews": reviews})
