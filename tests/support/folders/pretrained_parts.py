"""Pretrained folders as tests load, cut and refuse them."""

import functools
import json

import pytest
from safetensors.numpy import load_file, save_file

from qkv_jax.config import ConfigError
from qkv_jax.interop.pretrained import (
    load_pretrained,
)
from tests.support.folders import pretrained_folders as folders

FAMILIES = tuple(folders.CONFIGS)
TEXT_FAMILIES = FAMILIES[:3]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models(kind)`: a folder of the family, loaded."""

    @functools.cache
    def loaded(kind):
        folder = tmp_path_factory.mktemp(kind)
        return load_pretrained(folders.write(folder, folders.CONFIGS[kind]))

    return loaded


def shard(folder):
    """Cuts model.safetensors in two, with an index."""
    whole = folder / "model.safetensors"
    weights, parts = load_file(whole), {}
    for i, name in enumerate(sorted(weights)):
        parts[name] = f"model-0000{1 + i % 2}-of-00002.safetensors"
    for file in set(parts.values()):
        save_file({n: weights[n] for n, f in parts.items() if f == file}, folder / file)
    whole.unlink()
    write_index(folder, parts)
    return parts


def write_index(folder, parts):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(folder):
    with pytest.raises(ConfigError) as caught:
        load_pretrained(folder)
    return one_line(caught)
