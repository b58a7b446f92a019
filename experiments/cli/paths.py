"""Flags that name a file or a folder."""

import os
import re

from absl import flags

flags.disclaim_key_flags()  # they belong to the command that asks for them here


class PathParser(flags.ArgumentParser):
    """A path of this machine, with `~` expanded: a shell leaves that to whoever reads --name=~/x.

    Raises:
      ValueError: saying what is allowed, for what cannot be one.
    """

    syntactic_help = "a path"

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("must name a file or folder")
        if "\0" in argument:
            raise ValueError("must not hold a zero byte")
        if address := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", argument):
            raise ValueError(
                f"must be a path of this machine, not {address[0]}…: copy there what is to be "
                "read, and from there what was written, or mount it"
            )
        path = os.path.expanduser(argument)
        if path.startswith("~"):
            raise ValueError("there is no such user; write ./~ for a folder of that name")
        return path

    def flag_type(self) -> str:
        return "path"


def path_flag(name: str, default: str | None, about: str) -> flags.FlagHolder:
    """Defines a flag whose value is a path."""
    words = flags.ArgumentSerializer()
    # Commands may have flags of one name; a process that imports both, as in tests, is neither.
    return flags.DEFINE(PathParser(), name, default, about, serializer=words, allow_override=True)
