"""Start Ray on this machine, or join the cluster that a submitted job runs on."""

from __future__ import annotations

import logging
import os
from typing import Any

from kineograph.errors import Failure


def start_ray(num_cpus: int | None = None) -> None:
    """Connect to the cluster named by RAY_ADDRESS (set inside a Ray job), else start Ray here on loopback.

    ``num_cpus`` is how many CPUs a local Ray may use; None takes all. Does nothing when Ray runs already.
    """
    import ray

    if ray.is_initialized():
        return
    # A Ray that starts here says on every start that it made itself a token: nobody has to act on it.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {
        "logging_level": logging.WARNING,
        # What Ray's own actors and the libraries in its workers remark would bury what ours say. Errors are raised.
        "logging_config": ray.LoggingConfig(log_level="ERROR"),
    }
    # Ray Train would log what its workers print, beside printing it: all that they say would come twice.
    env_vars = {"PYTHONWARNINGS": "ignore", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    try:
        if address:
            ray.init(address=address, runtime_env={"env_vars": env_vars}, **quiet)
        else:
            # Nobody takes this machine away with notice, and Ray Train's watch for that starts with an error message.
            env_vars["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
            hook = f"{__name__}.{remember_cluster.__name__}"
            runtime_env = {"env_vars": env_vars, "worker_process_setup_hook": hook}
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, runtime_env=runtime_env, **quiet)
    except (OSError, RuntimeError, ValueError) as error:  # such as a socket's path that is too long
        where = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise Failure(f"cannot {where}: {' '.join(str(error).split())[:200]}") from error


def remember_cluster() -> None:
    """Tell a worker process which Ray it belongs to.

    Ray Train's cleaner looks for "the" Ray of the machine, and dies with a trace where another run has one of its own.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
