"""An utterance encodes the same alone and in a batch, whatever the padding holds."""

import pytest
import torch
from torch import nn

from espnet_bimamba.encoders import host
from espnet_bimamba.encoders.host import MixerHost
from tests.encoders.zoo import (
    ENCODERS,
    VARIANTS,
    build,
    check_alone_equals_batched,
    check_parameter_gradients,
    every_encoder,
    every_mixer,
    every_variant,
    inputs,
    outputs,
    padded,
    run,
)
from tests.tolerances import assert_close

FILLS = {"huge": 1e30, "inf": float("inf"), "nan": float("nan")}
# Of the options, those whose code asks whether it is training; where an encoder draws at random,
# alone and batched draw differently.
IN_TRAINING = (
    "default",
    "interctc_conditioned",
    "checkpointed",
    "ffn",
    "macaron",
    "macaron-conv1d",
    "mask_batch_norm",
)
every_variant_in_training = pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, id, options in VARIANTS if id in IN_TRAINING],
    ids=[f"{name}-{id}" for name, id, _ in VARIANTS if id in IN_TRAINING],
)


def freeze_batch_norm(encoder: nn.Module) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()


@every_variant
def test_alone_equals_batched_in_eval(name, options):
    check_alone_equals_batched(build(name, **options).eval(), *padded())


@every_variant_in_training
def test_alone_equals_batched_in_training(name, options):
    """With dropout 0 and batch norm frozen."""
    encoder = build(name, **options).train()
    freeze_batch_norm(encoder)
    check_alone_equals_batched(encoder, *padded())


@every_encoder
@every_mixer
def test_alone_equals_batched_in_float32(name, mixer):
    encoder = build(name, dtype=torch.float32, **mixer).eval()
    x, lengths = padded(dtype=torch.float32)
    check_alone_equals_batched(encoder, x, lengths, torch.float32)


@every_encoder
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_what_the_padding_holds_changes_no_bit(name, fill, training):
    options = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
    encoder = build(name, **options).train(training)
    actual, expected = run(encoder, *padded(fill=fill)), run(encoder, *padded(fill=0.0))
    assert torch.equal(actual.olens, expected.olens)
    pairs = zip(actual.outs, expected.outs, strict=True)
    assert all(torch.equal(out, other) for out, other in pairs)
    assert torch.equal(actual.dx, expected.dx)
    for parameter in expected.d_parameters:
        assert torch.equal(actual.d_parameters[parameter], expected.d_parameters[parameter])


@every_encoder
def test_an_explicit_padding_mask_is_the_one_of_the_lengths(name):
    encoder = build(name).eval()
    x, lengths = padded()
    mask = torch.arange(x.shape[1]) >= lengths[:, None]
    assert torch.equal(encoder(x, lengths, masks=mask)[0], encoder(x, lengths)[0])


@every_encoder
def test_tokens_are_not_masked_but_their_padding_does_not_matter(name):
    encoder = build(name, features=11, input_layer="embed").eval()
    tokens = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([12, 7])
    out, olens, _ = encoder(tokens, lengths)
    tokens[1, 7:] = 10 - tokens[1, 7:]
    assert torch.equal(encoder(tokens, lengths)[0], out)
    alone, _, _ = encoder(tokens[1:, :7], lengths[1:])
    assert_close("output", out[1, :7], alone[0], torch.float64, "output")
    assert not out[1, 7:].any()
    assert olens.tolist() == [12, 7]


@every_encoder
def test_an_utterance_too_short_for_the_subsampling_harms_no_other(name):
    encoder = build(name).eval()
    x, lengths = padded((67, 5))
    batched = run(encoder, x, lengths)
    alone = run(encoder, x[:1], lengths[:1])
    assert batched.olens.tolist() == [16, 0]
    assert not batched.outs[0][1].any()
    assert_close("output", batched.outs[0][0], alone.outs[0][0], torch.float64, "output")
    check_parameter_gradients(batched.d_parameters, alone.d_parameters, torch.float64)


