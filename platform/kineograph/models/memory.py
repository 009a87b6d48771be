"""What training takes of memory, whatever the model. It loads no torch: plans are made without."""

from __future__ import annotations

WEIGHT_BYTES = 4
"""A weight and its gradient are fp32 each, also in bf16, which is what products are computed in (autocast)."""
MOMENTS_BYTES = 8
"""AdamW's two moments, fp32."""
AVERAGE_BYTES = 4
"""The weights' moving average, fp32."""
STATE_BYTES = 2 * WEIGHT_BYTES + MOMENTS_BYTES + AVERAGE_BYTES
"""Bytes per trained parameter on one rank that has them all."""


def state_bytes(parameters: int, trained: int, stage: int = 0, ranks: int = 1, offload: str = "none") -> int:
    """What one of ``ranks`` holds on its device besides activations: weights, gradients, optimizer, moving average.

    ``stage`` is ZeRO's (Rajbhandari et al. 2020): from 1 the moments are shared out, and each rank has a copy of the
    weights that it updates; from 2 gradients too; at 3 all weights. The moving average always is. With ``offload``
    optimizer, what is shared out of these is in the host's memory instead, with parameters (stage 3) all is. Left out is
    what comes and goes: buffers of the communication, and in stage 3 the layers that are gathered at a time.
    """
    whole, shared, _ = _by_place(parameters, trained, stage, offload)
    return whole + -(-shared // ranks)


def host_bytes(parameters: int, trained: int, stage: int, ranks: int, offload: str) -> int:
    """What one rank holds in the host's memory in place of its device's (:func:`state_bytes`)."""
    return -(-_by_place(parameters, trained, stage, offload)[2] // ranks)


def _by_place(parameters: int, trained: int, stage: int, offload: str) -> tuple[int, int, int]:
    """Bytes that every rank has, and those that all ranks have together, on devices and in the hosts' memory."""
    whole, shared, on_host = 0, 0, 0
    updated = WEIGHT_BYTES * trained if stage >= 1 else 0
    # What it is, the stage from which it is shared out, the offload that takes it away.
    parts = [
        (WEIGHT_BYTES * parameters, 3, ("parameters",)),
        (WEIGHT_BYTES * trained, 2, ("optimizer", "parameters")),
        (updated + MOMENTS_BYTES * trained, 1, ("optimizer", "parameters")),
        (AVERAGE_BYTES * trained, 0, ("optimizer", "parameters")),
    ]
    for size, first_stage, taken_by in parts:
        if stage < first_stage:
            whole += size
        elif offload in taken_by:
            on_host += size
        else:
            shared += size
    return whole, shared, on_host
