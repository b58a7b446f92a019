"""Every field that the files beside the weights may hold: read, harmless, or refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from qkv_jax.config import ConfigError
from qkv_jax.interop import layouts
from qkv_jax.interop.fields import words
from qkv_jax.interop.pretrained import hidden_states, load_pretrained
from tests.support.folders import pretrained_folders as folders
from tests.support.folders import pretrained_oracle as oracle
from tests.support.folders.pretrained_parts import refused

# What the classes of transformers 5.24 write, and what their files held before (versions 2 to 4).
OF_ALL = words("""
    _name_or_path architectures chunk_size_feed_forward dtype id2label initializer_range
    is_encoder_decoder label2id model_type output_attentions output_hidden_states
    problem_type return_dict transformers_version
""")
OLDER = words("""
    add_cross_attention bad_words_ids begin_suppress_tokens cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing is_decoder length_penalty
    max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_labels
    num_return_sequences output_past output_scores prefix position_embedding_type
    pruned_heads remove_invalid_values repetition_penalty return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype
    torchscript typical_p use_bfloat16 use_cache xla_device _commit_hash
    _attn_implementation_autoset attn_implementation quantization_config auto_map
""")
BERT_LIKE = words("""
    add_cross_attention attention_probs_dropout_prob bos_token_id classifier_dropout
    eos_token_id hidden_act hidden_dropout_prob hidden_size intermediate_size is_decoder
    layer_norm_eps max_position_embeddings num_attention_heads num_hidden_layers
    pad_token_id tie_word_embeddings type_vocab_size use_cache vocab_size directionality
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type
""")
OWN = {
    "bert": BERT_LIKE, "roberta": BERT_LIKE, "xlm-roberta": BERT_LIKE, "camembert": BERT_LIKE,
    "distilbert": words("""
    activation attention_dropout bos_token_id dim dropout eos_token_id hidden_dim
    max_position_embeddings n_heads n_layers pad_token_id qa_dropout seq_classif_dropout
    sinusoidal_pos_embds tie_word_embeddings tie_weights_ vocab_size
"""),
    "vit": words("""
    attention_probs_dropout_prob encoder_stride hidden_act hidden_dropout_prob hidden_size
    image_size intermediate_size layer_norm_eps num_attention_heads num_channels
    num_hidden_layers patch_size pooler_act pooler_output_size qkv_bias