class TestTheChecksCanFail:
    """Without what each of them guards, they do."""

    @every_encoder
    def test_without_our_forward(self, name, monkeypatch):
        monkeypatch.delattr(MixerHost, "forward")
        with pytest.raises(AssertionError, match="not finite"):
            check_alone_equals_batched(build(name).eval(), *padded())

    @every_encoder
    def test_without_masked_outputs(self, name, monkeypatch):
        monkeypatch.setattr(host, "_zero_past", lambda x, _: x)
        with pytest.raises(AssertionError, match="output 0 is not zero past the end"):
            check_alone_equals_batched(build(name).eval(), *padded())

    @every_encoder
    def test_without_masked_intermediate_outputs(self, name, monkeypatch):
        monkeypatch.setattr(host, "_zero_all_past", lambda outs, _: outs)
        with pytest.raises(AssertionError, match="output 1 is not zero past the end"):
            check_alone_equals_batched(build(name, interctc_layer_idx=[1]).eval(), *padded())

    @pytest.mark.parametrize("layer", ["conv1d", "conv1d-linear"])
    @pytest.mark.parametrize("name", ["conbimamba", "transbimamba"])
    def test_without_masked_feed_forward_convolutions(self, name, layer, monkeypatch):
        monkeypatch.setattr(host, "mask_convolutions", lambda _: None)
        encoder = build(name, **ENCODERS[name].options[layer]).eval()
        with pytest.raises(AssertionError, match="output 0: relative error"):
            check_alone_equals_batched(encoder, *padded())

    @every_encoder
    def test_with_a_mixer_that_reads_the_padding(self, name):
        encoder = build(name).eval()
        for index in range(len(encoder.encoders)):
            attention = getattr(encoder.encoders[index], ENCODERS[name].attention)
            mixer = attention.mixer
            mixer.forward = lambda x, _, forward=mixer.forward: forward(x)
        with pytest.raises(AssertionError, match="output 0: relative error"):
            check_alone_equals_batched(encoder, *padded())


class TestBatchNorm:
    """Statistics over the batch are the one thing in training that reads the padding."""

    @pytest.mark.parametrize("options", [{}, {"macaron_style": True, "concat_after": True}])
    def test_masked_more_padding_changes_nothing(self, options):
        encoder = build("conbimamba", mask_batch_norm=True, **options).train()
        short, long = run(encoder, *padded()), run(encoder, *padded(length=120))
        frames = short.outs[0].shape[1]
        assert torch.equal(short.olens, long.olens)
        assert_close("output", long.outs[0][:, :frames], short.outs[0], torch.float64, "output")
        assert_close("input gradient", long.dx[:, :67], short.dx, torch.float64, "gradient")
        assert not long.dx[:, 67:].any()
        check_parameter_gradients(long.d_parameters, short.d_parameters, torch.float64)

    def test_stock_more_padding_changes_the_output(self):
        encoder = build("conbimamba").train()
        short, long = run(encoder, *padded()), run(encoder, *padded(length=120))
        difference = (long.outs[0][:, : short.outs[0].shape[1]] - short.outs[0]).abs().max()
        assert difference / short.outs[0].abs().max() > 0.01

    def test_masked_equals_batch_norm_over_the_real_frames(self):
        """Output, gradients and running statistics, by PyTorch's own batch norm."""
        from espnet_bimamba.encoders.stack import RealFramesBatchNorm1d, _frames

        torch.manual_seed(0)
        norm, stock = RealFramesBatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
        mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
        x, y = inputs(3, 3, 4), inputs(3, 3, 4)
        x.transpose(1, 2)[~mask] = 1e6
        x.requires_grad_()
        with _frames(mask[:, None]):
            out = norm(x)
        expected = stock(x.transpose(1, 2)[mask])
        assert torch.equal(out.transpose(1, 2)[mask], expected)
        assert not out.transpose(1, 2)[~mask].any()
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(norm, buffer), getattr(stock, buffer))
        (dx,) = torch.autograd.grad((out * y).sum(), x)
        (expected_dx,) = torch.autograd.grad((expected * y.transpose(1, 2)[mask]).sum(), x)
        assert torch.equal(dx, expected_dx)

    def test_in_eval_masked_and_stock_are_one(self):
        x, lengths = padded()
        masked = build("conbimamba", mask_batch_norm=True).eval()
        stock = build("conbimamba").eval()
        stock.load_state_dict(masked.state_dict())
        assert torch.equal(outputs(masked(x, lengths))[0][0], outputs(stock(x, lengths))[0][0])

    @pytest.mark.parametrize("name", ["transbimamba", "bimamba", "e_branchbimamba"])
    def test_no_other_encoder_has_one(self, name):
        assert not any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in build(name).modules()
        )
