"""Which of several workers' errors a user is told."""

import pytest
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError

from kineograph.errors import Failure, UserError
from pipelines.train.config import WorkersConfig
from pipelines.train.ray_trainer import Announcer, _cause, check_room

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


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"count": 3}, "3 workers need 3 CPUs and this machine has 2: lower workers.count or workers.cpus"),
        ({"count": 2, "cpus": 1.5}, "2 workers need 3 CPUs"),
        ({"count": 1, "gpu": True}, "1 workers need 1 GPUs and this machine has 0"),
    ],
)
def test_workers_that_will_never_fit_are_refused(workers, message):
    with pytest.raises(UserError, match=message):
        check_room(WorkersConfig.model_validate(workers), {"CPU": 2.0})


def test_workers_that_fit_are_not_refused():
    check_room(WorkersConfig(count=2), {"CPU": 2.0})
