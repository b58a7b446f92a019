"""Commands of this project in a folder, and the pages that they write."""

import contextlib
import html.parser
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# The file that each command runs: experiments/NAME.py, or experiments/NAME/__main__.py; not the
# one that runs them all.
FILES = {
    file.parent.name if file.stem == "__main__" else file.stem: file
    for file in sorted((ROOT / "experiments").rglob("*.py"))
    if (file.parent.name == "experiments") != (file.stem == "__main__")
    and '__name__ == "__main__"' in file.read_text()
}


@contextlib.contextmanager
def server(here, *more):
    """`run(module, *arguments)` in the folder `here` gives exit code, stdout and stderr; modules
    may lie in this clone and in the folders `more`."""
    path = os.pathsep.join(map(str, (ROOT, *more)))
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "cli_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
    ) as process:

        def run(*arguments):
            process.stdin.write(json.dumps([*map(str, arguments)]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data
