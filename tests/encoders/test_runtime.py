"""Encoders where ESPnet runs them: several threads, DataLoader workers, autocast, torch.compile."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.encoders.zoo import ENCODERS, build, every_encoder, padded, run

# Options whose layers ask, outside the call, which frames are real.
THREADED = {
    "conbimamba-conv1d": ("conbimamba", ENCODERS["conbimamba"].options["macaron-conv1d"]),
    "transbimamba-conv1d-linear": (
        "transbimamba",
        ENCODERS["transbimamba"].options["conv1d-linear"],
    ),
    "bimamba": ("bimamba", {}),
    "e_branchbimamba": ("e_branchbimamba", {}),
}


@pytest.mark.parametrize(("name", "options"), THREADED.values(), ids=THREADED)
def test_four_threads_at_once_give_what_one_gives(name, options, several_threads):
    encoder = build(name, dtype=torch.float32, **options).eval()
    batches = [padded((67 - n, 26 + n), dtype=torch.float32) for n in range(8)]

    def encode(batch):
        with torch.no_grad():
            return encoder(*batch)[0]

    expected = [encode(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(encode, batches))
    for actual, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


def test_four_threads_at_once_train_as_one_does(several_threads):
    encoder = build("conbimamba", mask_batch_norm=True, gradient_checkpoint_layers=[1]).train()
    encoder.requires_grad_(True)
    batches = [padded((67 - n, 26 + n)) for n in range(8)]

    def train(batch):
        return run(encoder, *batch)

    expected = [train(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(train, batches))
    for actual, wanted in zip(results, expected, strict=True):
        assert torch.equal(actual.outs[0], wanted.outs[0])
        assert torch.equal(actual.dx, wanted.dx)


class Encoded(Dataset):
    """Encodes in the worker process."""

    def __init__(self, encoder, batches):
        self.encoder, self.batches = encoder, batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.encoder(*self.batches[index])[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@every_encoder
def test_dataloader_workers_forked_after_use_encode_the_same(name, several_threads):
    encoder = build(name, dtype=torch.float32).eval()
    batches = [padded((67, 26 + n), dtype=torch.float32) for n in range(4)]
    data = Encoded(encoder, batches)
    expected = [data[index] for index in range(len(data))]
    loader = DataLoader(
        data, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for actual, wanted in zip(loader, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6)


@every_encoder
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_near_float32(name, dtype):
    encoder = build(name, dtype=torch.float32, output_size=16).eval()
    x, lengths = padded(dtype=torch.float32)
    expected, olens, _ = encoder(x, lengths)
    with torch.autocast("cpu", dtype):
        out, _, _ = encoder(x, lengths)
    # Some thirty results a layer are rounded; their errors add up like a random walk.
    error = ((out - expected).norm() / expected.norm()).item()
    assert 0 < error < 10 * torch.finfo(dtype).eps
    assert not out[1, olens[1] :].any()


@every_encoder
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_whole_encoder_in_another_precision(name, dtype):
    """``Speech2Text(dtype=...)``."""
    encoder = build(name, dtype=torch.float32, output_size=16).eval()
    x, lengths = padded(dtype=torch.float32)
    expected, olens, _ = encoder(x, lengths)
    out, _, _ = encoder.to(dtype)(x.to(dtype), lengths)
    assert out.dtype == dtype
    error = ((out.double() - expected).norm() / expected.norm()).item()
    assert error < max(10 * torch.finfo(dtype).eps, 1e-5)
    assert not out[1, olens[1] :].any()


def check_compiled(name, **options):
    encoder = build(name, dtype=torch.float32, num_blocks=1, **options).train()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(encoder), backend="eager")
    batch = padded((30, 20), dtype=torch.float32)
    actual, expected = run(compiled, *batch), run(encoder, *batch)
    assert torch.equal(actual.outs[0], expected.outs[0])
    assert torch.equal(actual.dx, expected.dx)
    for mine, theirs in zip(compiled.buffers(), encoder.buffers(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore:Dynamo")
@pytest.mark.slow
@every_encoder
def test_torch_compile_gives_the_same_bits(name):
    check_compiled(name)


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_torch_compile_gives_the_same_bits_with_gradient_checkpointing():
    check_compiled("conbimamba", gradient_checkpoint_layers=[0, 1])


@pytest.mark.gpu
@every_encoder
def test_a_gpu_gives_what_the_cpu_gives(name, monkeypatch):
    # PyTorch lets convolutions round their inputs to 10 bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    encoder = build(name, dtype=torch.float32).eval()
    x, lengths = padded(dtype=torch.float32)
    expected = run(encoder, x, lengths)
    actual = run(encoder.cuda(), x.cuda(), lengths)
    torch.testing.assert_close(actual.outs[0].cpu(), expected.outs[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(actual.dx.cpu(), expected.dx, rtol=1e-3, atol=1e-3)
    assert not actual.outs[0][1, int(actual.olens[1]) :].any()
