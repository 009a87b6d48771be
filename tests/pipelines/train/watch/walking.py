"""A training that trains nothing: steps, each with a checkpoint, and ills that befall its last rank."""

import os
import signal
import time
from pathlib import Path

from kineograph.errors import Failure, KineographError
from kineograph.store.checkpoints import COMPLETE, checkpoint_folder
from pipelines.train.ray_trainer import run_workers
from pipelines.train.watch.restarts import Saved
from pipelines.train.watch.stop import StopRequest
from pipelines.train.workers import WorkersConfig


def walk(job):
    """Steps that say who made them, a checkpoint after each; ``job["ills"]``: what befalls rank 1 before which step."""
    import torch
    import torch.distributed as dist

    run, rank = Path(job["run"]), dist.get_rank()
    workers = WorkersConfig.model_validate(job["workers"])
    from pipelines.train.watch.hang import Beat

    stop = StopRequest(run)
    with open(run / f"starts-{rank}", "a") as file:
        file.write(f"{dist.get_world_size()}\n")
    with Beat(run, workers) as beat:
        step = Saved(run).steps()
        while step < job["steps"]:
            beat.phase("forward", step)
            if rank == dist.get_world_size() - 1:
                befall(job["ills"].get(str(step)), run / f"ill-{step}")
            time.sleep(job["step_s"])
            beat.phase("update", step)
            flag = torch.tensor([float(stop.is_set())])
            dist.all_reduce(flag)
            step += 1
            if rank == 0:
                folder = checkpoint_folder(run, step)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / COMPLETE).touch()
            if flag.item():
                if rank == 0:
                    stop.obeyed(step)
                return


def befall(ill, mark):
    """It happens once."""
    if ill is None or mark.exists():
        return
    mark.write_text(str(os.getpid()))
    if ill == "damage":
        raise Failure("clip x is damaged")
    if ill == "memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    os.kill(os.getpid(), signal.SIGKILL if ill == "kill" else signal.SIGSTOP)


def train(run, steps, ills=None, step_s=0.05, **workers):
    """Walk; the error that it ended with, if it did."""
    config = WorkersConfig.model_validate({"count": 2, **workers})
    job = {
        "run": str(run),
        "workers": config.model_dump(),
        "steps": steps,
        "step_s": step_s,
        "ills": {str(step): ill for step, ill in (ills or {}).items()},
    }
    try:
        run_workers(job, config, run, work=walk)
    except KineographError as error:
        return error
    return None


def groups(run):
    """Sizes of the groups of workers that were started."""
    path = run / "starts-0"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []
