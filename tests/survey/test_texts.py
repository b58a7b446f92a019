"""Text files of a user's: read as an editor shows them, or refused with the file and the line."""

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.survey.texts import read_texts

MARK = b"\xef\xbb\xbf"
READ = {
    "plain": (b"the cat\nhome\n", {1: "the cat", 2: "home"}),
    "byte order mark": (MARK + b"the cat\nhome\n", {1: "the cat", 2: "home"}),
    "windows": (MARK + b"the cat\r\n\r\nhome\r\n", {1: "the cat", 3: "home"}),
    "old Macintosh": (b"the cat\rhome", {1: "the cat", 2: "home"}),
    "form feed": (b"the\x0ccat\nhome\n", {1: "the\x0ccat", 2: "home"}),
    "other separators": ("a\u2028b\x85c\x1cd\x0be\nhome".encode(), {1: "a\u2028b\x85c\x1cd\x0be",
                                                                   2: "home"}),
    "blank lines": (b"\n \t\nthe cat\n\n", {3: "the cat"}),
    "no end": ("zürich ✓".encode(), {1: "zürich ✓"}),
}  # fmt: skip
EMPTY = "is empty; write one text per line"
REFUSED = {
    "mark alone": (MARK, EMPTY),
    "nothing": (b"", EMPTY),
    "blank": (b" \n\x0c\n", EMPTY),
    "UTF-16": ("the\ncat".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "UTF-16 of the other end": (b"\xfe\xff\x00t", "is UTF-16; save it as UTF-8"),
    "UTF-32": ("the".encode("utf-32"), "is UTF-32; save it as UTF-8"),
    "UTF-16 without a mark": ("the\ncat".encode("utf-16-le"), "holds a NUL character (is the file "
                              "UTF-16?) in line 1; save it as UTF-8"),
    "NUL": (b"the\r\ncat\n\0", "holds a NUL character (is the file UTF-16?) in line 3; save it as "
            "UTF-8"),
    "two marks": (MARK + MARK + b"the", "holds a second byte order mark in line 1; save it as "
                  "UTF-8"),
    "joined files": (MARK + b"the\n" + MARK + b"cat", "holds a second byte order mark in line 2; "
                     "save it as UTF-8"),
    "Latin-1": (MARK + b"a\x0cb\r\nz\xfcrich\n", "is not UTF-8 at byte 9 (line 2)"),
    "cut short": ("the\n✓".encode()[:-1], "is not UTF-8 at byte 4 (line 2)"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_lines_are_those_of_an_editor(case, tmp_path):
    content, lines = READ[case]
    file = tmp_path / "t.txt"
    file.write_bytes(content)
    expected = {f"line {number}": line for number, line in lines.items()}
    assert read_texts(file, 9) == expected
    assert list(read_texts(file, 1).items()) == list(expected.items())[:1]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_text_is_refused_with_file_and_line(case, tmp_path):
    content, message = REFUSED[case]
    file = tmp_path / "t.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_texts(file, 9)
    assert str(caught.value) == f"texts: given {str(file)!r}; {message}"


def test_a_folder_or_a_lost_file_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="texts: given .*; cannot be read: Is a directory"):
        read_texts(tmp_path, 1)
    with pytest.raises(ConfigError, match="texts: given .*; cannot be read: No such file"):
        read_texts(tmp_path / "lost", 1)
