"""Which fields of a `config.json` may stand there, decided on the raw JSON.

A field that is neither handled nor known to be harmless is refused by name: a field that we ignore
could change the model's output without anybody noticing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REQUIRED = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"

_HANDLED = """
architectures model_type num_key_value_heads head_dim hidden_act max_position_embeddings
rms_norm_eps tie_word_embeddings rope_theta rope_scaling rope_parameters eos_token_id
"""

# Training, bookkeeping and library switches, and generation settings (those come from the job).
# `pretraining_tp` only splits the same sums; transformers has stopped reading it.
_HARMLESS = """
_name_or_path name_or_path _commit_hash transformers_version torch_dtype dtype use_cache
initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop bos_token_id
pad_token_id unk_token_id sep_token_id decoder_start_token_id pretraining_tp
_attn_implementation attn_implementation _attn_implementation_autoset
_flash_attn_2_enabled max_sequence_length is_llama_config transformers.js_config
unsloth_fixed unsloth_version id2label label2id num_labels problem_type finetuning_task
task_specific_params tokenizer_class prefix return_dict use_return_dict output_attentions
output_hidden_states output_scores torchscript use_bfloat16 tf_legacy_loss is_decoder
chunk_size_feed_forward remove_invalid_values return_dict_in_generate do_sample temperature
top_k top_p typical_p repetition_penalty length_penalty diversity_penalty num_beams
num_beam_groups num_return_sequences max_length min_length max_new_tokens early_stopping
no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens
begin_suppress_tokens forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty
"""

_READ = frozenset(f"{_REQUIRED} {_HANDLED}".split())
_IGNORED = frozenset(_HARMLESS.split())

# Fields that ask for something we do not have, with the values that ask for nothing. The biases
# and windows stand here for the families that do not have them.
_ONLY: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None, {}),
    "trust_remote_code": (False, None),
    "pruned_heads": ({}, None),
    "per_layer_config": (None,),
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
}


def refuse(condition: bool, name: str, value: object, right: str) -> None:
    """Raises the one-sentence `ValueError` about a field where the condition holds."""
    if condition:
        shown = repr(value) if len(repr(value)) <= 100 else repr(value)[:97] + "..."
        raise ValueError(f"{name} in config.json is {shown}: it must be {right}")


def select_fields(
    raw: Mapping[str, Any], family: str, own_fields: frozenset[str]
) -> dict[str, Any]:
    """The fields that matter to the family; `own_fields` are those beside the common ones.

    Raises:
        ValueError: a required field missing, an unknown field, or a value not implemented.
    """
    for name in _REQUIRED.split():
        refuse(type(raw.get(name)) is not int, name, raw.get(name), "a whole number")
    fields: dict[str, Any] = {}
    for name, value in raw.items():
        if name in _READ or name in own_fields:
            fields[name] = value
        elif name not in _IGNORED:
            right = f"absent, because nothing here knows it for the {family} family"
            if name in _ONLY:
                right = f"absent or {_ONLY[name][0]!r}, because nothing else is implemented"
            refuse(value not in _ONLY.get(name, ()), name, value, right)
    refuse(
        raw.get("hidden_act", "silu") not in ("silu", "swish"),
        "hidden_act",
        raw.get("hidden_act"),
        "'silu'",
    )
    return fields
