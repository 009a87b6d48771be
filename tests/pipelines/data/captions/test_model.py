import shutil

import numpy as np
import pytest

from kineograph.errors import UserError
from pipelines.data.captions.config import CaptionModel
from pipelines.data.captions.model import MAX_CHARACTERS, ModelCaptioner, clean, folder_digest, pick
from pipelines.data.scores.base import ClipFrames

ASKED = {"prompt": "describe this", "still_prompt": "be brief", "max_new_tokens": 8, "frames": 3}


def clip(seed, frames=5, size=(40, 60)):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    scale = np.ones((1, size[0] // 4, size[1] // 6, 1), np.uint8)
    return ClipFrames(f"clip{seed}", "", tuple(np.kron(pictures, scale)))


CLIPS = [clip(0), clip(1, frames=1), clip(2, frames=2, size=(60, 36)), clip(3), clip(4, frames=9)]


@pytest.fixture(scope="module")
def captioner(llava):
    return ModelCaptioner(CaptionModel(model=str(llava), **ASKED))


@pytest.fixture(scope="module")
def captions(captioner):
    return captioner(CLIPS)


@pytest.mark.parametrize(
    ("number", "seen", "prompt"),
    [
        (0, (0, 2, 4), "user: <image> <image> <image> describe this assistant:"),
        (1, (0,), "user: <image> be brief assistant:"),
    ],
    ids=["a video", "a single frame, which has its own prompt"],
)
def test_a_caption_is_what_the_model_itself_generates_for_the_clip(llava, captions, number, seen, prompt):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(llava)
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    shown = [CLIPS[number].frames[i] for i in seen]
    inputs = processor(text=[prompt], images=[shown], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer
    assert captions[number]["caption"] == answer


def test_different_clips_get_different_captions(captions):
    assert len({c["caption"] for c in captions}) > 1


def test_the_caption_does_not_depend_on_what_else_is_in_the_batch(captioner, captions):
    assert [captioner([one])[0] for one in CLIPS] == captions
    assert captioner(CLIPS[::-1]) == captions[::-1]


def test_a_caption_names_its_source_and_the_model_by_its_content(captions, llava, tmp_path):
    assert captions[0]["caption_source"] == "model"
    name, _, digest = captions[0]["caption_model"].partition("@")
    assert name == "tiny-llava"
    assert folder_digest(llava).startswith(digest)
    assert len(digest) == 16
    other = shutil.copytree(llava, tmp_path / "other")
    assert folder_digest(other) == folder_digest(llava)
    (other / "generation_config.json").write_text("{}")
    assert folder_digest(other) != folder_digest(llava)


def test_what_the_system_says_changes_the_answer(llava, captions):
    told = ModelCaptioner(CaptionModel(model=str(llava), system="word1 word2", **ASKED))
    assert told(CLIPS) != captions


def test_a_video_model_sees_the_frames_as_one_video(qwen):
    config = CaptionModel(model=str(qwen), content="video", batch_size=2, **ASKED)
    captioner = ModelCaptioner(config)
    together = captioner(CLIPS)
    assert all(c["caption"] for c in together)
    assert [captioner([one])[0] for one in CLIPS] == together


def test_a_silent_model_gives_no_caption(llava, tmp_path):
    import torch
    from transformers import LlavaForConditionalGeneration

    mute = shutil.copytree(llava, tmp_path / "mute")
    model = LlavaForConditionalGeneration.from_pretrained(mute)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all words are equal, so the first wins: padding
    model.save_pretrained(mute)
    captioner = ModelCaptioner(CaptionModel(model=str(mute), **ASKED))
    assert captioner(CLIPS[:1]) == [{"caption": "", "caption_source": "", "caption_model": ""}]


def test_no_clips_no_captions(captioner):
    assert captioner([]) == []


@pytest.mark.parametrize(
    ("model", "says"),
    [("./no/such/folder", "there is no folder"), ("kineograph-tests/no-such-model", "cannot be loaded")],
)
def test_a_model_that_is_not_there_is_one_line(model, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=says) as error:
        ModelCaptioner(CaptionModel(model=model))
    assert "\n" not in str(error.value)


def test_pickled_weights_are_refused(llava, tmp_path):
    import torch

    old = shutil.copytree(llava, tmp_path / "old")
    (old / "model.safetensors").unlink()
    torch.save({}, old / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        ModelCaptioner(CaptionModel(model=str(old)))


def test_a_device_that_is_not_there_is_one_line(llava):
    with pytest.raises(UserError, match="cannot be loaded"):
        ModelCaptioner(CaptionModel(model=str(llava), device="cuda:63"))


def test_a_picture_model_asked_for_video_says_what_to_set(llava):
    with pytest.raises(UserError, match="content: images"):
        ModelCaptioner(CaptionModel(model=str(llava), content="video"))


def test_frames_are_chosen_evenly():
    frames = [np.full((2, 2, 3), i, np.uint8) for i in range(9)]
    assert [f[0, 0, 0] for f in pick(frames, 3)] == [0, 4, 8]
    assert [f[0, 0, 0] for f in pick(frames, 1)] == [4]
    assert len(pick(frames, 20)) == 9


def test_an_answer_becomes_one_line():
    assert clean(" A red\n\ncircle\tmoves.\x00\u2028 ") == "A red circle moves."
    assert len(clean("word " * 1000)) <= MAX_CHARACTERS
    assert clean(" \n ") == ""
