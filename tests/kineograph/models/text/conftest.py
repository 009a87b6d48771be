"""Tiny models of each kind, saved as their libraries save them."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kineograph.models.torchvision_shim import ensure_torchvision_importable

WORDS = "a an the red green blue circle square moving left right up down cat dog on table".split()  # noqa: SIM905


def word_tokenizer(special, template):
    """A tokenizer of WORDS whose special tokens come first; the last of them stands for unknown words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    return tokenizer


def t5_tokenizer():
    ensure_torchvision_importable()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(["<pad>", "</s>", "<unk>"], "$A </s>"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def clip_tokenizer():
    """Pads with its end token, as OpenAI's does."""
    ensure_torchvision_importable()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(["<start>", "<end>"], "<start> $A <end>"),
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<end>",
    )


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    """A whole T5, decoder included: what is published."""
    tokenizer = t5_tokenizer()
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5+v1.1")  # a + in a folder's name joins nothing
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A whole CLIP, picture tower included, with 12 positions."""
    tokenizer = clip_tokenizer()
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **tower, "vocab_size": 32, "max_position_embeddings": 12,
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        vision_config={**tower, "image_size": 16, "patch_size": 8},
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 14, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory):
    """A CLIP as open_clip pushes it to the hub."""
    ensure_torchvision_importable()
    import open_clip

    folder = tmp_path_factory.mktemp("open_clip")
    torch.manual_seed(2)
    save_file(open_clip.CLIP(**OPEN_CLIP).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": {}}))
    return folder


class WordStates:
    """An encoder without weights: a word's states are drawn from its own text."""

    name = "words"
    max_tokens = 64

    def __init__(self, width=8, fingerprint="0" * 64):
        self.width = width
        self.fingerprint = fingerprint

    def encode(self, captions):
        return [self.states(caption) for caption in captions]

    def states(self, caption):
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in caption.split()]
        rows = [np.random.default_rng(seed).standard_normal(self.width) for seed in seeds]
        return np.array(rows, np.float16).reshape(-1, self.width)


@pytest.fixture(scope="session")
def small_tokenizer():
    """A tokenizer of 20 tokens that pads with 0 and ends with </s>."""
    return t5_tokenizer()


@pytest.fixture(scope="session")
def words():
    return WordStates
