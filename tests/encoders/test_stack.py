"""What ESPnet offers around its layers: gradient checkpointing, layer dropping, interCTC."""

import copy
import math

import pytest
import torch
from torch import nn

from espnet_bimamba.encoders import stack
from espnet_bimamba.encoders.stack import LayerStack
from espnet_bimamba.errors import OptionError
from tests.encoders.zoo import ENCODERS, build, every_encoder, outputs, padded, run

BLOCKS = 4
CHECKPOINTED = {"input_layer": [0], "first": [1], "last": [BLOCKS], "all": [0, 1, 2, 3, 4]}


def mixers(encoder: nn.Module, name: str) -> list[nn.Module]:
    attention = ENCODERS[name].attention
    return [getattr(encoder.encoders[i], attention).mixer for i in range(len(encoder.encoders))]


def count_calls(modules: list[nn.Module]) -> list[int]:
    """Return a list that holds, from now on, how often each module was called."""
    calls = [0] * len(modules)

    def count(index):
        def hook(*_):
            calls[index] += 1

        return hook

    for index, module in enumerate(modules):
        module.register_forward_pre_hook(count(index))
    return calls


class Recorder(nn.Module):
    """A layer that says that it ran."""

    def forward(self, ran: tuple, mask: None) -> tuple[tuple, None]:
        return (*ran, id(self)), mask


def first_of_input_layer(encoder: nn.Module) -> nn.Module:
    return next(m for m in encoder.embed.modules() if isinstance(m, nn.Conv2d | nn.Linear))


class TestGradientCheckpointing:
    @every_encoder
    @pytest.mark.parametrize(
        ("layers", "input_layer"),
        [*((layers, "conv2d") for layers in CHECKPOINTED.values()), ([0, 1, 2, 3, 4], "linear")],
        ids=[*CHECKPOINTED, "all-linear_input"],
    )
    def test_changes_no_bit(self, name, layers, input_layer):
        """Outputs, gradients and running statistics, with dropout and layer dropping."""
        options = {"num_blocks": BLOCKS, "input_layer": input_layer, "layer_drop_rate": 0.2}
        rates = {"dropout_rate": 0.3, "positional_dropout_rate": 0.3}
        plain = build(name, **options, **rates).train()
        checked = build(name, **options, **rates, gradient_checkpoint_layers=layers).train()
        assert list(checked.state_dict()) == list(plain.state_dict())
        torch.manual_seed(4)
        expected = run(plain, *padded())
        torch.manual_seed(4)
        actual = run(checked, *padded())
        assert torch.equal(actual.outs[0], expected.outs[0])
        assert torch.equal(actual.dx, expected.dx)
        for parameter, gradient in expected.d_parameters.items():
            assert torch.equal(actual.d_parameters[parameter], gradient), parameter
        for buffer, value in plain.named_buffers():
            assert torch.equal(checked.get_buffer(buffer), value), buffer

    @every_encoder
    @pytest.mark.parametrize("layers", CHECKPOINTED.values(), ids=CHECKPOINTED)
    def test_recomputes_the_listed_layers_and_no_other(self, name, layers):
        encoder = build(name, num_blocks=BLOCKS, gradient_checkpoint_layers=layers).train()
        calls = count_calls([first_of_input_layer(encoder), *mixers(encoder, name)])
        out = encoder(*padded())[0]
        assert calls == [1] * (BLOCKS + 1)
        out.sum().backward()
        assert calls == [2 if index in layers else 1 for index in range(BLOCKS + 1)]

    @every_encoder
    def test_keeps_fewer_activations(self, name):
        def saved_bytes(**options):
            kept = []
            encoder = build(name, num_blocks=BLOCKS, **options).train()
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x: (kept.append(x.numel() * x.element_size()), x)[1], lambda x: x
            ):
                encoder(*padded())
            return sum(kept)

        assert saved_bytes(gradient_checkpoint_layers=[0, 1, 2, 3, 4]) < saved_bytes() / 4

    @every_encoder
    def test_costs_nothing_without_gradients(self, name):
        encoder = build(name, gradient_checkpoint_layers=[0, 1, 2]).eval()
        calls = count_calls([first_of_input_layer(encoder), *mixers(encoder, name)])
        with torch.no_grad():
            encoder(*padded())
        assert calls == [1, 1, 1]


