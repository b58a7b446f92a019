"""Text files that people write: read as their editor shows them, or refused with the line.

A byte order mark at the start is dropped. What would become part of a text unseen is refused:
bytes that are not UTF-8, NUL characters (UTF-16 has one beside every letter), and further byte
order marks (of files that were joined).
"""

import codecs
import pathlib
import re

from qkv_jax.config import ConfigError
from qkv_jax.tasks import sources

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
_LINE_ENDS = re.compile("\r\n|\r|\n")  # those of editors; form feeds and U+2028 end no line


def read_text(path: pathlib.Path, field: str) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Args:
      field: what names the file, for the refusal.

    Raises:
      ConfigError: if it cannot be read or is no UTF-8, with the number of the line.
    """
    text = read_utf8(path, field)
    before, mark, _ = text.partition("\ufeff")
    if mark:
        what = f"holds a second byte order mark in line {len(split_lines(before))}"
        raise ConfigError(field, str(path), f"{what}; save it as UTF-8")
    return text


def read_utf8(path: pathlib.Path, field: str) -> str:
    """Likewise, where a byte order mark inside is a character as any other: in cells of a table.

    Raises:
      ConfigError: as `read_text`.
    """
    content = sources.content(path, field)
    for mark, encoding in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise ConfigError(field, str(path), f"is {encoding}; save it as UTF-8")
    before, nul, _ = content.partition(b"\0")
    if nul:
        line = len(split_lines(before.decode(errors="replace")))
        what = f"holds a NUL character (is the file UTF-16?) in line {line}; save it as UTF-8"
        raise ConfigError(field, str(path), what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: len(content) - len(error.object) + error.start]
        what = f"is not UTF-8 at byte {len(before)} (line {len(split_lines(before.decode()))})"
        raise ConfigError(field, str(path), what) from None


def split_lines(text: str) -> list[str]:
    """The lines of a text as an editor numbers them, without their ends."""
    return _LINE_ENDS.split(text)
