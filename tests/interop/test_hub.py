"""Models named as the hub has them, from a hub of this machine; and folders above a model."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop import hub
from qkv_jax.interop.pretrained import load_pretrained
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.folders import decoder_folders, pretrained_folders, sentence_folders
from tests.support.folders.pretrained_parts import one_line, refused, shard

# The address of the hub and the place of the copies are read when the package is imported.
ASK = """
import json, sys
from qkv_jax.config import ConfigError
from qkv_jax.interop.hub import model_folder
for name in sys.argv[1:]:
    try:
        print(model_folder(name))
    except ConfigError as error:
        print("refused:", error)
"""


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    place = tmp_path_factory.mktemp("repos")
    gpt2 = decoder_folders.write(place / "gpt2", decoder_folders.GPT2)
    (gpt2 / "pytorch_model.bin").write_bytes(b"the same again")
    (gpt2 / "onnx").mkdir()
    (gpt2 / "onnx" / "model.onnx").write_bytes(b"and again")
    shard(decoder_folders.write(place / "cut", decoder_folders.LLAMA))
    sentence_folders.write(place / "mini", "inner")
    return {"me/small-gpt2": gpt2, "me/cut": place / "cut", "me/mini": place / "mini"}


def ask(home, *names, **environment):
    """What `model_folder` gives in a process of its own."""
    given = os.environ | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment
    given = {name: value for name, value in given.items() if "proxy" not in name.lower()}
    done = subprocess.run([sys.executable, "-c", ASK, *names], env=given, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_name_of_the_hub_is_downloaded_once_and_then_read_offline(repos, tmp_path):
    """Only what is read of it; a revision by its name."""
    with fake_hub(repos) as (address, asked):
        names = ("me/small-gpt2", "me/cut@v1", "me/mini", "me/none", "me/cut@v9")
        *found, none, lost = ask(tmp_path, *names, HF_ENDPOINT=address)
        assert "me/none'; is no folder, and no model of the hub that anybody may read" in none
        assert "'me/cut@v9'; names no revision of me/cut on the hub" in lost
        assert not any("bin" in path or "onnx" in path for path in asked)
    for folder, name in zip(found, repos, strict=True):
        model, original = load_pretrained(folder), load_pretrained(repos[name])
        assert COMMIT in folder and model.encoder == original.encoder
    again = ask(tmp_path, *names[:3], "me/none", HF_ENDPOINT=address)  # nobody answers there now
    assert again[:3] == found
    for line in (again[3], *ask(tmp_path, "me/none", HF_HUB_OFFLINE="1")):
        assert "'me/none'; is no folder, and the hub cannot be asked, nor is there a copy" in line


def test_the_one_model_in_a_folder_is_found(tmp_path):
    """As in a package: its own modules and data beside the model's folder."""
    package = tmp_path / "package"
    pretrained_folders.write(package / "model", pretrained_folders.BERT)
    (package / "__init__.py").touch()
    (package / "data").mkdir()
    assert load_pretrained(package).folder == package / "model"
    shutil.copytree(package / "model", package / "other")
    assert "holds several models, model, other: name one" in refused(package)


def test_refusals_say_what_is_there(tmp_path):
    for name in "abcdefg":
        (tmp_path / name).touch()
    assert refused(tmp_path).endswith("holds no config.json; there: a, b, c, d, e and 2 more")
    assert "is no folder, and no org/name" in refused(tmp_path / "a")
    assert "is no folder, and no org/name" in refused("lost")
    folder = pretrained_folders.write(tmp_path / "model", pretrained_folders.BERT)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors.index.json; there: config.json, tokenizer.json" in refused(folder)
    (folder / "config.json").write_text(json.dumps({"task": {}, "model": {}}))
    assert "is a run of experiments.train: name it by --run" in refused(folder)


def test_without_the_package_a_name_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"needs 'huggingface_hub': pip install -e '\.\[text\]'"):
        hub.model_folder("me/small-gpt2")


def test_the_first_line_of_a_long_reason_is_enough(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise RuntimeError("a proxy\nsays no. " + "x" * 300)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ConfigError) as caught:
        hub.model_folder("me/small-gpt2")
    assert "a proxy says no." in one_line(caught) and len(one_line(caught)) < 300
