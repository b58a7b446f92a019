"""Where a pretrained model lies: a folder of this machine, or a name on the Hugging Face hub.

Needs the package `huggingface_hub` (extra `text`), which only those who name a model there import.
What was downloaded once is read without a network.
"""

import os
import pathlib
import re

from qkv_jax import arguments
from qkv_jax.interop.tensors import listed, refusal

_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*?)(@(?P<revision>[\w.][\w./-]*))?")
# What is read of a model, and no weights in other formats.
_NEEDED = (
    "*.json", "model.safetensors", "model-*-of-*.safetensors", "*_Transformer/model.safetensors"
)  # fmt: skip


def model_folder(given: str | os.PathLike) -> pathlib.Path:
    """The folder of a model: itself, the one model in a folder above it (as a package has it), or
    the copy of what is on the hub, `org/name` or `org/name@revision`.

    Raises:
      ConfigError: `pretrained`, saying what is there instead.
    """
    place = arguments.path("pretrained", given)
    if place.is_dir():
        return _within(place)
    name = _NAME.fullmatch(os.fspath(given))
    if place.exists() or name is None:
        allowed = "is no folder, and no org/name or org/name@revision of the Hugging Face hub"
        raise refusal(place, allowed)
    return _within(_downloaded(place, **name.groupdict()))


def _within(place: pathlib.Path) -> pathlib.Path:
    is_model = lambda folder: (folder / "config.json").is_file() and any(
        folder.glob("*.safetensors")
    )
    if (place / "config.json").is_file() or (place / "modules.json").is_file():
        return place
    inner = [path for path in sorted(place.iterdir()) if path.is_dir() and is_model(path)]
    if len(inner) == 1:
        return inner[0]
    if inner:
        names = ", ".join(path.name for path in inner)
        raise refusal(place, f"holds several models, {names}: name one")
    raise refusal(place, f"holds no config.json; {listed(place)}")


def _downloaded(place: pathlib.Path, repo: str, revision: str | None) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        advice = "is no folder; of the hub it needs 'huggingface_hub': pip install -e '.[text]'"
        raise refusal(place, advice) from None
    try:
        found = huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=_NEEDED)
    except errors.GatedRepoError:
        what = "is no folder, and on the hub a model that asks for a login: `hf auth login`"
    except errors.RepositoryNotFoundError:
        what = "is no folder, and no model of the hub that anybody may read"
    except errors.RevisionNotFoundError:
        what = f"names no revision of {repo} on the hub"
    except Exception as error:  # what a network, a proxy or a full disk makes of the package
        reason = " ".join(str(error).split())[:120]
        what = f"is no folder, and the hub cannot be asked, nor is there a copy of it: {reason}"
    else:
        return pathlib.Path(found)
    raise refusal(place, what)
