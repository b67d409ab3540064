"""Encoders as graphs: ``torch.compile`` and its breaks, ``torch.export`` and running elsewhere.

Most tests trace a whole encoder, which takes seconds: only a few of them run in test-quick.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.export import Dim, export

import espnet_bimamba
from tests.encoders.zoo import ENCODERS, MIXERS, build, every_encoder, outputs, padded, run
from tests.tolerances import assert_close

DTYPE = torch.float32
PACKAGE_ROOT = Path(espnet_bimamba.__file__).parents[1]

# Every encoder in evaluation, and in training but for what is listed here, is one graph. The
# breaks of two blocks, where random numbers decide those of one seed; docs/deployment.md says
# where each comes from.
BREAKS = {
    "e_branchbimamba-train": ("e_branchbimamba", {}, 4),
    "layer_drop-train": ("transbimamba", {"layer_drop_rate": 0.5}, 5),
    "stochastic_depth-train": ("conbimamba", {"stochastic_depth_rate": 0.3}, 6),
    "conv1d": ("conbimamba", ENCODERS["conbimamba"].options["conv1d"], 4),
    "mask_batch_norm": ("conbimamba", {"mask_batch_norm": True}, 4),
    "mask_batch_norm-train": ("conbimamba", {"mask_batch_norm": True}, 10),
    "checkpointed-train": ("conbimamba", {"gradient_checkpoint_layers": [0, 1]}, 4),
    "e_branchbimamba-checkpointed-train": (
        "e_branchbimamba",
        {"gradient_checkpoint_layers": [0, 1]},
        3,
    ),
}

# Other options whose encoder can be exported; the input layers, and what asks for real frames.
EXPORTED = {
    "conbimamba-linear": ("conbimamba", {"input_layer": "linear"}),
    "conbimamba-conv2d6": ("conbimamba", {"input_layer": "conv2d6"}),
    "conbimamba-conv1d": ("conbimamba", ENCODERS["conbimamba"].options["macaron-conv1d"]),
    "conbimamba-mask_batch_norm": ("conbimamba", {"mask_batch_norm": True}),
    "conbimamba-interctc": (
        "conbimamba",
        {"interctc_layer_idx": [1], "interctc_use_conditioning": True},
    ),
    "transbimamba-conv1d2": ("transbimamba", {"input_layer": "conv1d2"}),
    "bimamba-abs_pos": ("bimamba", {"pos_enc_layer_type": "abs_pos"}),
    "e_branchbimamba-conv1d3": ("e_branchbimamba", {"input_layer": "conv1d3"}),
}

# Other sizes than those of the export: one utterance, as many as the mixer's inner width.
BATCHES = [padded(lengths, dtype=DTYPE) for lengths in ((67, 26), (41,), (16, *range(30, 45)))]


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()


def breaks(encoder) -> int:
    return torch._dynamo.explain(encoder)(*padded(dtype=DTYPE)).graph_break_count


@every_encoder
def test_an_encoder_is_one_graph(name):
    assert breaks(build(name, dtype=DTYPE).eval()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conbimamba", "transbimamba", "bimamba"])
def test_an_encoder_in_training_is_one_graph(name):
    assert breaks(build(name, dtype=DTYPE).train()) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo")
@pytest.mark.parametrize(("name", "options", "expected"), BREAKS.values(), ids=BREAKS)
def test_what_breaks_the_graph_is_counted(request, name, options, expected):
    training = request.node.callspec.id.endswith("-train")
    encoder = build(name, dtype=DTYPE, **options).train(training)
    torch.manual_seed(0)
    assert breaks(encoder) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, None) for name in ENCODERS), ("conbimamba", True)]
)
def test_compiled_without_a_break_it_trains_as_it_does_in_eager_mode(name, dynamic):
    encoder = build(name, dtype=DTYPE, num_blocks=1).eval().requires_grad_()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    x, lengths = padded(dtype=DTYPE)
    actual, expected = run(compiled, x, lengths), run(encoder, x, lengths)
    assert_close("output", actual.outs[0], expected.outs[0], DTYPE, "output")
    assert_close("input gradient", actual.dx, expected.dx, DTYPE, "gradient")
    for parameter, gradient in expected.d_parameters.items():
        mine = actual.d_parameters[f"_orig_mod.{parameter}"]
        torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-4)


def test_with_breaks_each_batch_gets_its_own_frames():
    """The mask that a layer looks up outside its call is not remembered by the graph."""
    encoder = build("conbimamba", dtype=DTYPE, **ENCODERS["conbimamba"].options["conv1d"]).eval()
    compiled = torch.compile(encoder, backend="eager")
    for lengths in ((67, 26), (67, 40), (67, 13)):
        x, n = padded(lengths, dtype=DTYPE)
        assert torch.equal(compiled(x, n)[0], encoder(x, n)[0])


def exported(encoder):
    x, lengths = padded((67, 26, 50), dtype=DTYPE)
    with torch.no_grad():
        return export(
            encoder,
            (x, lengths),
            dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
        )


def check_exported(graph, encoder):
    for x, lengths in BATCHES:
        with torch.no_grad():
            outs, olens = outputs(graph(x, lengths))
            expected, expected_olens = outputs(encoder(x, lengths))
        assert torch.equal(olens, expected_olens)
        for actual, wanted in zip(outs, expected, strict=True):
            assert_close("output", actual, wanted, DTYPE, "output")


ELSEWHERE = """
import sys, torch, espnet_bimamba.ops
torch.set_num_threads(1)
folder, *names = sys.argv[1:]
batches = torch.load(f"{folder}/batches.pt")
for name in names:
    graph = torch.export.load(f"{folder}/{name}.pt2").module()
    torch.save([graph(*batch)[:2] for batch in batches], f"{folder}/{name}.pt")
