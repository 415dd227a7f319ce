"""The pretended device: tensors there stay there, copies move, and what mixes devices is refused, also in inference mode."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from cm3kits._elsewhere import Elsewhere, pretended
from cm3kits._findings import LawBroken

MODES = pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])


@MODES
def test_tensors_are_made_and_copied_there(mode: type[AbstractContextManager[None]]) -> None:
    with pretended() as device, mode():
        there, here = device.moved(torch.arange(6.0).view(2, 3)), torch.ones(2, 3)
        made = [
            here.to(there),
            here.to(there.device),
            here.to(device=there.device, dtype=torch.float64),
            here.type_as(there),
            torch.zeros_like(there),
            torch.zeros(3, device=there.device),
            torch.tensor([1.0], device=there.device),
            torch.as_tensor(here, device=there.device),
            torch.arange(3, device=there.device),
            there.new_tensor([1]),
            there[1:] + 1,
            there @ here.T.to(there),
        ]
        assert all(isinstance(one, Elsewhere) and one.is_meta for one in made)
        assert not any(isinstance(one, Elsewhere) for one in (there.cpu(), there.to(here)))
        assert there.sum(1).tolist() == [3.0, 12.0]


@MODES
def test_what_mixes_devices_is_refused_with_its_line(
    mode: type[AbstractContextManager[None]],
) -> None:
    with pretended() as device, mode():
        there, here = device.moved(torch.ones(2, 3)), torch.ones(2, 3)
        with pytest.raises(LawBroken, match=r"float32 \[2, 3\] on the cpu"):
            there + here
        with pytest.raises(LawBroken, match=r"numpy\(\) of a tensor there"):
            there.numpy()


def test_modules_move_as_on_a_gpu() -> None:
    with pretended() as device:
        module = torch.nn.Linear(3, 2).to(device.device)
        assert isinstance(module(device.moved(torch.ones(1, 3))), Elsewhere)
        with pytest.raises(LawBroken):
            module(torch.ones(1, 3))
