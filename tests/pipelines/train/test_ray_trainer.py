"""How workers are started, started again and stopped, with Ray Train for real and a training that trains nothing."""

import os
import signal
import threading
import time

import psutil
import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2.api.preemption import PreemptionInfo

from kineograph.errors import Failure, UserError
from pipelines.train.ray_trainer import check_room
from pipelines.train.watch.failures import as_ours, explain
from pipelines.train.watch.restarts import Saved, read_restarts
from pipelines.train.workers import WorkersConfig
from tests.pipelines.train.watch.walking import groups, train

PEER = RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
STEPS = 6


def failed(failures):
    return WorkerGroupError("training failed", failures)


class TestTheErrorThatIsTold:
    def test_an_error_of_ours_as_it_is(self):
        ours = Failure("clip x is damaged")
        assert as_ours(failed({0: PEER, 1: ours})) is ours

    def test_not_a_lost_peer_where_another_worker_failed_itself(self):
        assert "KeyError: 'text'" in str(as_ours(failed({0: PEER, 1: KeyError("text")})))

    def test_a_dead_process_with_what_to_do(self):
        assert "training worker 1 ended" in str(as_ours(failed({0: PEER, 1: RayActorError()})))

    def test_an_error_without_workers_in_one_line(self):
        assert str(as_ours(TrainingFailedError("no\n room"))) == "training failed: no room"


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (failed({0: PEER, 1: RayActorError()}), "death", "a training worker died (rank 1: its process ended)"),
        (failed({0: PEER, 1: Failure("clip x\nis damaged")}), "ours", "(rank 1: clip x is damaged)"),
        (failed({0: KeyError("text")}), "error", "(rank 0: 'text')"),
        (failed({0: PEER}), "error", "(rank 0: it lost the connection to another one)"),
        (failed({1: RuntimeError("CUDA out of memory. Tried to")}), "memory", "rank 1"),
        (ControllerError(WorkerGroupStartupFailedError("x")), "start", "died while it started"),
        (ControllerError(WorkerGroupStartupTimeoutError(2)), "no room", "no room for 2 workers now"),
        (ControllerError(ValueError("a bug")), "ours", "a bug"),
        (PreemptionError(PreemptionInfo(None, {"a": [1]})), "taken away", "a machine is taken away (ranks [1])"),
    ],
)
def test_failures_have_their_cause(error, cause, reason):
    failure = explain(error)
    assert (failure.cause, reason in failure.reason) == (cause, True), failure


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"count": 3}, "3 workers need 3 CPUs and this machine has 2: lower workers.count or workers.cpus"),
        ({"count": 2, "cpus": 1.5}, "2 workers need 3 CPUs"),
        ({"count": 1, "gpu": True}, "1 workers need 1 GPUs and this machine has 0"),
        ({"count": 4, "least": 3}, "3 workers need 3 CPUs and this machine has 2: lower workers.least or workers.cpus"),
    ],
)
def test_workers_that_will_never_fit_are_refused(workers, message):
    with pytest.raises(UserError, match=message):
        check_room(WorkersConfig.model_validate(workers), {"CPU": 2.0})


@pytest.mark.parametrize("workers", [{"count": 2}, {"count": 4, "least": 2}])
def test_workers_that_fit_are_not_refused(workers):
    check_room(WorkersConfig.model_validate(workers), {"CPU": 2.0})


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"count": 2, "least": 3}, "least 3 is more than count 2"),
        ({"count": 3, "sequence_parallel": 2}, "count 3 is no multiple of sequence_parallel 2"),
        ({"count": 4, "least": 1, "sequence_parallel": 2}, "least 1 is no multiple of sequence_parallel 2"),
        ({"max_failures": -2}, "max_failures"),
        ({"hang_timeout_s": 7200}, "must grow in this order"),
    ],
)
def test_workers_that_make_no_sense_are_refused(workers, message):
    with pytest.raises(ValueError, match=message):
        WorkersConfig.model_validate(workers)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two")
class TestRestarts:
    def test_whatever_ends_a_worker_is_borne_where_checkpoints_lie_between(self, tmp_path, capsys):
        ills = {1: "kill", 3: "freeze"}
        error = train(tmp_path, STEPS, ills, max_failures=1, hang_timeout_s=3, slow_timeout_s=60)
        assert error is None
        assert (Saved(tmp_path).steps(), groups(tmp_path)) == (STEPS, [2, 2, 2])
        first, second = read_restarts(tmp_path)
        assert [(r.step, r.in_a_row, r.rank) for r in (first, second)] == [(1, 1, 1), (3, 1, 1)]
        assert first.reason == "a training worker died (rank 1: its process ended)"
        frozen = int((tmp_path / "ill-3").read_text())
        assert f", pid {frozen}) has not been heard for " in second.reason
        assert not psutil.pid_exists(frozen)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == [str(restart) for restart in (first, second)]

    def test_what_cannot_heal_is_not_tried_for_ever(self, tmp_path):
        error = train(tmp_path, STEPS, {2: "memory", 3: "damage"}, max_failures=-1)
        assert isinstance(error, Failure)
        assert str(error) == "clip x is damaged"
        (restart,) = read_restarts(tmp_path)
        assert (restart.cause, restart.step, groups(tmp_path)) == ("memory", 2, [2, 2])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two")
def test_a_signal_saves_and_leaves(tmp_path, capsys):
    def send():
        while Saved(tmp_path).steps() < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    error = train(tmp_path, 10_000)
    assert error.exit_code == 128 + signal.SIGTERM
    told = f"stopped by SIGTERM with {Saved(tmp_path).steps()} steps saved; run the same command again to go on"
    assert str(error) == told
    assert groups(tmp_path) == [2]
    assert len(capsys.readouterr().err.splitlines()) == 1
