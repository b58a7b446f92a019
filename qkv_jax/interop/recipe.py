"""How a sentence-transformers folder makes an embedding of a text (Reimers and Gurevych 2019).

modules.json names the modules in their order, each with a folder of its own. One order is
understood: the Transformer, the mean of its last hidden state, and unit length or not. What the
files say beyond that is followed (lower case, length, prompt) or refused, so that the numbers are
those of the library. A folder without modules.json is a plain encoder: mean, at unit length.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from qkv_jax import arguments
from qkv_jax.config import ConfigError
from qkv_jax.interop.fields import check_fields
from qkv_jax.interop.tensors import read_json, refusal

_MODULES, _MODEL = "modules.json", "config_sentence_transformers.json"
# The library takes the first that is there.
_TRANSFORMERS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_ONE_OUTPUT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_FORWARD = {
    "transformer_task": "feature-extraction",
    "modality_config": _ONE_OUTPUT,
    "module_output_name": "token_embeddings",
}
# Of `encode_query` and `encode_document`; how the same is computed.
_OTHER_USES = ("query_length", "document_length", "query_expansion", "unpad_inputs")
_SENTENCE = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
_WORDS = ("Transformer", "Pooling", "Normalize")


class Recipe(NamedTuple):
    """What is done to a text and to its last hidden state.

    Attributes:
      lower: texts are made lower case first.
      max_length: tokens that are read of a text; None for as many as the tokenizer says.
      prompt: stands in front of every text.
      normalize: the mean is brought to unit length.
    """

    lower: bool = False
    max_length: int | None = None
    prompt: str = ""
    normalize: bool = True


def encoder_folder(folder: pathlib.Path) -> pathlib.Path:
    """Where the encoder lies: in the folder of the Transformer that modules.json names, if any."""
    path = folder / _MODULES
    modules = read_json(path, list) if path.is_file() else []
    inner = modules[0].get("path") if modules and isinstance(modules[0], dict) else None
    named = isinstance(inner, str) and _word(modules[0].get("type")) == "Transformer"
    return folder / inner if named and (folder / inner).is_dir() else folder


def read_recipe(folder: pathlib.Path) -> Recipe:
    """The recipe of the model whose encoder lies in `folder`.

    Raises:
      ConfigError: naming the file, and the module or field that is not understood.
    """
    root = _root(folder)
    if (root / _MODULES).is_file():
        normalize, poolings = _modules(root)
    else:
        normalize, poolings = True, sorted(root.glob("[0-9]*_Pooling/config.json"))
    prompt = _prompt(root)
    for pooling in poolings:
        _check_pooling(pooling, prompt)
    lower, length = _transformer(folder)
    return Recipe(lower, length, prompt, normalize)


def _root(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the whole model: that of the encoder, or one above it."""
    here = folder.resolve()
    for root in (here, *here.parents[:3]):
        if (root / _MODULES).is_file() and encoder_folder(root).resolve() == here:
            return root
    return here.parent if re.fullmatch(r"\d+_Transformer", here.name) else folder


def _modules(root: pathlib.Path) -> tuple[bool, list[pathlib.Path]]:
    """Whether modules.json asks for unit length, and the file of its pooling."""
    path, words = root / _MODULES, []
    modules = read_json(path, list)
    for module in modules:
        given = module.get("type") if isinstance(module, dict) else None
        word = _word(given)
        if isinstance(given, str) and word not in _WORDS:
            name = given.rpartition(".")[2]
            raise refusal(path, f"names a {name} module ({given}), which is not understood")
        if word is None or not isinstance(module.get("path"), str):
            raise refusal(path, f"must hold a type and a path of each module, not {module!r}")
        words.append(word)
    if words[:2] != ["Transformer", "Pooling"] or set(words[2:]) - {"Normalize"}:
        what = f"must name Transformer, Pooling and perhaps Normalize, not {', '.join(words)}"
        raise refusal(path, what)
    for module in modules[2:]:
        config = root / module["path"] / "config.json"
        if config.is_file():
            check_fields(f"{module['path']}/config.json", read_json(config), (), (), _SENTENCE)
    return bool(words[2:]), [root / modules[1]["path"] / "config.json"]


def _word(kind: Any) -> str | None:
    """The name of one of the library's classes, whose paths its versions have changed."""
    own = isinstance(kind, str) and kind.startswith("sentence_transformers.")
    return kind.rpartition(".")[2] if own else None


def _check_pooling(path: pathlib.Path, prompt: str) -> None:
    """Refuses what is not the mean over all tokens."""
    values, name = read_json(path), f"{path.parent.name}/{path.name}"
    known = ("pooling_mode", "include_prompt", "pooling_mode_mean_tokens")
    if "pooling_mode" in values:  # since version 5.4; the older fields are then not read
        if values["pooling_mode"] not in ("mean", ["mean"]):
            raise refusal(path, f"asks for {values['pooling_mode']!r}; understood: 'mean'")
    else:
        given = {k for k, on in values.items() if k.startswith("pooling_mode") and on}
        if given != {"pooling_mode_mean_tokens"} and (given or not values.get(known[2], True)):
            asked = ", ".join(sorted(given)) or "no pooling_mode"
            raise refusal(path, f"asks for {asked}; understood: pooling_mode_mean_tokens alone")
    widths = ("word_embedding_dimension", "embedding_dimension")
    older = [field for field in values if field.startswith("pooling_mode_")]
    check_fields(name, values, (*known, *older), widths, {})
    if prompt and not values.get("include_prompt", True):
        raise refusal(path, "leaves the prompt out of the mean (include_prompt false), which is "
                            "not understood")  # fmt: skip


def _transformer(folder: pathlib.Path) -> tuple[bool, int | None]:
    """Whether texts are made lower case, and how many tokens of a text are read."""
    name = next((name for name in _TRANSFORMERS if (folder / name).is_file()), None)
    if name is None:
        return False, None
    values = read_json(folder / name)
    check_fields(name, values, ("do_lower_case", "max_seq_length"), _OTHER_USES, _FORWARD)
    lower, length = values.get("do_lower_case") or False, values.get("max_seq_length")
    arguments.truth(f"{name} do_lower_case", lower)
    return lower, None if length is None else arguments.whole(f"{name} max_seq_length", length, 1)


def _prompt(root: pathlib.Path) -> str:
    """What the library puts in front of every text."""
    path = root / _MODEL
    if not path.is_file():
        return ""
    values = read_json(path)
    read, harmless = ("prompts", "default_prompt_name"), ("similarity_fn_name", "__version__")
    check_fields(_MODEL, values, read, harmless, {"model_type": "SentenceTransformer"})
    prompts, name = values.get("prompts") or {}, values.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(prompts, Mapping):
        raise ConfigError(f"{_MODEL} prompts", prompts, "must be an object")
    prompts = {"query": "", "document": "", **prompts}  # the library's own names
    arguments.word(f"{_MODEL} default_prompt_name", name, tuple(prompts))
    return arguments.text(f"{_MODEL} prompts {name}", prompts[name] or "")
