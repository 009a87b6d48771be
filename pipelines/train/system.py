"""How the machine of rank 0 fares: processors, memory, disk, network."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import torch

GIB = 2**30


def system_metrics(run: Path, device: torch.device) -> dict[str, float]:
    """Shares 0..1, GiB, and bytes since boot; of a GPU what torch knows of it."""
    memory = psutil.virtual_memory()
    network = psutil.net_io_counters()
    metrics = {
        "system/cpu_share": psutil.cpu_percent() / 100,  # since the last call
        "system/memory_share": memory.percent / 100,
        "system/disk_free_gib": shutil.disk_usage(run).free / GIB,
        "memory_gib": psutil.Process().memory_info().rss / GIB,
    }
    if network is not None:
        metrics |= {"system/sent_gib": network.bytes_sent / GIB, "system/received_gib": network.bytes_recv / GIB}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        metrics |= {
            "system/gpu_memory_share": 1 - free / total,
            "gpu_memory_gib": torch.cuda.max_memory_allocated(device) / GIB,
        }
    return metrics
