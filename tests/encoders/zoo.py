"""The encoders under test, their options, and the checks that every one of them must pass.

To add an encoder: one row in :data:`ENCODERS`.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from torch import Tensor, nn

from espnet_bimamba.encoders.bimamba import BiMambaEncoder
from espnet_bimamba.encoders.conbimamba import ConBiMambaEncoder
from espnet_bimamba.encoders.e_branchbimamba import EBranchBiMambaEncoder
from espnet_bimamba.encoders.transbimamba import TransBiMambaEncoder
from tests.tolerances import assert_close

FEATURES = 20
WIDTH = 8
COMMON: dict[str, Any] = {"output_size": WIDTH, "num_blocks": 2, "d_state": 4}

Options = dict[str, Any]


@dataclass(frozen=True)
class Encoder:
    """An encoder of ours.

    Attributes:
        cls: Its class.
        stock: The ESPnet encoder it is built on.
        tiny: What makes it small.
        attention: Attribute of a layer that holds the mixer.
        options: Options of its own that matter to padding, by a readable name.
    """

    cls: type
    stock: type
    tiny: Options
    attention: str = "self_attn"
    options: dict[str, Options] = field(default_factory=dict)


_FEED_FORWARD = {
    "conv1d": {"positionwise_layer_type": "conv1d", "positionwise_conv_kernel_size": 3},
    "conv1d-linear": {
        "positionwise_layer_type": "conv1d-linear",
        "positionwise_conv_kernel_size": 5,
    },
}
_CAUSAL = {"causal": {"mamba_type": "mamba", "causal": True}}
_STACK = {
    "layer_drop": {"layer_drop_rate": 0.5},
    "checkpointed": {"gradient_checkpoint_layers": [0, 1, 2]},
}
_CONV2D = {f"conv2d{n}": {"input_layer": f"conv2d{n}"} for n in ("", 1, 2, 6, 8)}
_TRANSFORMER_INPUTS = {
    **_CONV2D,
    "conv1d2": {"input_layer": "conv1d2"},
    "linear": {"input_layer": "linear"},
    "wav2vec": {"input_layer": "wav2vec", "output_size": FEATURES},
    "no_input_layer": {"input_layer": None, "output_size": FEATURES},
    "no_input_layer_but_a_projection": {"input_layer": None},
}

ENCODERS: dict[str, Encoder] = {
    "conbimamba": Encoder(
        ConBiMambaEncoder,
        ConformerEncoder,
        {"linear_units": 12, "cnn_module_kernel": 5},
        options={
            **_CONV2D,
            **_FEED_FORWARD,
            **_STACK,
            **_CAUSAL,
            "linear": {"input_layer": "linear"},
            "no_input_layer": {"input_layer": None, "output_size": FEATURES},
            "macaron": {"macaron_style": True},
            "macaron-conv1d": {"macaron_style": True, **_FEED_FORWARD["conv1d"]},
            "concat_after": {"concat_after": True},
            "post_norm": {"normalize_before": False},
            "no_cnn_module": {"use_cnn_module": False},
            "stochastic_depth": {"stochastic_depth_rate": [0.3, 0.6]},
            "mask_batch_norm": {"mask_batch_norm": True},
        },
    ),
    "transbimamba": Encoder(
        TransBiMambaEncoder,
        TransformerEncoder,
        {"linear_units": 12},
        options={
            **_TRANSFORMER_INPUTS,
            **_FEED_FORWARD,
            **_STACK,
            **_CAUSAL,
            "concat_after": {"concat_after": True},
            "post_norm": {"normalize_before": False},
        },
    ),
    "bimamba": Encoder(
        BiMambaEncoder,
        TransformerEncoder,
        {},
        options={
            **_TRANSFORMER_INPUTS,
            **_STACK,
            **_CAUSAL,
            "no_residual": {"residual": False},
            "ffn": {"ffn": True, "linear_units": 12},
            "attention": {"mamba_type": "attention", "d_state": 16},
            "ffn_no_residual": {"ffn": True, "residual": False, "linear_units": 12},
            "ffn-conv1d": {"ffn": True, "linear_units": 12, **_FEED_FORWARD["conv1d"]},
            "ffn-conv1d-linear": {
                "ffn": True,
                "linear_units": 12,
                **_FEED_FORWARD["conv1d-linear"],
            },
        },
    ),
    "e_branchbimamba": Encoder(
        EBranchBiMambaEncoder,
        EBranchformerEncoder,
        {"cgmlp_linear_units": 12, "cgmlp_conv_kernel": 5, "linear_units": 12},
        attention="attn",
        options={
            **_CONV2D,
            **_STACK,
            **{f"conv1d{n}": {"input_layer": f"conv1d{n}"} for n in (1, 2, 3)},
            "linear": {"input_layer": "linear"},
            "no_input_layer": {"input_layer": None, "output_size": FEATURES},
            "no_input_layer_but_a_projection": {"input_layer": None},
            "ffn": {"use_ffn": True},
            "macaron": {"use_ffn": True, "macaron_ffn": True},
            "merge_conv_kernel": {"merge_conv_kernel": 9},
            "linear_after_conv": {"use_linear_after_conv": True},
            "gate_activation": {"gate_activation": "swish"},
        },
    ),
}

#: Options of ours and of the stock encoders that every encoder has.
SHARED: dict[str, Options] = {
    "default": {},
    "mamba": {"mamba_type": "mamba"},
    "innbimamba": {"mamba_type": "innbimamba"},
    "concat": {"fusion": "concat"},
    "s4d_real": {"A_init": "s4d_real"},
    "random": {"A_init": "random"},
    "sizes": {"d_state": 7, "d_conv": 2, "expand": 3, "dt_rank": 3},
    "abs_pos": {"pos_enc_layer_type": "abs_pos"},
    "scaled_abs_pos": {"pos_enc_layer_type": "scaled_abs_pos"},
    "interctc": {"interctc_layer_idx": [1]},
    "interctc_conditioned": {"interctc_layer_idx": [1], "interctc_use_conditioning": True},
    "return_all_hs": {"return_all_hs": True},
}

MIXERS: dict[str, Options] = {
    "mamba": {"mamba_type": "mamba"},
    "innbimamba": {"mamba_type": "innbimamba"},
    "extbimamba_add": {"mamba_type": "extbimamba", "fusion": "add"},
    "extbimamba_concat": {"mamba_type": "extbimamba", "fusion": "concat"},
}

VARIANTS = [
    (name, id, options)
    for name, encoder in ENCODERS.items()
    for id, options in (SHARED | encoder.options).items()
]

every_encoder = pytest.mark.parametrize("name", ENCODERS)
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
every_variant = pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, _, options in VARIANTS],
    ids=[f"{name}-{id}" for name, id, _ in VARIANTS],
)


class Ctc(nn.Module):
    """What interCTC conditioning reads: ESPnet's ``CTC`` has this method."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(width, classes)

    def softmax(self, x: Tensor) -> Tensor:
        return self.ctc_lo(x).softmax(-1)


