"""Keys of ESPnet's stock ``encoder_conf`` that mean nothing to ours, each with the reason.

Plain data, readable without torch: the encoders refuse these keys by name, and
``espnet-bimamba conf convert`` deletes them.
"""

_NO_ATTENTION = "a Mamba mixer stands where self-attention stood; remove the line"
_NO_POSITIONS = (
    "no mixer reads relative positions; remove the line, or write pos_enc_layer_type: abs_pos"
)

# Of all stock encoders: who turns a Conformer's YAML into a Transformer's is told as clearly.
_ATTENTION: dict[str, str] = dict.fromkeys(
    (
        "attention_heads",
        "attention_dropout_rate",
        "attention_layer_type",
        "selfattention_layer_type",
        "qk_norm",
        "use_flash_attn",
        "use_sdpa",
        "zero_triu",
    ),
    _NO_ATTENTION,
) | {
    "rel_pos_type": _NO_POSITIONS,
    "max_pos_emb_len": "the table of absolute positions grows by itself; remove the line",
}
_POSITION_CLASS = {
    "pos_enc_class": "write pos_enc_layer_type: none, abs_pos or scaled_abs_pos instead"
}

REFUSED: dict[str, dict[str, str]] = {
    "conbimamba": _ATTENTION
    | {
        "ctc_trim": "it shortens the sequence together with its relative positions, which no "
        "mixer reads; remove the line",
    },
    "transbimamba": _ATTENTION | _POSITION_CLASS,
    "e_branchbimamba": _ATTENTION,
    "bimamba": _ATTENTION
    | _POSITION_CLASS
    | {
        "normalize_before": "its blocks are pre-norm, as the paper's Algorithms 1 and 2; "
        "remove the line",
        "concat_after": "it joins attention's input and output; remove the line",
    },
}

# Keys that `bimamba` reads with `ffn: true` only: else its layers have no feed-forward network.
FEED_FORWARD = ("linear_units", "positionwise_layer_type", "positionwise_conv_kernel_size")

# What `pos_enc_layer_type` takes in ours, and why the other stock values are refused.
POSITIONS = ("none", "abs_pos", "scaled_abs_pos")
REFUSED_POSITIONS: dict[str, str] = {
    "rel_pos": "No mixer reads relative positions.",
    "legacy_rel_pos": "No mixer reads relative positions.",
    "conv": "Its convolution reads the padding, which changes an utterance's last frames.",
}
