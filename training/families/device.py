"""Where a network learns, and how tensors get there.

What a step draws and looks up is made on the host, the processor that runs Python: masks, rows,
samples. It is sent to the device, and nothing comes back before the step is done, so the host
prepares the next step while the device works. On the processor itself both are one, and nothing is
copied. Knows no network and no loss.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import torch
from torch import Tensor

from training.config import Device
from training.errors import ConfigError

HOST = torch.device("cpu")


def devices() -> list[Device]:
    """Devices of this machine that torch can use, the best first."""
    there: list[Device] = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there.insert(0, "cuda")
    return there


def device_of(asked: Device) -> torch.device:
    """The device that `fit.device` asks for; auto = the best that is there.

    Raises ConfigError when it is not there.
    """
    there = devices()
    asked = there[0] if asked == "auto" else asked
    if asked not in there:
        raise ConfigError(
            f"fit.device={asked}: torch {torch.__version__} finds no such device here; there is "
            f"{', '.join(there)}. Install a build of torch for it, or set fit.device=auto"
        )
    if asked == "cuda":  # of several processes each has its own
        own = int(os.environ.get("LOCAL_RANK", "0"))
        if own >= torch.cuda.device_count():
            raise ConfigError(
                f"process {own} of this machine has no GPU of its own: there are "
                f"{torch.cuda.device_count()}. Give torchrun at most as many with "
                "--nproc-per-node, or set fit.device=cpu"
            )
        return torch.device(asked, own)
    return torch.device(asked)


def matrix_type(device: torch.device, *, bf16: bool) -> torch.dtype:
    """What matrices are multiplied in: bfloat16 if asked for and the device is made for it."""
    if device.type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = device == HOST and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if bf16 and there else torch.float32


def multiplying_in(dtype: torch.dtype, device: torch.device) -> torch.autocast | nullcontext[None]:
    """The block in which a step multiplies matrices in this type."""
    in_bf16 = dtype == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16) if in_bf16 else nullcontext()


def sent(made: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device. The host does not wait for it."""
    if device.type == "cuda":
        made = made.pin_memory()
    return made.to(device, non_blocking=True)


def picked(values: Tensor, chosen: Tensor) -> Tensor:
    """`values[chosen]` for a mask of the host: the device is not asked how many there are."""
    if values.device == HOST:
        return values[chosen]
    places = chosen.nonzero(as_tuple=True)
    return values[tuple(sent(place, values.device) for place in places)]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def random_state(device: torch.device) -> Tensor | None:
    """Of what a step draws on the device; None on the host, whose state is torch's own."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Go on drawing as a device of the same kind did."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