"""),
}  # fmt: skip
CONFIGS = folders.CONFIGS | {
    kind: folders.CONFIGS["roberta"] | {"model_type": kind} for kind in ("xlm-roberta", "camembert")
}
# Another value that can be, of the fields that are read.
OTHER = {
    "hidden_act": "relu", "activation": "gelu_new", "layer_norm_eps": 0.5, "image_size": 16,
    "patch_size": 2, "qkv_bias": False, "hidden_size": 24, "dim": 24, "num_attention_heads": 4,
    "n_heads": 4,
}  # fmt: skip
WORDS = ("?", 17, 0.5, [1], {"a": 1}, True)


def described(values):
    plan = layouts.plan(values)
    tensors = {path: place.tensor for path, place in plan.places.items()}
    return plan.encoder, plan.pad, plan.pad_counts, plan.channels, plan.skipped, tensors


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_field_of_config_json_is_read_harmless_or_refused(kind):
    """A field that is read changes the plan; a harmless one may hold anything; of the others one
    value alone is understood."""
    values, read = CONFIGS[kind], layouts.FAMILIES[kind].read
    usual = described(values)
    for field in {*OF_ALL, *OLDER, *OWN[kind]} - {"model_type"}:
        if field in read:
            other = OTHER[field] if field in OTHER else values[field] + 1
            assert described(values | {field: other}) != usual, field
            with pytest.raises(ConfigError, match=f"config.json {field}: given "):
                layouts.plan(values | {field: "?"})
        elif field in layouts.FIXED:
            only = layouts.FIXED[field]
            assert described(values | {field: only}) == described(values | {field: None}) == usual
            with pytest.raises(ConfigError, match=f"config.json {field}: given .*; understood: "):
                layouts.plan(values | {field: "?"})
        else:
            for word in WORDS:
                assert described(values | {field: word}) == usual, field


UNKNOWN = (
    "rope_theta", "embedding_size", "adapters", "layer_norm_epsilon", "hidden_activation",
    "relative_attention", "norm_first", "scale_attention", "use_mean_pooling", "layers_to_skip",
)  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_fields_that_nobody_knows_are_refused_unless_they_are_off(file, tmp_path):
    folder = folders.write(tmp_path, folders.BERT)
    path = folder / file
    usual = json.loads(path.read_text()) if path.exists() else {}
    off = dict(zip(UNKNOWN, (None, False, "", [], {}), strict=False))
    path.write_text(json.dumps(usual | off))
    load_pretrained(folder)
    path.write_text(json.dumps(usual | {"adapters": {"lora": "x" * 300}}))
    message = refused(folder)
    assert message.startswith(f"{file} adapters: given ") and len(message) < 200
    assert message.endswith(
        "is not a known field; if it changes no numbers, take it out of the file"
    )
    for name, value in zip(UNKNOWN, (0, 1, True, "x", [0]) * 2, strict=True):
        path.write_text(json.dumps(usual | {name: value}))
        assert refused(folder).startswith(f"{file} {name}: given {value!r}; is not a known field")


# --- more models than four


MORE = {
    "relu": ("bert", {"hidden_act": "relu"}),
    "relu of DistilBERT": ("distilbert", {"activation": "relu"}),
    "gelu_fast": ("bert", {"hidden_act": "gelu_fast"}),
    "gelu_python": ("bert", {"hidden_act": "gelu_python"}),
    "xlm-roberta": ("roberta", {"model_type": "xlm-roberta"}),
    "camembert": ("roberta", {"model_type": "camembert"}),
    "no biases": ("vit", {"qkv_bias": False}),
    "two sides": ("vit", {"image_size": [8, 8], "patch_size": [4, 4]}),
    "no type": ("bert", {"model_type": None, "architectures": ["BertForMaskedLM"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", MORE)
def test_models_beside_the_usual_give_the_numbers_of_numpy(case, tmp_path):
    kind, change = MORE[case]
    usual = folders.CONFIGS[kind]
    weights, config = folders.tensors(usual), usual | change
    if case == "no biases":
        ends = ("query.bias", "key.bias", "value.bias")
        weights = {name: w for name, w in weights.items() if not name.endswith(ends)}
    loaded = load_pretrained(folders.write(tmp_path, config, weights, tokenizer=False))
    valid = None
    if kind == "vit":
        theirs = ours = folders.images()
    else:
        theirs, valid = folders.token_inputs(usual)
        ours = theirs if kind == "distilbert" else np.stack([theirs, 0 * theirs], -1)
    named = usual | {"hidden_act": config.get("hidden_act"), "activation": config.get("activation")}
    expected, last = oracle.hidden_states(named, weights, theirs, valid)
    real = slice(None) if valid is None else valid
    given = None if valid is None else jnp.asarray(valid)
    found = hidden_states(loaded, jnp.asarray(ours), given)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one)[real], other[real], rtol=0, atol=1e-4)
    ends = loaded.encoder.apply(loaded.variables, jnp.asarray(ours), given)
    np.testing.assert_allclose(np.asarray(ends)[real], last[real], rtol=0, atol=1e-4)


TYPES = {
    "BertModel": "bert", "BertForMaskedLM": "bert", "BertLMHeadModel": "bert",
    "RobertaForSequenceClassification": "roberta", "XLMRobertaModel": "xlm-roberta",
    "CamembertForMaskedLM": "camembert", "DistilBertModel": "distilbert", "ViTModel": "vit",
    "ViTForImageClassification": "vit",
}  # fmt: skip


def test_a_missing_model_type_is_that_of_the_class_where_there_is_one():
    for name, kind in TYPES.items():
        values = CONFIGS[kind] | {"architectures": [name]}
        assert described({k: v for k, v in values.items() if k != "model_type"}) == described(
            values
        )
    unclear = (["ViTMAEModel"], ["BertJapaneseModel"], ["BertModel", "ViTModel"], [3])
    for found in (None, [], "x", *unclear):
        values = folders.BERT | {"model_type": None, "architectures": found}
        with pytest.raises(ConfigError, match="model_type: given None; understood: bert, roberta"):
            layouts.plan(values)


@pytest.mark.parametrize("kind", ["electra", "albert", "deberta-v2", "dinov2", "mpnet", "deit"])
def test_other_models_are_refused_by_name(kind):
    with pytest.raises(ConfigError, match=f"model_type: given '{kind}'; understood: bert, "):
        layouts.plan(folders.BERT | {"model_type": kind})


# --- names of tensors


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "0.auto_model.", "x.bert."])
def test_a_prefix_of_another_library_is_named(prefix, tmp_path):
    weights = {f"{prefix}{name}": w for name, w in folders.tensors(folders.BERT).items()}
    message = refused(folders.write(tmp_path, folders.BERT, weights))
    name = "embeddings.LayerNorm.bias"
    assert message == (
        f"tensor {name}: given None; is missing; embedding_norm/bias needs it; {prefix}{name} is "
        f"there: take '{prefix}' off the names"
    )


def test_the_nearest_name_is_named(tmp_path):
    weights = folders.tensors(folders.BERT)
    weights["embeddings.layer_norm.bias"] = weights.pop("embeddings.LayerNorm.bias")
    assert refused(folders.write(tmp_path, folders.BERT, weights)).endswith(
        "needs it; embeddings.layer_norm.bias is there"
    )


def test_a_head_of_ones_own_beside_a_prefixed_encoder_is_left_out_by_name(tmp_path):
    weights = {f"bert.{name}": w for name, w in folders.tensors(folders.BERT).items()}
    heads = {"cls.chain.bias": np.zeros(2, np.float32), "head.weight": np.arange(3)}
    loaded = load_pretrained(folders.write(tmp_path / "a", folders.BERT, weights | heads))
    assert loaded.left_out == ("cls.chain.bias", "head.weight")
    for inside in ("bert.adapter.weight", "bert.encoder.layer.2.output.dense.bias"):
        added = weights | {inside: np.zeros(2, np.float32)}
        message = refused(folders.write(tmp_path / "b", folders.BERT, added))
        assert message == f"tensor {inside}: given (2,); is not understood"


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    """The library would load it, over the weights that it names as its base."""
    folder = folders.write(tmp_path / "model", folders.BERT)
    load_pretrained(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ConfigError, match=r"adapter_config.json'; changes the weights: merge it"):
        load_pretrained(folder)
