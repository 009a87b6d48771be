"""CLIP on clips: a tiny model, saved and loaded as a real one, against calling open_clip directly."""

import json
import pickle
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from kineograph.errors import UserError
from kineograph.models.torchvision_shim import ensure_torchvision_importable
from pipelines.data.scores.base import ClipFrames
from pipelines.data.scores.clip import ClipModel, ClipScorer, load_head

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def open_clip():
    ensure_torchvision_importable()
    import open_clip

    return open_clip


@pytest.fixture(scope="module")
def tiny(open_clip, tmp_path_factory):
    """(folder with weights.safetensors and weights.pt, the model); the architecture is known as tiny-clip."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip").eval()
    for parameter in model.visual.parameters():
        parameter.data.mul_(4)  # fresh weights see little difference between pictures
    save_file(model.state_dict(), folder / "weights.safetensors")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder, model


def config(tiny, **changes):
    return ClipModel(
        **{"model": "tiny-clip", "pretrained": str(tiny[0] / "weights.safetensors"), "frames": 6, **changes}
    )


@pytest.fixture(scope="module")
def scorer(tiny):
    return ClipScorer(config(tiny))


def normalised(vectors):
    return nn.functional.normalize(vectors, dim=-1)


@torch.inference_mode()
def direct(open_clip, tiny, frames, caption):
    """(normalised embeddings of the frames (T, D), of the caption (D,)), by open_clip's own functions."""
    model = tiny[1]
    preprocess = open_clip.image_transform(32, is_train=False)
    images = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
    tokens = open_clip.get_tokenizer("tiny-clip")([caption])
    return model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)[0]


def test_embedding_and_match_are_what_open_clip_gives(open_clip, tiny, scorer, bikes):
    frames, text = direct(open_clip, tiny, bikes.frames, bikes.caption)
    mean = normalised(frames.mean(dim=0))
    (result,) = scorer([bikes])
    assert result["embedding"].dtype == np.float32
    np.testing.assert_allclose(result["embedding"], mean.numpy(), atol=1e-6)
    assert result["caption_match"] == pytest.approx(float(mean @ text), abs=1e-6)
    assert np.isnan(result["aesthetic"])


def test_fewer_frames_are_evenly_chosen(open_clip, tiny, bikes):
    frames, _ = direct(open_clip, tiny, [bikes.frames[i] for i in (1, 4)], "")
    (result,) = ClipScorer(config(tiny, frames=2))([bikes])
    np.testing.assert_allclose(result["embedding"], normalised(frames.mean(dim=0)).numpy(), atol=1e-6)


def test_the_batch_size_and_the_company_do_not_matter(tiny, scorer, bikes, carphone, noise):
    alone = [scorer([clip])[0] for clip in (bikes, carphone, noise)]
    for size in (1, 4, 64):
        together = ClipScorer(config(tiny, batch_size=size))([bikes, carphone, noise])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)
            assert one["caption_match"] == pytest.approx(other["caption_match"], abs=1e-5, nan_ok=True)
    assert alone[0]["embedding"] @ alone[2]["embedding"] < 0.999


def test_captions_made_later_are_matched_on_stored_embeddings(scorer, bikes, carphone, noise):
    clips = [bikes, carphone, noise]
    results = scorer(clips)
    later = scorer.match([clip.caption for clip in clips], [result["embedding"] for result in results])
    assert later == pytest.approx([result["caption_match"] for result in results], abs=1e-6, nan_ok=True)
    assert np.isnan(later[2])  # it has no caption
    assert scorer.match([], []) == []
    assert scorer([]) == []


@pytest.mark.parametrize("source", ["pt", "local-dir"])
def test_all_ways_to_name_the_same_weights_give_the_same_embedding(source, tiny, scorer, bikes, tmp_path):
    named = {"pretrained": str(tiny[0] / "weights.pt")}
    if source == "local-dir":
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
        (tmp_path / "model.safetensors").write_bytes((tiny[0] / "weights.safetensors").read_bytes())
        named = {"model": f"local-dir:{tmp_path}"}
    (other,) = ClipScorer(config(tiny, **named))([bikes])
    np.testing.assert_array_equal(other["embedding"], scorer([bikes])[0]["embedding"])