def build(
    name: str, *, dtype: torch.dtype = torch.float64, features: int = FEATURES, **options: Any
) -> nn.Module:
    """Build an encoder with what its forward needs: dropout 0, no parameter at a round value."""
    row = ENCODERS[name]
    options = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0} | COMMON | row.tiny | options
    return_all_hs = options.pop("return_all_hs", False)
    torch.manual_seed(2)
    encoder = row.cls(features, **options)
    keywords: dict[str, Any] = {"return_all_hs": True} if return_all_hs else {}
    if options.get("interctc_use_conditioning"):
        encoder.conditioning_layer = nn.Linear(5, encoder.output_size())
        keywords["ctc"] = Ctc(encoder.output_size()).to(dtype)
    with torch.no_grad():
        for parameter_name, parameter in encoder.named_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
            if parameter_name.endswith("dt_proj.bias"):
                parameter.add_(3)
        for buffer_name, buffer in encoder.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    if keywords:
        encoder.forward = functools.partial(encoder.forward, **keywords)
    return encoder.to(dtype)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def outputs(result: tuple) -> tuple[list[Tensor], Tensor]:
    """Return the output and the intermediate outputs as one list, and the output lengths."""
    out, olens, _ = result
    if not isinstance(out, tuple):
        return [out], olens
    out, intermediate = out
    return [out, *(e[1] if isinstance(e, tuple) else e for e in intermediate)], olens


