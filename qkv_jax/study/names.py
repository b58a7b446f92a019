"""Names of studies, arms and tasks, which are folders, cells of tables and words of command lines.

What is a good name on one file system must be one on all: a study is begun on a laptop's disk,
which takes `Q` and `q` for one, and goes on on a cluster's.
"""

import unicodedata
from collections.abc import Iterable

from qkv_jax.config import ConfigError

# A file system takes 255 bytes; what is put behind a name ("-learning-curves.svg", ".csv.part",
# ", 12 cells") needs some of them.
LONGEST = 200
_SIGNS = '<>"|?*'  # no file name on NTFS or exFAT; `:` is neither, but adapters are written with it
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"
}


def check_name(field: str, name: object) -> None:
    """Refuses a name that some file system, table or command line does not take as it is.

    Raises:
      ConfigError: naming the field and what is wrong.
    """
    fault = fault_of(name)
    if fault:
        raise ConfigError(field, name, fault)


def fault_of(name: object) -> str:
    """What is wrong with a name; empty if nothing is."""
    if not isinstance(name, str):
        return "a name must be a text"
    if not name.strip() or "/" in name or "\\" in name:
        return "must not be empty or hold a slash"
    if not name.isprintable():
        odd = next(sign for sign in name if not sign.isprintable())
        return f"must not hold the sign {odd!r}: names are one line of signs that can be seen"
    if name[0] in " .-" or name[-1] in " .":
        return "must not start with a space, dot or minus sign, nor end with a space or dot"
    for sign in _SIGNS:
        if sign in name:
            return f"must not hold {sign}: names are folders, on every file system"
    if name.partition(".")[0].rstrip().casefold() in _DEVICES:
        return "is the name of a device on some systems"
    if len(name.encode()) > LONGEST:
        return f"has {len(name.encode())} bytes; must have {LONGEST} at most, as names are folders"
    return ""


def folded(name: str) -> str:
    """What two names have in common that are one on some file system: case, and how accents are
    composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def check_apart(field: str, names: Iterable[str]) -> None:
    """Refuses names that are one on some file system.

    Raises:
      ConfigError: naming the field and both names.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other is not name:
            allowed = f"is {other!r} over again, or to some file systems the same; rename one"
            raise ConfigError(field, name, allowed)
