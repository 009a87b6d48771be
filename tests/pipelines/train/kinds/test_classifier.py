"""Kind classifier: labels of clips are learned, the checkpoint is a classifier that others load."""

import json

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from kineograph.errors import RecipeError, UserError
from kineograph.models.classifier import Classifier
from kineograph.store.checkpoints import latest_checkpoint, read_config
from pipelines.train.kinds.classifier.augment import augment
from pipelines.train.kinds.classifier.config import AugmentConfig
from pipelines.train.kinds.classifier.confusion import confusion_matrix, draw_confusion
from pipelines.train.pipeline import check_resume, plan, train
from pipelines.train.preflight import preflight_text
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.runs import Run
from tests.pipelines.train.steps import batch, part

RECIPE = {
    "kind": "classifier",
    "steps": 4,
    "label": {"truth": "shape"},
    "model": {"kind": "vit", "size": [32, 32], "patch": [8, 8], "width": 16, "depth": 1, "heads": 2},
    "batch": {"videos": 3, "images": 3},
    "optimizer": {"warmup_steps": 1},
    "data": {"validation_share": 0.2},
    "checkpoint": {"every": 2},
    "tracking": {"log_every": 1},
}
VIVIT = {"kind": "vivit", "size": [32, 32], "frames": 9, "patch": [3, 8, 8], "width": 16, "depth": 1, "heads": 2}


def config(**parts):
    return parse_train_recipe({**RECIPE, **parts})


