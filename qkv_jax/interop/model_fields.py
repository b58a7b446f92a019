"""The fields of a model's config.json that no layout reads, and what may stand in them."""

from qkv_jax.interop.fields import words

# Fields that change the maths, and the one value that is understood.
FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_causal": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
    "auto_map": {},  # code of the folder's own
}
# Fields that change no number of the encoder: names and versions, what only training, heads or
# generation read, and how fast the same is computed.
HARMLESS = words("""
    model_type architectures transformers_version torch_dtype dtype name_or_path tokenizer_class
    finetuning_task language license task_specific_params problem_type num_labels id2label
    label2id attn_implementation chunk_size_feed_forward return_dict output_hidden_states
    output_attentions output_past output_scores return_dict_in_generate torchscript use_bfloat16
    tf_legacy_loss xla_device use_cache gradient_checkpointing hidden_dropout_prob
    attention_probs_dropout_prob dropout attention_dropout qa_dropout seq_classif_dropout
    classifier_dropout summary_use_proj initializer_range initializer_factor tie_word_embeddings
    tie_weights_ tie_encoder_decoder sinusoidal_pos_embds directionality pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    pooler_output_size pooler_act encoder_stride bos_token_id eos_token_id sep_token_id
    cls_token_id mask_token_id unk_token_id decoder_start_token_id prefix bad_words_ids
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_return_sequences forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    cross_attention_hidden_size
""")
