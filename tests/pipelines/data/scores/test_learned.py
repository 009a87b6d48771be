"""A classifier of one's own as a filter: tiny ViT and ViViT checkpoints, of transformers and of 'kineo train', against
calling the model directly."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kineograph.errors import UserError
from kineograph.models.classifier import ClassifierConfig
from kineograph.models.torchvision_shim import ensure_torchvision_importable
from kineograph.models.vit import ViTConfig
from kineograph.models.vivit import ViViTConfig
from kineograph.store.checkpoints import checkpoint_folder, seal
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.learned import Learned, LearnedScorer

SHAPE = {
    "image_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.3,
}
LABELS = {0: "dull", 1: "watermark", 2: "screen"}


@pytest.fixture(scope="module", autouse=True)
def transformers():
    ensure_torchvision_importable()
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def vit(transformers, tmp_path_factory):
    """(folder with its preprocessing, the model)."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = transformers.ViTConfig(patch_size=8, id2label=LABELS, label2id={v: k for k, v in LABELS.items()}, **SHAPE)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3).save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def vivit(transformers, tmp_path_factory):
    """(folder without preprocessing, the model of 4 frames)."""
    folder = tmp_path_factory.mktemp("vivit")
    torch.manual_seed(1)
    config = transformers.VivitConfig(
        num_frames=4, tubelet_size=[2, 8, 8], id2label=LABELS, label2id={v: k for k, v in LABELS.items()}, **SHAPE
    )
    model = transformers.VivitForVideoClassification(config).eval()
    model.save_pretrained(folder)
    return folder, model


def direct(model, pixels):
    with torch.inference_mode():
        return model(pixel_values=pixels).logits.softmax(dim=-1)


def squeezed(frames):
    """The documented default preprocessing, by PIL: (T, 3, 32, 32)."""
    from PIL import Image

    arrays = [np.asarray(Image.fromarray(f).resize((32, 32), Image.Resampling.BILINEAR), np.float32) for f in frames]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1


def learned(scorer, *clips):
    return [result["learned"] for result in scorer(clips)]


def test_an_image_model_gives_the_mean_of_its_frames_after_its_own_preprocessing(transformers, vit, bikes):
    folder, model = vit
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(list(bikes.frames), return_tensors="pt")
    expected = direct(model, pixels["pixel_values"])[:, 1].mean().item()
    assert learned(LearnedScorer(Learned(model=str(folder), label="watermark")), bikes) == [
        pytest.approx(expected, abs=1e-6)
    ]


def test_a_video_model_sees_as_many_frames_as_it_was_trained_on(vivit, bikes, noise):
    folder, model = vivit
    six, three = bikes.frames, noise.frames
    expected = [
        direct(model, squeezed([six[i] for i in (0, 2, 3, 5)])[None])[0, 2].item(),
        direct(model, squeezed([three[i] for i in (0, 1, 1, 2)])[None])[0, 2].item(),
    ]
    scorer = LearnedScorer(Learned(model=str(folder), label=2))
    assert learned(scorer, bikes, noise) == pytest.approx(expected, abs=1e-6)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_a_video_models_own_preprocessing_is_used(transformers, vivit, bikes, tmp_path):
    folder, model = vivit
    model.save_pretrained(tmp_path)
    processor = transformers.VivitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    pixels = processor([[bikes.frames[i] for i in (0, 2, 3, 5)]], return_tensors="pt")["pixel_values"]
    (score,) = learned(LearnedScorer(Learned(model=str(tmp_path), label=0)), bikes)
    assert score == pytest.approx(direct(model, pixels)[0, 0].item(), abs=1e-6)
    assert abs(score - learned(LearnedScorer(Learned(model=str(folder), label=0)), bikes)[0]) > 1e-4


