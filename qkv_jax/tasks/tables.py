"""Tables of texts and labels: CSV and TSV files."""

import csv
import io
import pathlib
from typing import NamedTuple

from qkv_jax.config import ConfigError
from qkv_jax.tasks.plain_text import read_utf8

# By extension: the separator, and whether cells may be quoted. Tab-separated texts are full of
# quotation marks that belong to them.
_DIALECTS = {".csv": (",", csv.QUOTE_MINIMAL), ".tsv": ("\t", csv.QUOTE_NONE)}


class Labelled(NamedTuple):
    """Texts and the label of each."""

    texts: list[str]
    labels: list[str]


def read_table(path: pathlib.Path, text_column: str, label_column: str) -> Labelled:
    """The two columns of a CSV or TSV file whose first row names them; UTF-8.

    Raises:
      ConfigError: `files`, naming the file and, where there is one, the line that is at fault.
    """
    if path.suffix not in _DIALECTS:
        raise ConfigError("files", str(path), f"must end in {' or '.join(_DIALECTS)}")
    separator, quoting = _DIALECTS[path.suffix]
    csv.field_size_limit(2**31 - 1)  # a text may be a book
    content = read_utf8(path, "files")
    if not content.strip():
        raise ConfigError("files", str(path), "is empty")
    lines = io.StringIO(content, newline="")
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    try:
        header = next(reader)
        places = [_place(path, header, name) for name in (text_column, label_column)]
        rows = []
        for row in reader:
            if len(row) not in (0, len(header)):
                what = f"line {reader.line_num}: {len(row)} columns, not {len(header)}"
                raise ConfigError("files", str(path), what)
            if row and is_no_label(label := row[places[1]].strip()):
                what = f"line {reader.line_num}: no label{f', but {label!r}' if label else ''}"
                raise ConfigError("files", str(path), what)
            if row:
                rows.append([row[place] for place in places])
    except csv.Error as error:
        raise ConfigError("files", str(path), f"line {reader.line_num}: {error}") from None
    if not rows:
        raise ConfigError("files", str(path), "has a header and no rows")
    return Labelled([text for text, _ in rows], [label.strip() for _, label in rows])


def is_no_label(text: str) -> bool:
    """Whether a cell is empty, or how a missing number is printed. "None" and "NA" name classes."""
    return not text or text.lower() == "nan"


def _place(path: pathlib.Path, header: list[str], name: str) -> int:
    if name not in header:
        what = f"has no column {name!r}; columns: {', '.join(map(repr, header))}"
        raise ConfigError("files", str(path), what)
    if header.count(name) > 1:
        raise ConfigError("files", str(path), f"has {header.count(name)} columns {name!r}")
    return header.index(name)
