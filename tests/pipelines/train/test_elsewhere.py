"""`kineo train` with its dataset and its checkpoints in an object store: a new machine goes on where one was lost."""

import json

import pytest

from kineograph.store.checkpoints import checkpoint_folder, find_fault
from pipelines.train.saving.depot import Depot
from tests.kineograph.store.s3 import s3, s3_server  # noqa: F401
from tests.pipelines.train.conftest import Training

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def machine(s3, dataset, recipe, tmp_path):  # noqa: F811
    """Train so many steps on a machine that has nothing yet; and the place of the checkpoints."""
    put, options = s3
    settings = {
        "samples.prompts": [],
        "workers.count": 1,
        "costs.source": "measured",
        "checkpoint.upload": "s3://bkt/train",
        "checkpoint.every": 5,
        "data.storage_options": options,
        "checkpoint.storage_options": options,
    }
    data = put(dataset, "data")

    def train(name, steps):
        (tmp_path / name).mkdir()
        sets = [f"--set={key}={json.dumps(value)}" for key, value in {**settings, "steps": steps}.items()]
        with Training(recipe, data, tmp_path / name / "train", *sets) as training:
            assert training.wait() == 0, training.log
            return training

    return train, Depot("s3://bkt/train", options)


def test_a_new_machine_goes_on_from_the_copies(machine):
    train, depot = machine
    first = train("first", 10)
    assert depot.steps() == [5, 10]
    second = train("second", 15)
    assert "fetching checkpoint s3://bkt/train/checkpoints/step-00000010" in second.log
    assert "starting 1 workers at step 10" in second.log
    assert second.log.count("MLflow does not have run") == 1  # the first machine's store is not here
    assert "credentials" not in first.log + second.log  # remarks of libraries
    assert metrics(second.run)[:10] == metrics(first.run)
    assert [row["step"] for row in metrics(second.run)] == list(range(1, 16))
    assert find_fault(checkpoint_folder(second.run, 15)) == ""
    assert depot.steps() == [5, 10, 15]

    costs = json.loads((second.run / "costs.json").read_text())
    assert costs == json.loads((first.run / "costs.json").read_text())
    assert costs["source"] == "measured on this CPU"
    assert all(cost["clip_s"] > 0 and cost["clip_bytes"] > 0 for cost in costs["buckets"].values())
    assert "a step (measured on this CPU)" in second.log


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
