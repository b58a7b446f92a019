"""Text files that people write: read as their editor shows them, or refused with the line.

A byte order mark at the start is dropped. What would become part of a text unseen is refused:
bytes that are not UTF-8, NUL characters (UTF-16 has one beside every letter), and further byte
order marks (of files that were joined).
"""

import codecs
import pathlib
import re

from qkv_jax.config import ConfigError

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
_LINE_ENDS = re.compile("\r\n|\r|\n")  # those of editors; form feeds and U+2028 end no line
_UNSEEN = {"\0": "a NUL character (is the file UTF-16?)", "\ufeff": "a second byte order mark"}


def read_text(path: pathlib.Path, field: str) -> str:
    """The text of a UTF-8 file, without its byte order mark.

    Args:
      field: what names the file, for the refusal.

    Raises:
      ConfigError: if it cannot be read or is no UTF-8, with the number of the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(field, str(path), f"cannot be read: {error.strerror}") from None
    for mark, encoding in _OTHER_MARKS.items():
        if content.startswith(mark):
            raise ConfigError(field, str(path), f"is {encoding}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: len(content) - len(error.object) + error.start]
        what = f"is not UTF-8 at byte {len(before)} (line {len(split_lines(before.decode()))})"
        raise ConfigError(field, str(path), what) from None
    for character, name in _UNSEEN.items():
        if character in text:
            line = len(split_lines(text.partition(character)[0]))
            raise ConfigError(field, str(path), f"holds {name} in line {line}; save it as UTF-8")
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text as an editor numbers them, without their ends."""
    return _LINE_ENDS.split(text)
