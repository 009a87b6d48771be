"""Tiny vision-language models of real architectures with random weights, as save_pretrained writes them."""

import pytest

from kineograph.models.torchvision_shim import ensure_torchvision_importable

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
QWEN = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
WORDS = ["system:", "user:", "assistant:", "describe", "this", "be", "brief", *(f"word{i}" for i in range(60))]
TEMPLATE = """{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] -%}
{% if c['type'] == 'text' %}{{ c['text'] }} {% else %}<image> {% endif %}{% endfor %}{% endfor -%}
{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="session")
def tokenizer():
    ensure_torchvision_importable()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({word: i for i, word in enumerate(SPECIAL + QWEN + WORDS)}, unk_token="<unk>")
    inner = Tokenizer(words)
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=[*SPECIAL[4:], *QWEN], **names)


@pytest.fixture(scope="session")
def llava(tokenizer, tmp_path_factory):
    """The folder of a Llava that is shown pictures, 4 tokens each."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=28, patch_size=14),
        text_config=LlamaConfig(**shape, vocab_size=len(tokenizer), bos_token_id=2, eos_token_id=3, pad_token_id=0),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # at its initial scale a random model answers nearly the same to everything
        for weight in model.parameters():
            weight.mul_(8)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return _saved(tmp_path_factory.mktemp("vlm") / "tiny-llava", model, processor)


@pytest.fixture(scope="session")
def qwen(tokenizer, tmp_path_factory):
    """The folder of a Qwen2-VL that is shown a video."""
    import torch
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    names = {name.strip("<|>").removesuffix("_pad"): tokenizer.convert_tokens_to_ids(name) for name in QWEN}
    config = Qwen2VLConfig(
        text_config={
            **text,
            "vocab_size": len(tokenizer),
            "num_key_value_heads": 2,
            "rope_parameters": rope,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "pad_token_id": 0,
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 14},
        **{f"{name}_token_id": number for name, number in names.items()},
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=TEMPLATE.replace("<image>", "<|vision_start|> <|{{ c['type'] }}_pad|> <|vision_end|>"),
    )
    return _saved(tmp_path_factory.mktemp("vlm") / "tiny-qwen", model, processor)


def _saved(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