@dataclass
class Run:
    """What one batch gave: outputs, their lengths, gradients of a weighted sum of all outputs."""

    outs: list[Tensor]
    olens: Tensor
    dx: Tensor
    d_parameters: dict[str, Tensor]


def run(encoder: nn.Module, x: Tensor, lengths: Tensor) -> Run:
    x = x.detach().requires_grad_()
    outs, olens = outputs(encoder(x, lengths))
    # The weights of a frame do not depend on how long the batch is.
    loss = sum(
        (out * inputs(out.shape[2], 400, dtype=x.dtype, seed=7 + n).T[: out.shape[1]].to(out)).sum()
        for n, out in enumerate(outs)
    )
    parameters = {k: p for k, p in encoder.named_parameters() if p.requires_grad}
    dx, *d_parameters = torch.autograd.grad(
        loss, [x, *parameters.values()], allow_unused=True, materialize_grads=True
    )
    outs = [out.detach() for out in outs]
    return Run(outs, olens, dx, dict(zip(parameters, d_parameters, strict=True)))


LENGTHS = (67, 26)


def padded(
    lengths: tuple[int, ...] = LENGTHS,
    fill: float = float("nan"),
    length: int | None = None,
    features: int = FEATURES,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Return a batch whose padding holds ``fill``, and its lengths."""
    x = torch.full((len(lengths), length or max(lengths), features), fill, dtype=dtype)
    for row, n in enumerate(lengths):
        x[row, :n] = inputs(n, features, dtype=dtype, seed=20 + row)
    return x, torch.tensor(lengths)


def check_alone_equals_batched(
    encoder: nn.Module, x: Tensor, lengths: Tensor, dtype: torch.dtype = torch.float64
) -> None:
    """Each utterance alone gives what it gives in the batch; past its end is nothing at all."""
    batched = run(encoder, x, lengths)
    assert all(out.isfinite().all() for out in batched.outs), "an output is not finite"
    total = dict.fromkeys(batched.d_parameters, torch.zeros((), dtype=dtype))
    for row, n in enumerate(lengths.tolist()):
        alone = run(encoder, x[row : row + 1, :n], lengths[row : row + 1])
        end = int(alone.olens)
        assert int(batched.olens[row]) == end
        assert len(alone.outs) == len(batched.outs)
        for number, (out, expected) in enumerate(zip(batched.outs, alone.outs, strict=True)):
            assert_close(f"output {number}", out[row, :end], expected[0], dtype, "output")
            assert not out[row, end:].any(), f"output {number} is not zero past the end"
        assert_close("input gradient", batched.dx[row, :n], alone.dx[0], dtype, "gradient")
        assert not batched.dx[row, n:].any(), "the input gradient is not zero past the end"
        total = {name: total[name] + d for name, d in alone.d_parameters.items()}
    check_parameter_gradients(batched.d_parameters, total, dtype)


def check_parameter_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Compare all parameters' gradients on one scale: some are sums that cancel to nothing."""
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert gradient.isfinite().all(), f"the gradient of {name} is not finite"
    joined = [torch.cat([g.flatten() for g in d.values()]) for d in (actual, expected)]
    assert_close("parameter gradients", *joined, dtype, "weight_gradient")
