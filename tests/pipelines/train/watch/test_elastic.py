"""A cluster of two machines, one of which is lost, and another comes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from ray.cluster_utils import Cluster

from pipelines.train.watch.restarts import read_restarts, saved_steps
from pipelines.train.watch.stop import STOP, Stopped
from tests.pipelines.train.watch.walking import groups, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def cluster(monkeypatch):
    """Machines of one CPU each, all of them this one."""
    if ray.is_initialized():
        pytest.skip("a Ray of another test is up")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, logging_config=ray.LoggingConfig(log_level="ERROR"))
    yield made
    ray.shutdown()
    made.shutdown()


def test_training_goes_on_with_the_workers_that_are_left_and_grows_again(cluster, tmp_path):
    with ThreadPoolExecutor() as pool:
        training = pool.submit(train, tmp_path, steps=100_000, least=1, room_every_s=3)
        try:
            wait_until(lambda: saved_steps(tmp_path) >= 3, training)
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
