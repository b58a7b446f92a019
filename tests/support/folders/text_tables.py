"""Tables of short reviews, and the line with which a task refuses its data."""

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import make_task

GOOD = ("good", "fine", "great", "lovely")
BAD = ("bad", "poor", "awful", "boring")


def refusal(kind, options):
    """The one line that making a task and reading its data end with."""
    with pytest.raises(ConfigError) as caught:
        make_task(kind, options).load()
    line = str(caught.value).removeprefix("task.options.")
    assert "\n" not in line
    return line


def reviews(count, seed=0):
    """Texts whose words give the label away, two negative ones for each positive."""
    rng = np.random.default_rng(seed)
    labels = ["positive" if i % 3 == 0 else "negative" for i in range(count)]
    choose = lambda label: rng.choice(GOOD if label == "positive" else BAD, 3)
    return [(f"film {i} " + " ".join(choose(label)), label) for i, label in enumerate(labels)]


def write_table(path, rows, separator=","):
    path.write_text("\n".join(separator.join(row) for row in [("text", "label"), *rows]))
    return str(path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "reviews.csv", reviews(60))