@every_encoder
def test_nothing_of_a_batch_is_kept_after_it(name):
    encoder = build(name, gradient_checkpoint_layers=[1])
    run(encoder, *padded())
    assert stack._real_frames.get() is None


class TestLayerDropping:
    @every_encoder
    def test_every_layer_dropped_leaves_the_input_layer(self, name):
        encoder = build(name, layer_drop_rate=1.0).train()
        x, lengths = padded(fill=0.0)
        mask = (torch.arange(x.shape[1]) < lengths[:, None])[:, None]
        embedded, mask = encoder.embed(x, mask)
        expected = encoder.after_norm(embedded) * mask.transpose(1, 2)
        assert torch.equal(encoder(x, lengths)[0], expected)

    @every_encoder
    def test_evaluation_drops_nothing(self, name):
        dropping, keeping = build(name, layer_drop_rate=1.0).eval(), build(name).eval()
        assert torch.equal(dropping(*padded())[0], keeping(*padded())[0])

    @pytest.mark.parametrize("rate", [0.0, 0.3])
    def test_layers_are_dropped_at_the_rate_each_by_itself(self, rate):
        layers = LayerStack(*(Recorder() for _ in range(BLOCKS)), layer_drop_rate=rate)
        torch.manual_seed(0)
        passes, kept = 1000, []
        for _ in range(passes):
            ran = ()
            with stack.encoding():
                for layer in layers:
                    ran, _ = layer(ran, None)
            kept.append(tuple(index for index in range(BLOCKS) if id(layers[index]) in ran))
        tolerance = 5 * math.sqrt(passes * rate * (1 - rate))
        for index in range(BLOCKS):
            count = sum(index in one_pass for one_pass in kept)
            assert abs(count - passes * (1 - rate)) <= tolerance
        # Every combination of kept and dropped layers turns up, or only the one that keeps all.
        assert len(set(kept)) == (2**BLOCKS if rate else 1)

    @pytest.mark.parametrize("name", ["conbimamba", "transbimamba", "bimamba"])
    def test_a_forward_runs_some_layers_and_not_others(self, name):
        encoder = build(name, num_blocks=BLOCKS, layer_drop_rate=0.5).train()
        calls = count_calls(mixers(encoder, name))
        torch.manual_seed(0)
        for _ in range(10):
            encoder(*padded())
        assert all(0 < count < 10 for count in calls)

    @pytest.mark.parametrize("name", ["conbimamba", "transbimamba", "bimamba"])
    def test_intermediate_outputs_keep_their_numbers(self, name):
        options = {"num_blocks": BLOCKS, "interctc_layer_idx": [1, 3]}
        encoder = build(name, layer_drop_rate=1.0, **options).train()
        (out, intermediate), _, _ = encoder(*padded())
        assert [number for number, _ in intermediate] == [1, 3]
        assert all(torch.equal(hidden, out) for _, hidden in intermediate)
        encoder = build(name, layer_drop_rate=0.5, **options).train()
        for seed in range(8):
            torch.manual_seed(seed)
            (_, intermediate), _, _ = encoder(*padded())
            assert [number for number, _ in intermediate] == [1, 3]


def test_stochastic_depth_skips_layers_in_training_alone():
    encoder = build("conbimamba", input_layer="linear", stochastic_depth_rate=1 - 1e-9)
    x, lengths = padded((30,), fill=0.0)
    embedded = encoder.after_norm(encoder.embed(x))
    assert torch.equal(encoder.train()(x, lengths)[0], embedded)
    assert not torch.allclose(encoder.eval()(x, lengths)[0], embedded)


