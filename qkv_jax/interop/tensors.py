"""The tensors of a Hugging Face folder: one safetensors file, or the shards of an index."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from qkv_jax.config import ConfigError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHOWN = 5  # names of files
_FLOATS = tuple(map(np.dtype, ("float32", "float16", jnp.bfloat16, "float64")))


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """A JSON file that holds an object, or a list where `kind` says so.

    Raises:
      ConfigError: `pretrained`, naming the file that is missing or damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refusal(path, "is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise refusal(path, f"is no readable JSON: {_line(error)}") from None
    if not isinstance(values, kind):
        raise refusal(path, f"must hold a JSON {'object' if kind is dict else 'list'}")
    return values


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder, by its name in the files, in the number format of the files.

    Raises:
      ConfigError: `pretrained`, naming the file that is missing, damaged or at odds with the index.
    """
    if (folder / _WHOLE).is_file():
        return dict(_tensors(folder / _WHOLE))
    if (folder / _INDEX).is_file():
        return _sharded(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return dict(_tensors(files[0]))
    what = f"{len(files)} files and no {_INDEX}" if files else f"no {_WHOLE} and no {_INDEX}"
    raise refusal(folder, f"holds {what}; {listed(folder)}")


def as_float32(name: str, array: np.ndarray) -> np.ndarray:
    """The tensor in float32.

    Raises:
      ConfigError: naming it, unless it holds finite floating-point numbers.
    """
    if array.dtype not in _FLOATS:
        allowed = ", ".join(kind.name for kind in _FLOATS)
        raise ConfigError(f"tensor {name}", array.dtype.name, f"must be one of {allowed}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"tensor {name}", "NaN or infinity", "must hold finite numbers")
    return array


def listed(folder: pathlib.Path) -> str:
    """What a folder holds, for a refusal."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"there: {', '.join(names[:_SHOWN]) or 'nothing'}{more}"


def refusal(path: pathlib.Path, what: str) -> ConfigError:
    return ConfigError("pretrained", str(path), what)


def _sharded(folder: pathlib.Path) -> dict[str, np.ndarray]:
    index = folder / _INDEX
    wanted = read_json(index).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(v, str) for v in wanted.values()):
        raise refusal(index, "must hold a weight_map from tensors to files")
    found = {}
    for shard in sorted(set(wanted.values())):
        path = folder / shard
        if pathlib.PurePath(shard).name != shard:
            raise refusal(index, f"names {shard!r}, which is no file of this folder")
        if not path.is_file():
            raise refusal(path, f"is missing; {_INDEX} names it")
        tensors = dict(_tensors(path))
        named = {name for name, file in wanted.items() if file == shard}
        if odd := sorted(named ^ set(tensors)):
            which = "lacks" if odd[0] in named else "holds"
            raise refusal(path, f"{which} {odd[0]}, at odds with {_INDEX}")
        found |= tensors
    return found


def _tensors(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (the file itself cannot be iterated)
                yield name, file.get_tensor(name)
    except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
        what = f"cannot be read, damaged or cut short: {_line(error)}"
        raise refusal(path, what) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
