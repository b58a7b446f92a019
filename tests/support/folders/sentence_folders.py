"""Small sentence-transformers folders, in every layout that gives the library's numbers here.

`write(place, name)` makes one; `tests/golden/make_sentences.py` asks the library what it gives.
"""

import json
import pathlib

from tests.support.folders import pretrained_folders

TEXTS = [
    "the cat sat on a mat", "The CAT sat on A mat", " it went home ", "a zebra ran",
    "so far and the dog ran home and the cat sat on a mat far",
]  # fmt: skip
OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}
OLD_MEAN = {
    "word_embedding_dimension": 12, "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}  # fmt: skip
NEW_MEAN = {"embedding_dimension": 12, "pooling_mode": "mean", "include_prompt": True}
NEW_SENTENCE = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
PROMPTS = {"prompts": {"query": "so far and ", "other": "a "}, "default_prompt_name": "query"}

# name: family, where the encoder lies, modules, and other files. A text that is longer than the
# folder reads is cut.
LAYOUTS = {
    "usual": ("bert", "", "TPN", {}),
    "no unit length": ("bert", "", "TP", {}),
    "new": ("bert", "", "TPN", {
        "1_Pooling/config.json": NEW_MEAN, "sentence_bert_config.json": NEW_SENTENCE,
        "modules": NEW,
    }),
    "another folder of pooling": ("distilbert", "", "TPN", {"pooling": "7_Pooling"}),
    "inner": ("roberta", "0_Transformer", "TPN", {
        "0_Transformer/sentence_roberta_config.json": {"max_seq_length": 16},
    }),
    "lower": ("bert", "", "TPN", {
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": True},
    }),
    "inner lower": ("bert", "0_Transformer", "TP", {
        "0_Transformer/sentence_bert_config.json": {"max_seq_length": 7, "do_lower_case": True},
    }),
    "short": ("bert", "", "TPN", {
        "sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": False},
    }),
    "short by the tokenizer": ("distilbert", "", "TPN", {
        "tokenizer_config.json": {"model_max_length": 5},
    }),
    "cut at the left": ("roberta", "", "TPN", {
        "tokenizer_config.json": {"model_max_length": 6, "truncation_side": "left"},
    }),
    "prompt": ("bert", "", "TPN", {"config_sentence_transformers.json": PROMPTS}),
    "prompt and lower": ("roberta", "", "TPN", {
        "config_sentence_transformers.json": {
            "prompts": {"document": "THE "}, "default_prompt_name": "document",
        },
        "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
    }),
}  # fmt: skip


def write(place, name):
    """The folder of a layout."""
    kind, inner, letters, files = LAYOUTS[name]
    files, root = dict(files), pathlib.Path(place)
    pooling, classes = files.pop("pooling", "1_Pooling"), files.pop("modules", {})
    pretrained_folders.write(root / inner, pretrained_folders.CONFIGS[kind])
    words = {"T": ("Transformer", inner), "P": ("Pooling", pooling), "N": ("Normalize", "9_N")}
    modules = [
        {"idx": i, "name": str(i), "path": words[letter][1],
         "type": classes.get(words[letter][0], OLD + words[letter][0])}
        for i, letter in enumerate(letters)
    ]  # fmt: skip
    contents = {"modules.json": modules, f"{pooling}/config.json": OLD_MEAN} | files
    for file, content in contents.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(json.dumps(content))
    return root
