"""Which of several workers' errors a user is told."""

import pytest
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError

from kineograph.errors import Failure
from pipelines.train.ray_trainer import Announcer, _cause

PEER = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")


def failed(failures):
    error = TrainingFailedError("training failed")
    error.worker_failures = failures
    return error


def test_an_error_of_ours_is_told_as_it_is():
    ours = Failure("clip x is damaged")
    assert _cause(failed({0: PEER, 1: ours})) is ours


def test_a_lost_peer_is_not_told_where_another_worker_failed_itself():
    assert "KeyError: 'text'" in str(_cause(failed({0: PEER, 1: KeyError("text")})))


def test_a_dead_process_is_told_with_what_to_do():
    assert "training worker 1 ended" in str(_cause(failed({0: PEER, 1: RayActorError()})))


def test_an_error_without_workers_is_told_in_one_line():
    assert str(_cause(TrainingFailedError("no\n room"))) == "training failed: no room"


@pytest.mark.parametrize(("restarts", "said"), [(0, 0), (1, 1), (5, 2)])
def test_a_death_is_announced_only_where_work_goes_on(restarts, said, capsys):
    announcer = Announcer(restarts)
    for _ in range(2):
        announcer.after_exception(None, {0: PEER, 1: RayActorError()})
    assert capsys.readouterr().err.count("died (rank 1: its process ended)") == said
