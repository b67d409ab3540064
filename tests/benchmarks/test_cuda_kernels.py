"""The program that times kernels on a card: its calls, on the CPU."""

import pytest
import torch

from benchmarks import cuda_kernels
from espnet_bimamba.ops import selective_scan


@pytest.mark.parametrize("both", [False, True])
def test_the_calls_are_scans_of_whole_sequences(both):
    x = cuda_kernels.inputs(2, 9, "float32", both, "cpu")
    calls = cuda_kernels.calls("reference", x, both)
    out = calls["forward"]()
    expected = selective_scan(**x, delta_softplus=True, bidirectional=both, backend="reference")
    assert out.shape == (2, 1024 if both else 512, 9)
    assert torch.equal(out, expected)
    gradients = calls["forward+backward"]()
    assert [g.shape for g in gradients] == [tensor.shape for tensor in x.values()]


def test_without_a_card_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_kernels.main(["scan"]) == 2
    assert capsys.readouterr().err == "torch sees no CUDA device\n"
