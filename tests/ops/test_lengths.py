"""Reversing and masking within each sequence's length."""

import torch

from espnet_bimamba.ops.lengths import padding_mask, reverse_by_length, zero_padding


def test_reversal_within_lengths_is_its_own_inverse():
    x = torch.arange(12.0).reshape(2, 1, 6)
    lengths = torch.tensor([6, 4])
    back = reverse_by_length(x, lengths)
    assert back[1, 0].tolist() == [9, 8, 7, 6, 10, 11]
    assert torch.equal(reverse_by_length(back, lengths), x)


def test_without_lengths_the_whole_is_reversed():
    assert reverse_by_length(torch.arange(3.0)[None, None], None).tolist() == [[[2, 1, 0]]]


def test_masks_are_true_past_the_end():
    mask = padding_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[True] * 3, [False, False, True], [False] * 3]


def test_padding_becomes_zero_whatever_it_holds_and_so_does_its_gradient():
    x = torch.tensor([[[1.0, float("nan")]], [[float("inf"), 2.0]]], requires_grad=True)
    out = zero_padding(x, torch.tensor([1, 0]))
    assert out.tolist() == [[[1, 0]], [[0, 0]]]
    out.sum().backward()
    assert x.grad.tolist() == [[[1, 0]], [[0, 0]]]
