"""Classifiers: a checkpoint with its labels, and videos of any size and length through it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file

from kineograph.errors import UserError
from kineograph.models.classifier import Classifier, ClassifierConfig, choose_frames, prepare, read_classifier
from kineograph.models.vae import to_unit_range
from kineograph.models.vit import ViTConfig
from kineograph.models.vivit import ViViTConfig
from kineograph.store.checkpoints import checkpoint_folder, seal

SHAPE = {"width": 16, "depth": 1, "heads": 2}
MODELS = {
    "vit": ViTConfig(size=(8, 12), patch=(4, 4), **SHAPE),
    "vivit": ViViTConfig(size=(8, 12), frames=4, patch=(2, 4, 4), temporal_depth=1, **SHAPE),
}


def make(kind, seed=0):
    """(config, model) with weights as large as trained ones."""
    torch.manual_seed(seed)
    config = ClassifierConfig(label="shape", labels=("circle", "square", "triangle"), model=MODELS[kind])
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return config, model


def save(run, step, config, model, /, **changes):
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    for name in ("model", "ema"):
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    text = json.dumps({**config.model_dump(mode="json"), "step": step, "recipe_digest": "ab", **changes})
    (folder / "config.json").write_text(text)
    seal(folder)
    return folder


def videos(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(params=["vit", "vivit"])
def kind(request):
    return request.param


@pytest.fixture
def classifier(kind):
    return Classifier(*make(kind))


def test_a_checkpoint_and_the_newest_of_a_run_are_loaded(kind, tmp_path):
    clips = videos((4, 8, 12))
    (config, old), (_, new) = make(kind), make(kind, seed=1)
    first = save(tmp_path, 10, config, old)
    save(tmp_path, 20, config, new)
    for path, model in ((first, old), (tmp_path, new)):
        loaded = Classifier.load(path)
        assert loaded.config == config
        np.testing.assert_array_equal(loaded.probabilities(clips), Classifier(config, model).probabilities(clips))


def test_clips_of_the_trained_size_go_through_unchanged():
    (clip,) = videos((4, 8, 12))
    config, model = make("vivit")
    with torch.inference_mode():
        x = to_unit_range(torch.from_numpy(clip))[None]
        logits, features = model(x), model.features(x)
    classifier = Classifier(config, model)
    np.testing.assert_allclose(classifier.probabilities([clip]), logits.softmax(1).numpy(), atol=1e-6)
    np.testing.assert_allclose(classifier.features([clip]), features.numpy(), atol=1e-6)


def test_an_image_model_gives_the_mean_of_the_frames_it_looks_at():
    (clip,) = videos((6, 8, 12))
    classifier = Classifier(*make("vit"))
    alone = classifier.probabilities([clip[i : i + 1] for i in range(6)])
    np.testing.assert_allclose(classifier.probabilities([clip]), alone.mean(0, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(classifier.probabilities([clip], frames=2), alone[[1, 4]].mean(0)[None], atol=1e-6)


def test_sizes_may_differ_and_the_batch_size_does_not_matter(classifier):
    clips = videos((4, 8, 12), (1, 20, 10), (9, 5, 40), (4, 8, 12))
    alone = np.concatenate([classifier.probabilities([clip]) for clip in clips])
    for size in (1, 3, 32):
        np.testing.assert_allclose(classifier.probabilities(clips, batch_size=size), alone, atol=1e-6)
    assert classifier.features(clips).shape == (4, 16)
    np.testing.assert_allclose(alone.sum(axis=1), 1, atol=1e-6)
    assert classifier.predict(clips) == [classifier.config.labels[i] for i in alone.argmax(1)]


@settings(deadline=None, max_examples=30)
@given(shape=st.tuples(st.integers(1, 12), st.integers(1, 30), st.integers(1, 30)), grey=st.integers(0, 255))
def test_a_plain_picture_stays_plain_at_any_size_and_length(shape, grey):
    video = np.full((*shape, 3), grey, np.uint8)
    for model, expected in (
        (MODELS["vit"], (min(shape[0], 8), 3, 8, 12)),
        (MODELS["vivit"], (1, 3, 4, 8, 12)),
    ):
        x = prepare(video, model)
        assert x.shape == expected
        torch.testing.assert_close(x, torch.full(expected, grey / 127.5 - 1), atol=1e-5, rtol=0)


def test_frames_are_shrunk_as_pil_does():
    (clip,) = videos((1, 33, 50))
    resized = np.asarray(Image.fromarray(clip[0]).resize((12, 8), Image.Resampling.BILINEAR), np.float32)
    ours = prepare(clip, MODELS["vit"])[0].permute(1, 2, 0)
    torch.testing.assert_close(
        ours, torch.from_numpy(resized / 127.5 - 1), atol=1.5 / 127.5, rtol=0
    )  # PIL rounds twice


@settings(deadline=None, max_examples=50)
@given(length=st.integers(1, 40), count=st.integers(1, 40))
def test_chosen_frames_are_in_order_and_leave_equal_gaps(length, count):
    chosen = choose_frames(np.arange(length), count)
    assert len(chosen) == count
    middles = (np.arange(count) + 0.5) / count * length
    assert (np.abs(chosen + 0.5 - middles) <= 0.5 + 1e-9).all()


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    config, model = make("vit")
    folder = save(tmp_path, 1, config, model, kind="diffusion")
    with pytest.raises(UserError, match="holds no classifier"):
        Classifier.load(folder)


@pytest.mark.parametrize(
    "changes", [{"labels": ["one"]}, {"labels": ["a", "a"]}, {"model": {"kind": "vit", "deep": 3}}]
)
def test_a_config_that_describes_no_classifier_is_one_line(tmp_path, changes):
    folder = save(tmp_path, 1, *make("vit"), **changes)
    with pytest.raises(UserError, match=r"config\.json does not describe") as error:
        read_classifier(folder)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_refused(tmp_path):
    config, model = make("vit")
    folder = save(tmp_path, 1, config, model, labels=["a", "b"])
    with pytest.raises(UserError, match="cannot be loaded") as error:
        Classifier.load(folder)
    assert "\n" not in str(error.value)


def test_what_is_no_video_is_refused(classifier):
    for wrong in (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="a video is uint8"):
            classifier.probabilities([wrong])


def test_a_misspelt_key_of_the_model_is_an_error():
    with pytest.raises(ValidationError, match="tubelet"):
        ClassifierConfig.model_validate({"label": "a", "labels": ["b", "c"], "model": {"kind": "vivit", "tubelet": 2}})
