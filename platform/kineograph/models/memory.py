"""What training takes of memory, whatever the model. It loads no torch: plans are made without."""

from __future__ import annotations

STATE_BYTES = 20
"""Bytes per trained parameter: in bf16 weights and gradients (2 + 2), in fp32 a master copy, AdamW's two moments and the
moving average (4·4); all in fp32 (weights, gradients, two moments, average: 5·4) comes to the same. Sharding divides it."""
