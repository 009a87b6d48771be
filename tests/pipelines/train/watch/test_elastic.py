"""Groups that shrink and grow: what is decided, and a cluster of two machines, one of which is lost, and another comes."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

from kineograph.ray_session import start_ray
from kineograph.store.checkpoints import COMPLETE, checkpoint_folder
from pipelines.train.ray_trainer import Elastic
from pipelines.train.watch.restarts import Saved, read_restarts
from pipelines.train.watch.stop import STOP, Stopped
from pipelines.train.workers import WorkersConfig
from tests.pipelines.train.watch.walking import groups, train

CPU = {"CPU": 1.0}


class TestDecisions:
    """Of a group of 4 to 8 workers, two of which share the tokens of a clip."""

    @pytest.fixture
    def decide(self, tmp_path, monkeypatch):
        """What is decided for a group of so many workers (0: none runs) where Ray has room for ``room``."""
        workers = WorkersConfig(count=8, least=4, sequence_parallel=2)
        scaling = ScalingConfig(num_workers=(4, 8), resources_per_worker=CPU, elastic_resize_monitor_interval_s=60)
        policy = Elastic(scaling, workers, tmp_path, Saved(tmp_path))
        monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)

        def decide(size, room):
            monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda self: {"a": {"CPU": room}})
            if not size:
                return policy.make_decision_for_non_running_worker_group()
            group = SimpleNamespace(num_workers=size, start_time=float("-inf"))
            return policy.make_decision_for_running_worker_group(group, None)

        return decide

    def save(self, run, step):
        checkpoint_folder(run, step).mkdir(parents=True)
        (checkpoint_folder(run, step) / COMPLETE).touch()

    @pytest.mark.parametrize(("room", "size"), [(4, 4), (5, 4), (7, 6), (9, 8)])
    def test_groups_are_multiples_of_those_that_share(self, decide, room, size):
        assert decide(0, room) == ResizeDecision(size, CPU)

    def test_too_little_room_is_waited_for(self, decide):
        assert decide(0, 3) == NoopDecision()

    def test_a_group_grows_after_its_next_checkpoint(self, decide, tmp_path):
        self.save(tmp_path, 10)
        assert [decide(4, 6), decide(4, 6)] == [NoopDecision(), NoopDecision()]
        assert read_restarts(tmp_path) == []
        self.save(tmp_path, 20)
        assert decide(4, 6) == ResizeDecision(6, CPU)
        (restart,) = read_restarts(tmp_path)
        assert str(restart) == "there is room for 6 workers; all start again from step 20"

    def test_but_not_into_room_that_is_gone_by_then(self, decide, tmp_path):
        decide(4, 6)
        self.save(tmp_path, 10)
        assert decide(4, 4) == NoopDecision()
        assert read_restarts(tmp_path) == []

    @pytest.mark.parametrize("room", [5, 3])
    def test_nor_for_a_part_of_those_that_share_and_it_never_shrinks_by_itself(self, decide, tmp_path, room):
        decide(4, room)
        self.save(tmp_path, 10)
        assert decide(4, room) == NoopDecision()

    def test_a_new_group_waits_for_a_checkpoint_of_its_own(self, decide, tmp_path):
        decide(4, 6)
        decide(0, 4)
        self.save(tmp_path, 10)
        assert decide(4, 6) == NoopDecision()


@pytest.fixture
def cluster(monkeypatch):
    """Machines of one CPU each, all of them this one."""
    of_others = ray.is_initialized()
    ray.shutdown()
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, logging_config=ray.LoggingConfig(log_level="ERROR"))
    yield made
    ray.shutdown()
    made.shutdown()
    if of_others:
        start_ray(2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_goes_on_with_the_workers_that_are_left_and_grows_again(cluster, tmp_path):
    with ThreadPoolExecutor() as pool:
        training = pool.submit(train, tmp_path, steps=100_000, least=1, room_every_s=3)
        try:
            wait_until(lambda: Saved(tmp_path).steps() >= 3, training)
            (lost,) = cluster.worker_nodes
            cluster.remove_node(lost, allow_graceful=False)
            wait_until(lambda: groups(tmp_path) == [2, 1], training)
            cluster.add_node(num_cpus=1)
            wait_until(lambda: groups(tmp_path) == [2, 1, 2], training)
        finally:
            (tmp_path / STOP).touch()
        assert isinstance(training.result(), Stopped)
    restarts = [r for r in read_restarts(tmp_path) if r.cause != "no room"]
    assert [r.in_a_row for r in restarts] == [1, 0]
    assert restarts[1].reason == "there is room for 2 workers"


def wait_until(is_true, training):
    while not is_true():
        assert not training.done(), training.result()
        time.sleep(0.1)