class TestIntermediateOutputs:
    @every_encoder
    def test_interctc_numbers_are_the_layers(self, name):
        encoder = build(name, num_blocks=BLOCKS, interctc_layer_idx=[1, 3]).eval()
        (_, intermediate), _, _ = encoder(*padded())
        assert [number for number, _ in intermediate] == [1, 3]

    @every_encoder
    def test_all_hidden_states_are_one_a_layer_and_the_last_is_the_output(self, name):
        encoder = build(name, num_blocks=BLOCKS, return_all_hs=True).eval()
        (out, hidden), olens, _ = encoder(*padded())
        assert len(hidden) == BLOCKS
        frames = torch.arange(out.shape[1]) < olens[:, None]
        assert torch.equal(encoder.after_norm(hidden[-1])[frames], out[frames])

    @every_encoder
    def test_conditioning_changes_the_output(self, name):
        options = {"interctc_layer_idx": [1]}
        conditioned = build(name, **options, interctc_use_conditioning=True).eval()
        plain = build(name, **options).eval()
        plain.load_state_dict(conditioned.state_dict(), strict=False)
        outs, others = outputs(conditioned(*padded()))[0], outputs(plain(*padded()))[0]
        assert torch.equal(outs[1], others[1])
        assert not torch.allclose(outs[0], others[0])


class TestBiMambaLayers:
    """The independent stack's own options, against Algorithms 1 and 2 written out."""

    @pytest.mark.parametrize("residual", [True, False], ids=["residual", "no_residual"])
    @pytest.mark.parametrize("ffn", [True, False], ids=["ffn", "no_ffn"])
    def test_norm_mixer_residual_and_feed_forward(self, residual, ffn):
        options = {"residual": residual, "ffn": ffn} | ({"linear_units": 12} if ffn else {})
        encoder = build("bimamba", input_layer="linear", **options).eval()
        x, lengths = padded((30,), fill=0.0)
        h = encoder.embed(x)
        for index in range(2):
            layer = encoder.encoders[index]
            mixed = layer.self_attn.mixer(layer.norm1(h))
            h = h + mixed if residual else mixed
            if ffn:
                h = h + layer.feed_forward(layer.norm2(h))
        torch.testing.assert_close(encoder(x, lengths)[0], encoder.after_norm(h))

    def test_without_a_feed_forward_there_are_no_parameters_of_one(self):
        assert not [name for name in build("bimamba").state_dict() if "feed_forward" in name]
        assert not [name for name in build("bimamba").state_dict() if "norm2" in name]


@every_encoder
def test_a_deep_copy_encodes_the_same(name):
    encoder = build(name, dtype=torch.float32).eval()
    x, lengths = padded(dtype=torch.float32)
    assert torch.equal(copy.deepcopy(encoder)(x, lengths)[0], encoder(x, lengths)[0])


@every_encoder
def test_a_slice_of_the_layers_is_an_encoder_of_fewer(name):
    """As ESPnet's rst task cuts a model short."""
    whole = build(name, num_blocks=BLOCKS, return_all_hs=True).eval()
    (_, hidden), olens, _ = whole(*padded())
    whole.encoders = whole.encoders[:2]
    (out, fewer), _, _ = whole(*padded())
    assert len(whole.encoders) == len(fewer) == 2
    assert torch.equal(fewer[1], hidden[1])
    frames = torch.arange(out.shape[1]) < olens[:, None]
    assert torch.equal(out[frames], whole.after_norm(hidden[1])[frames])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_iterating_over_the_layers_gives_the_layers(training):
    options = {"positionwise_layer_type": "conv1d", "gradient_checkpoint_layers": [1]}
    encoder = build("transbimamba", layer_drop_rate=0.5, **options).train(training)
    before = torch.get_rng_state()
    assert list(encoder.encoders) == [encoder.encoders[i] for i in range(len(encoder.encoders))]
    assert torch.equal(torch.get_rng_state(), before)


def test_masked_batch_norm_that_was_exchanged_is_refused():
    encoder = build("conbimamba", mask_batch_norm=True)
    encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    encoder.eval()
    with pytest.raises(OptionError, match=r"mask_batch_norm=True .* False with SyncBatchNorm"):
        encoder.train()
