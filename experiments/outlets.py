"""stdout and stderr as the commands use them: any encoding, and readers that leave.

A character that the encoding of a terminal or log does not have is written as the nearest that it
has. A reader that leaves (`| head -1`, a closed terminal) stops nothing: what is printed after that
goes nowhere. A full disk below a redirected stdout does the same to long work, whose results are in
files, and ends other commands, whose results are what they print.
"""

import codecs
import errno
import io
import os
import select
import sys
import unicodedata

_GONE = (errno.EPIPE, errno.EIO)  # a closed pipe, a terminal that hung up
_NEAREST = {
    "−": "-", "–": "-", "—": "-", "×": "x", "·": ".", "•": "*", "…": "...", "≥": ">=", "≤": "<=",
    "≈": "~", "±": "+/-", "→": "->", "←": "<-", "↑": "^", "↓": "v", "▲": "^", "▼": "v", "●": "*",
    "√": "sqrt", "∞": "inf", "“": '"', "”": '"', "‘": "'", "’": "'", "✓": "+", "✗": "x", "⟨": "<",
    "⟩": ">", "λ": "lambda", "α": "alpha", "Σ": "sum", "⇥": "\\t", "⏎": "\\n", "␍": "\\r",
    "␣": "_", "⁻": "-",
}  # fmt: skip

_work_is_long = False


def long_work() -> None:
    """From here on nothing that happens to stdout ends the command."""
    global _work_is_long
    _work_is_long = True


def open_outlets() -> None:
    """Puts outlets in the place of `sys.stdout` and `sys.stderr`."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`), and the number of the next file to be opened
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, _outlet(number, name, getattr(sys, name)))


def legible(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: the nearest that ASCII has."""
    text = error.object[error.start : error.end]
    return "".join(map(_nearest, text)), error.end


codecs.register_error("legible", legible)


def _nearest(sign: str) -> str:
    if sign in _NEAREST:
        return _NEAREST[sign]
    if "\ud800" <= sign <= "\udfff":  # a byte of a file's name that is no text
        return f"\\x{ord(sign) & 0xFF:02x}"
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return plain or ("" if unicodedata.combining(sign) else "?")


def _outlet(number: int, name: str, old: io.TextIOWrapper | None) -> io.TextIOWrapper:
    raw = io.BufferedWriter(_Outlet(number, name))
    if old is None:
        return io.TextIOWrapper(raw, errors="legible", newline="\n")
    old.flush()
    return io.TextIOWrapper(
        raw, old.encoding, "legible", "\n", old.line_buffering or number == 2, old.write_through
    )


class _Outlet(io.FileIO):
    """A file descriptor that can be written to whatever becomes of its other end."""

    def __init__(self, number: int, name: str):
        super().__init__(number, "w", closefd=False)
        self._name, self._is_gone = name, False

    def write(self, data) -> int:
        try:
            while not self._is_gone:
                written = super().write(data)
                if written is not None:
                    return written
                select.select((), (self,), ())  # a pipe that does not block, and is full just now
        except OSError as error:
            self._is_gone = True
            self._tell(error)
        return memoryview(data).nbytes

    def _tell(self, error: OSError) -> None:
        if self._name == "stderr":
            return
        if _work_is_long:
            line = f"warning: stdout: {error.strerror}; the work goes on, and prints nothing more"
            print(line, file=sys.stderr)
        elif error.errno not in _GONE:
            raise OSError(error.errno, error.strerror, "stdout")