@pytest.mark.parametrize("kind", ["vit", "vivit"])
def test_the_batch_size_does_not_matter(kind, request, bikes, carphone, noise):
    folder, _ = request.getfixturevalue(kind)
    scores = [
        learned(LearnedScorer(Learned(model=str(folder), label=0, batch_size=size)), bikes, carphone, noise)
        for size in (1, 4, 64)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert len(set(scores[0])) == 3


def test_the_probabilities_of_all_labels_add_up_to_one(vit, bikes):
    total = sum(learned(LearnedScorer(Learned(model=str(vit[0]), label=name)), bikes)[0] for name in LABELS.values())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("label", ["logo", 3, "7"])
def test_a_label_that_the_model_lacks_is_answered_with_those_it_has(vit, label):
    with pytest.raises(UserError, match=r"no label .*dull, watermark, screen$"):
        LearnedScorer(Learned(model=str(vit[0]), label=label))


def test_pickled_weights_are_refused(vit, tmp_path):
    vit[1].config.save_pretrained(tmp_path)
    torch.save(vit[1].state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        LearnedScorer(Learned(model=str(tmp_path), label=0))


def test_weights_without_a_trained_head_are_refused(vit, tmp_path):
    weights = load_file(vit[0] / "model.safetensors")
    vit[1].config.save_pretrained(tmp_path)
    headless = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(headless, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"no trained classifier: its weights lack classifier\.bias"):
        LearnedScorer(Learned(model=str(tmp_path), label=0))


def test_damaged_weights_and_folders_that_hold_no_classifier_are_one_line(transformers, vit, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        LearnedScorer(Learned(model=str(tmp_path), label=0))
    vit[1].config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 torn")
    with pytest.raises(UserError, match="cannot load the classifier") as error:
        LearnedScorer(Learned(model=str(tmp_path), label=0))
    assert "\n" not in str(error.value)
    transformers.BertConfig(hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a bert, which classifies neither"):
        LearnedScorer(Learned(model=str(tmp_path), label=0))


def test_a_hub_name_without_the_hub_asks_for_a_folder(offline):
    with pytest.raises(UserError, match="give the path of a folder"):
        LearnedScorer(Learned(model="nobody/nothing", label=0))


def test_a_device_that_is_not_there_is_one_line(vit):
    with pytest.raises(UserError, match="cannot load the classifier"):
        LearnedScorer(Learned(model=str(vit[0]), label=0, device="cuda:63"))


def test_a_clip_of_one_small_frame_is_scored(vit, vivit):
    photo = ClipFrames("photo", "", (np.full((20, 30, 3), 90, np.uint8),))
    for folder, _ in (vit, vivit):
        (score,) = learned(LearnedScorer(Learned(model=str(folder), label=0)), photo)
        assert 0 < score < 1


TRAINED = {
    "vit": ViTConfig(size=(32, 32), patch=(8, 8), width=16, depth=2, heads=2),
    "vivit": ViViTConfig(size=(32, 32), frames=4, patch=(2, 8, 8), width=16, depth=2, heads=2, temporal_depth=1),
}


def train(run, kind, step=1, seed=0):
    """(the model, its checkpoint folder in ``run``), of random weights."""
    config = ClassifierConfig(label="quality", labels=tuple(LABELS.values()), model=TRAINED[kind])
    torch.manual_seed(seed)
    model = config.build().eval()
    torch.nn.init.normal_(model.head.weight)
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "ema.safetensors")
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    seal(folder)
    return model, folder


def test_a_trained_image_classifier_gives_the_mean_of_evenly_chosen_frames(tmp_path, bikes):
    model, folder = train(tmp_path, "vit")
    with torch.inference_mode():
        expected = model(squeezed([bikes.frames[i] for i in (0, 2, 3, 5)])).softmax(1)[:, 1].mean().item()
    (score,) = learned(LearnedScorer(Learned(model=str(folder), label="watermark", frames=4)), bikes)
    assert score == pytest.approx(expected, abs=2e-3)  # PIL rounds what it resizes to 8 bits


def test_a_trained_video_classifier_sees_as_many_frames_as_it_was_trained_on(tmp_path, bikes):
    model, folder = train(tmp_path, "vivit")
    with torch.inference_mode():
        video = squeezed([bikes.frames[i] for i in (0, 2, 3, 5)]).transpose(0, 1)[None]
        expected = model(video).softmax(1)[0, 2].item()
    (score,) = learned(LearnedScorer(Learned(model=str(folder), label=2)), bikes)
    assert score == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("kind", TRAINED)
def test_clips_of_any_size_are_scored_alike_in_any_batch(tmp_path, kind, bikes, carphone, noise):
    _, folder = train(tmp_path, kind)
    scores = [
        learned(LearnedScorer(Learned(model=str(folder), label=0, batch_size=size)), bikes, carphone, noise)
        for size in (1, 2, 64)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert len(set(scores[0])) == 3


def test_of_a_training_run_the_newest_checkpoint_is_used(tmp_path, bikes):
    train(tmp_path, "vit", step=1)
    _, newest = train(tmp_path, "vit", step=2, seed=1)
    by_run, by_folder = (
        learned(LearnedScorer(Learned(model=str(path), label=0)), bikes) for path in (tmp_path, newest)
    )
    assert by_run == by_folder


def test_a_trained_classifier_without_the_label_says_which_it_has(tmp_path):
    train(tmp_path, "vit")
    with pytest.raises(UserError, match=r"no label 'logo'.*dull, watermark, screen$"):
        LearnedScorer(Learned(model=str(tmp_path), label="logo"))


def test_a_checkpoint_that_is_no_classifier_or_is_damaged_is_one_line(tmp_path):
    _, folder = train(tmp_path, "vit")
    (folder / "config.json").write_text(json.dumps({"kind": "diffusion"}))
    with pytest.raises(UserError, match="is damaged") as error:
        LearnedScorer(Learned(model=str(folder), label=0))
    assert "\n" not in str(error.value)
    seal(folder)
    with pytest.raises(UserError, match="holds no classifier"):
        LearnedScorer(Learned(model=str(folder), label=0))