def test_a_linear_aesthetic_head_is_a_dot_product_on_each_frame(open_clip, tiny, bikes, tmp_path):
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(1, 24)).astype(np.float32), np.float32(5)
    tensors = {"weight": torch.from_numpy(weight), "bias": torch.tensor([bias])}
    save_file(tensors, tmp_path / "head.safetensors")
    torch.save(tensors, tmp_path / "head.pth")
    frames, _ = direct(open_clip, tiny, bikes.frames, "")
    expected = (frames.numpy() @ weight[0] + bias).mean()
    for name in ("head.safetensors", "head.pth"):
        (result,) = ClipScorer(config(tiny, aesthetic_head=str(tmp_path / name)))([bikes])
        assert result["aesthetic"] == pytest.approx(expected, abs=1e-5)


def test_a_head_of_several_linear_layers_is_folded_into_one(tmp_path):
    # Shaped and named as in improved-aesthetic-predictor: dropout takes up the missing numbers.
    sizes, places = (24, 40, 20, 12, 8, 1), (0, 2, 4, 6, 7)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    state = {
        f"layers.{at}.{k}": v for at, layer in zip(places, layers, strict=True) for k, v in layer.state_dict().items()
    }
    torch.save(OrderedDict(reversed(state.items())), tmp_path / "mlp.pth")
    weight, bias = load_head(str(tmp_path / "mlp.pth"), width=24)
    x = torch.randn(5, 24)
    np.testing.assert_allclose(x.numpy() @ weight + bias, nn.Sequential(*layers)(x)[:, 0].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(("shape", "message"), [((1, 768), "for another model"), ((3, 24), "no aesthetic head")])
def test_a_head_of_the_wrong_shape_is_one_line(shape, message, tiny, tmp_path):
    save_file({"weight": torch.zeros(shape), "bias": torch.zeros(shape[0])}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match=message):
        ClipScorer(config(tiny, aesthetic_head=str(tmp_path / "head.safetensors")))


class Opens:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["pretrained", "aesthetic_head"])
def test_code_in_a_weights_file_is_not_run(place, tiny, tmp_path):
    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps({"weight": Opens(tmp_path / "was_here")}, protocol=2))
    with pytest.raises(UserError) as error:
        ClipScorer(config(tiny, **{place: str(evil)}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "ViT-B-23"}, "no model 'ViT-B-23'; near it are: .*ViT-B-32"),
        ({"pretrained": "no/such/file.pt"}, "neither a file nor a tag of tiny-clip"),
        ({"pretrained": None}, "random weights: give pretrained"),
        ({"model": "local-dir:no/such/folder"}, "cannot load CLIP local-dir:no/such/folder"),
        ({"aesthetic_head": "no/such/head.pth"}, "there is no aesthetic head no/such/head.pth"),
        ({"device": "cuda:63"}, "cannot load CLIP tiny-clip"),
        ({"model": "ViT-B-32"}, "cannot load CLIP ViT-B-32 with"),  # weights of another architecture
    ],
)
def test_what_cannot_be_loaded_is_one_line(changes, message, tiny):
    with pytest.raises(UserError, match=message) as error:
        ClipScorer(config(tiny, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "named", [{"model": "hf-hub:nobody/nothing"}, {"model": "ViT-B-32", "pretrained": "laion2b_e16"}]
)
def test_without_the_hub_a_local_file_is_asked_for(named, offline, capfd):
    with pytest.raises(UserError, match="give an architecture and a local file"):
        ClipScorer(ClipModel(**named))
    assert capfd.readouterr().err == ""


def test_a_clip_of_one_small_frame_is_embedded(scorer):
    (result,) = scorer([ClipFrames("photo", "a wall", (np.full((20, 30, 3), 90, np.uint8),))])
    assert np.linalg.norm(result["embedding"]) == pytest.approx(1, abs=1e-6)
