"""A Python with PyTorch, as benchmarks ask for one, that trains nothing."""

import sys

# Answers as torch_worker.py does; what it says of losses is put in.
STAND_IN = """#!{python} -IS
import json, sys
if "-c" in sys.argv:
    sys.exit(print("0.0"))
for line in sys.stdin:
    asked = json.loads(line)
    answer = {{"check": {check}, "load": {{}}, "steps": {{"seconds": 1.0}}}}[asked["do"]]
    print(json.dumps(answer), flush=True)
"""


def stand_in(place, name, check):
    """Writes it into a folder; returns the flag that names it. `check` is its answer to "check"."""
    file = place / name
    file.write_text(STAND_IN.format(python=sys.executable, check=check))
    file.chmod(0o755)
    return f"--torch={file}"
