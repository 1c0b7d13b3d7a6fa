"""Option A's shortcut, whole and narrowed on either side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fcs_utils.shortcuts import PadShortcut

IMAGES = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4) + 1
NONE = torch.zeros(2, 1, 2, 2)


def channel(number: int) -> Tensor:
    return IMAGES[:, number : number + 1, ::2, ::2]


def test_positions_by_hand() -> None:
    # Of three further channels one comes before, two behind.
    assert PadShortcut(3, 6, 2).positions.tolist() == [-1, 0, 1, 2, -1, -1]
    assert PadShortcut(2, 2, 1).positions.tolist() == [0, 1] and not PadShortcut(3, 6, 2).state_dict()


def test_a_lost_input_becomes_zeros_and_a_lost_output_goes() -> None:
    shortcut = PadShortcut(3, 6, 2)
    shortcut.lose_inputs([1])  # the second of three: its place stays, with zeros
    assert (shortcut.positions.tolist(), shortcut.channels) == ([-1, 0, -1, 1, -1, -1], 2)
    assert shortcut(IMAGES[:, [0, 2]]).equal(torch.cat([NONE, channel(0), NONE, channel(2), NONE, NONE], 1))
    shortcut.lose_outputs([0, 3, 5])  # zeros, channel 2 and zeros
    assert shortcut.positions.tolist() == [0, -1, -1]
    assert shortcut(IMAGES[:, [0, 2]]).equal(torch.cat([channel(0), NONE, NONE], 1))
    shortcut.lose_inputs([1])  # the channel that no output copies any more
    assert shortcut.positions.tolist() == [0, -1, -1] and shortcut(IMAGES[:, :1]).equal(torch.cat([channel(0), NONE, NONE], 1))


def test_a_wider_input_than_output_is_picked_from() -> None:
    shortcut = PadShortcut(3, 3, 1)
    shortcut.lose_outputs([1])
    assert shortcut(IMAGES).equal(IMAGES[:, [0, 2]])
    shortcut.lose_inputs([0, 2])
    assert shortcut(IMAGES[:, :1]).equal(torch.zeros(2, 2, 4, 4))  # nothing is left to copy


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_narrowed_shortcuts_keep_the_layout_and_pass_gradients(layout: torch.memory_format) -> None:
    shortcut = PadShortcut(3, 6, 1)
    shortcut.lose_outputs([2])  # the output of input channel 1
    images = IMAGES.contiguous(memory_format=layout).requires_grad_()
    out = shortcut(images)
    assert out.is_contiguous(memory_format=layout)
    (gradient,) = torch.autograd.grad(out.sum(), images)
    assert gradient.equal(torch.tensor([1.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(2, 3, 4, 4))