def opened(data, run, **parts):
    return open_kind(config(**parts), data, run, on_rank=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestTrained:
    @pytest.fixture(scope="class")
    def run(self, dataset, tmp_path_factory):
        run = Run(tmp_path_factory.mktemp("classifier"), RECIPE, dataset)
        assert run.train(world=1, steps=2).saved() == 2
        assert run.train(world=1).saved() == 4  # it goes on
        assert train(config(), dataset, run.path)["step"] == 4
        return run.path

    def test_the_checkpoint_is_a_classifier(self, run, dataset):
        classifier = Classifier.load(run)
        assert classifier.config.label == "shape"
        assert classifier.config.labels == opened(dataset, run).names
        assert classifier.probabilities([np.zeros((9, 32, 32, 3), np.uint8)]).sum() == pytest.approx(1)

    def test_it_is_graded_on_held_out_clips(self, run):
        state = json.loads((run / "train.json").read_text())
        assert 0 <= state["validation"]["validation_accuracy"] <= 1
        client = MlflowClient(tracking_uri=f"sqlite:///{run.parent}/mlflow.db")
        assert [m.step for m in client.get_metric_history(state["mlflow"]["run_id"], "validation_loss")] == [2, 4]
        assert any("confusion" in f.path for f in client.list_artifacts(state["mlflow"]["run_id"], "images"))

    def test_every_step_says_loss_and_accuracy(self, run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert all({"loss", "accuracy"} <= row.keys() for row in rows)

    def test_other_labels_do_not_go_on(self, run, dataset):
        with pytest.raises(UserError, match="cannot go on from step 4: label is colour, it was shape"):
            check_resume(open_kind(config(label={"truth": "colour"}), dataset, run))

    def test_another_kind_does_not_go_on(self, run, dataset):
        with pytest.raises(UserError, match="it is of kind classifier, the recipe of kind diffusion"):
            check_resume(open_kind(parse_train_recipe({"steps": 100, "data": RECIPE["data"]}), dataset, run))

    def test_another_classifier_starts_from_it(self, run, dataset, tmp_path):
        kind = opened(dataset, tmp_path, start=str(run), label={"truth": "colour"})
        model = kind.build()
        kind.start(model)
        theirs = Classifier.load(run).model
        assert torch.equal(model.encoder.positions, theirs.encoder.positions)

    def test_a_video_classifier_takes_its_spatial_part(self, run, dataset, tmp_path):
        kind = opened(dataset, tmp_path, start=str(run), model=VIVIT)
        model = kind.build()
        kind.start(model)
        assert torch.equal(model.spatial.norm.weight, Classifier.load(run).model.encoder.norm.weight)

    def test_one_of_another_shape_is_refused_before_the_start(self, run, dataset, tmp_path):
        wide = {**RECIPE["model"], "width": 32}
        with pytest.raises(UserError, match="the model to start from has width 16, this one 32"):
            plan(config(start=str(run), model=wide), dataset, tmp_path / "train")

    def test_its_config_says_what_it_is(self, run):
        assert read_config(latest_checkpoint(run))["kind"] == "classifier"


def test_the_plan_counts_the_clips_of_every_class(dataset, tmp_path):
    facts = plan(config(), dataset, tmp_path / "train")
    assert sum(facts["classes"].values()) == facts["training_clips"]
    assert facts["reads"].startswith("images and frames of 3 classes of shape")


def test_clips_without_a_label_are_left_out_and_counted(dataset, tmp_path):
    """A still has no direction."""
    facts = plan(config(label={"truth": "direction"}, data={"validation_share": 0.0}), dataset, tmp_path / "train")
    assert all(not row["bucket"].endswith("x1") for row in facts["buckets"])
    assert f"{facts['unlabelled']} clips have no direction and are left out" in preflight_text(facts)


@pytest.mark.parametrize("media", ["images", "videos"])
def test_only_the_media_asked_for_are_used(dataset, tmp_path, media):
    kind = opened(dataset, tmp_path, media=media)
    assert {bucket.is_image for bucket in kind.plan.buckets} == {media == "images"}


def test_a_video_classifier_takes_videos_alone(dataset, tmp_path):
    kind = opened(dataset, tmp_path, model=VIVIT)
    assert not any(bucket.is_image for bucket in kind.plan.buckets)
    assert part(kind)[0].shape == (3, 3, 9, 32, 32)


def test_a_batch_does_not_depend_on_who_loads_it(dataset, tmp_path):
    kind = opened(dataset, tmp_path, augment={"crop": 0.5, "flip": True})
    whole, slots, _ = part(kind, 1)
    last = batch(opened(dataset, tmp_path, augment={"crop": 0.5, "flip": True}), slots[2:])
    assert torch.equal(whole[2:], last)


def test_the_loss_is_cross_entropy_with_smoothed_targets(dataset, tmp_path):
    kind = opened(dataset, tmp_path, label_smoothing=0.3)
    inputs, slots, plan = part(kind)
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    losses = kind.losses(lambda _: logits, inputs, slots, plan)
    classes = torch.tensor([kind.class_of(slot.address) for slot in slots])
    target = torch.nn.functional.one_hot(classes, 3) * 0.7 + 0.1
    torch.testing.assert_close(losses.total, -(target * logits.log_softmax(1)).sum(1))
    assert losses.parts["accuracy"].tolist() == (logits.argmax(1) == classes).float().tolist()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"label": {"truth": "direction"}, "augment": {"flip": True}}, "augment.flip=false"),
        ({"model": VIVIT, "media": "images"}, "media=videos"),
        ({"label": {}}, "give either column or truth"),
        ({"modle": {}}, "did you mean 'model'"),
        ({"model": {"kind": "vivit", "frame": 3}}, "unknown key 'model.frame'; did you mean 'model.frames'"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line(parts, message):
    with pytest.raises(RecipeError, match=message) as error:
        config(**parts)
    assert "\n" not in str(error.value)


def test_a_column_that_is_not_there_is_named_with_those_that_are(dataset, tmp_path):
    with pytest.raises(UserError, match=r"none of .* clips has a label in column 'mood'"):
        plan(config(label={"column": "mood"}), dataset, tmp_path)


class TestAugment:
    VIDEO = np.random.default_rng(0).integers(0, 256, (4, 12, 20, 3), np.uint8)

    def test_by_default_a_clip_is_as_it_is(self):
        assert augment(self.VIDEO, AugmentConfig(), "key") is not None
        assert np.array_equal(augment(self.VIDEO, AugmentConfig(), "key"), self.VIDEO)

    def test_a_crop_is_a_window_of_at_least_the_share_asked_for(self):
        for key in range(20):
            cropped = augment(self.VIDEO, AugmentConfig(crop=0.5), key)
            height, width = cropped.shape[1:3]
            assert 6 <= height <= 12
            assert 10 <= width <= 20
            windows = np.lib.stride_tricks.sliding_window_view(self.VIDEO[0], (height, width, 3))
            assert (windows == cropped[0]).all((-3, -2, -1)).any()

    def test_half_of_the_clips_are_mirrored(self):
        flips = [not np.array_equal(augment(self.VIDEO, AugmentConfig(flip=True), k), self.VIDEO) for k in range(200)]
        assert 70 <= sum(flips) <= 130  # 4 sigma about 100


class TestConfusion:
    def test_rows_are_the_truth(self):
        counts = confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
        assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]

    def test_it_is_a_picture(self):
        picture = draw_confusion(np.eye(3, dtype=np.int64), ["circle", "square", "triangle"])
        assert min(picture.size) > 100
        assert len(picture.getcolors(1 << 24)) > 10
