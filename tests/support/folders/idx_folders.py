"""Folders of images in IDX format, and the line with which a task refuses them."""

import gzip

import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.tasks import make_task


def idx_bytes(values, magic=None):
    """An array of bytes as an IDX file holds it, written out from the format's description."""
    header = [magic if magic is not None else 0x0800 | values.ndim, *values.shape]
    return b"".join(n.to_bytes(4, "big") for n in header) + values.tobytes()


def write_idx(folder, *, count=40, tests=20, shape=(8, 8), spell="-", zipped=False, prefix=""):
    """A folder of random images of 4 classes in IDX format; returns what it holds."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    holds = {}
    for stem, n in (("train", count), ("t10k", tests)):
        holds[stem] = (
            rng.integers(0, 256, (n, *shape), np.uint8),
            rng.permutation(np.arange(n, dtype=np.uint8) % 4),
        )
        for kind, values in zip(("images", "labels"), holds[stem], strict=True):
            name = f"{prefix}{stem}-{kind}{spell}idx{values.ndim}-ubyte"
            content = idx_bytes(values)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return holds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("idx")
    write_idx(place)
    return place


def idx_task(folder, **options):
    return make_task("idx", {"folder": str(folder), "validation_examples": 12, **options})


def refusal(options, kind="idx"):
    """The one line that making a task and reading its data end with."""
    with pytest.raises(ConfigError) as caught:
        make_task(kind, {"validation_examples": 4, **options}).load()
    line = str(caught.value).removeprefix("task.options.")
    assert "\n" not in line
    return line