assert not any(name.startswith("espnet2") for name in sys.modules), "ESPnet was needed"
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Export every encoder and run all of them in one process that has no ESPnet loaded."""
    folder = tmp_path_factory.mktemp("exported")
    torch.save(BATCHES, folder / "batches.pt")
    encoders = {name: build(name, dtype=DTYPE).eval() for name in ENCODERS}
    for name, encoder in encoders.items():
        torch.export.save(exported(encoder), folder / f"{name}.pt2")
    code = f"import sys; sys.path.insert(0, {str(PACKAGE_ROOT)!r}){ELSEWHERE}"
    command = [sys.executable, "-c", code, str(folder), *ENCODERS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, encoders


@pytest.mark.slow
@every_encoder
def test_an_encoder_is_exported_saved_and_run_in_another_process(name, elsewhere):
    folder, encoders = elsewhere
    results = iter(torch.load(folder / f"{name}.pt"))
    check_exported(lambda *_: (*next(results), None), encoders[name])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), EXPORTED.values(), ids=EXPORTED)
def test_options_that_can_be_exported(name, options):
    encoder = build(name, dtype=DTYPE, **options).eval()
    check_exported(exported(encoder).module(), encoder)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_every_mixer_is_exported_and_one_graph(mixer):
    encoder = build("conbimamba", dtype=DTYPE, num_blocks=1, **mixer).eval()
    check_exported(exported(encoder).module(), encoder)
    assert breaks(encoder) == 0


@pytest.mark.slow
@every_encoder
def test_named_dimensions(name):
    """The Conformer's need the flag: torch cannot solve a condition that always holds."""
    encoder = build(name, dtype=DTYPE, num_blocks=1).eval()
    batch, length = Dim("batch", max=64), Dim("length", min=11, max=4000)
    graph = export(
        encoder,
        padded(dtype=DTYPE),
        dynamic_shapes=({0: batch, 1: length}, {0: batch}),
        prefer_deferred_runtime_asserts_over_guards=name == "conbimamba",
    ).module()
    check_exported(graph, encoder)
    with pytest.raises(AssertionError, match=r"size\(\)\[1\] >= 11"):
        graph(torch.zeros(2, 10, 20), torch.tensor([10, 10]))


def test_an_exported_encoder_refuses_lengths_beyond_its_input():
    graph = exported(build("bimamba", dtype=DTYPE, num_blocks=1).eval()).module()
    x, _ = padded(dtype=DTYPE)
    with pytest.raises(RuntimeError, match="ilens must be from 0 to the batch's frames"):
        graph(x, torch.tensor([67, 68]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@every_encoder
def test_no_autograd_state_is_kept_in_inference(name, mode):
    encoder = build(name, dtype=DTYPE).eval()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        encoder(*padded(dtype=DTYPE))
        assert kept, "the hooks see what a backward pass needs"
        kept.clear()
        with mode():
            out, _, _ = encoder(*padded(dtype=DTYPE))
    assert not kept
    assert out.grad_fn is None


@pytest.mark.slow  # Inductor calls the C++ compiler
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="Inductor needs a C++ compiler"
)
def test_inductor():
    encoder = build("conbimamba", dtype=DTYPE, num_blocks=1, mamba_type="mamba").eval()
    x, lengths = BATCHES[0]
    with torch.no_grad():
        out, _, _ = torch.compile(encoder, fullgraph=True)(x, lengths)
        assert_close("output", out, encoder(x, lengths)[0], DTYPE, "output")
