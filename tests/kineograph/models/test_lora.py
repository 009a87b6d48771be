"""Adapters of low rank: what they compute, what is trained, and that nothing else knows of them."""

import pytest
import torch
from torch import nn

from kineograph.errors import UserError
from kineograph.models.execution import ExecutionConfig, prepare
from kineograph.models.lora import LoRAConfig, LoRALinear, add_lora, lora_state, merged_state
from kineograph.models.stdit import STDiT, STDiTConfig
from kineograph.models.vit import ViT, ViTConfig

CONFIG = LoRAConfig(rank=3, alpha=6.0)


def make_stdit():
    torch.manual_seed(0)
    model = STDiT(STDiTConfig(in_channels=4, text_width=6, width=16, depth=2, heads=2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def stdit_inputs():
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    return torch.randn(2, 4, 3, 4, 4), torch.rand(2, 3), torch.randn(2, 3, 6), mask, torch.ones(2), torch.ones(2, 2)


def fill_adapters(model):
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)


def test_an_adapted_layer_is_w_plus_scaled_b_a():
    torch.manual_seed(0)
    layer = nn.Linear(8, 6, dtype=torch.float64)
    model = nn.Sequential(layer)
    assert add_lora(model, LoRAConfig(rank=2, alpha=5.0, match=("0",))) == ["0"]
    adapted = model[0]
    assert isinstance(adapted, LoRALinear)
    a, b = adapted.lora_A.weight, adapted.lora_B.weight
    assert a.shape == (2, 8)
    assert b.shape == (6, 2)
    x = torch.randn(4, 8, dtype=torch.float64)
    assert torch.equal(model(x), layer(x))  # B is zero at first
    nn.init.normal_(b)
    expected = x @ (layer.weight + 5 / 2 * b @ a).T + layer.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_a_new_adapter_changes_nothing_and_names_stay():
    model, inputs = make_stdit(), stdit_inputs()
    before, names = model(*inputs), set(model.state_dict())
    chosen = add_lora(model, CONFIG)
    assert torch.equal(model(*inputs), before)
    added = set(model.state_dict()) - names
    assert names <= set(model.state_dict())
    assert added == {f"{name}.lora_{part}.weight" for name in chosen for part in "AB"}


def test_the_default_is_attention_and_mlp_of_every_block():
    model = make_stdit()
    in_block = ["attention.space", "attention.time", "cross"]
    layers = [f"{part}.{name}" for part in in_block for name in ("query", "key_value", "out")] + ["mlp.up", "mlp.down"]
    assert set(add_lora(model, CONFIG)) == {f"blocks.{i}.{layer}" for i in range(2) for layer in layers}
    vit = ViT(ViTConfig(size=(8, 8), patch=(4, 4), width=8, depth=1, heads=2), 3)
    layers = ("attention.query", "attention.key_value", "attention.out", "mlp.0", "mlp.3")
    assert set(add_lora(vit, CONFIG)) == {f"encoder.blocks.0.{layer}" for layer in layers}


def test_only_adapters_learn():
    model = make_stdit()
    add_lora(model, CONFIG)
    fill_adapters(model)
    model(*stdit_inputs()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name


def test_merged_weights_load_into_a_model_without_adapters():
    model, inputs = make_stdit(), stdit_inputs()
    add_lora(model, CONFIG)
    fill_adapters(model)
    plain = make_stdit()
    plain.load_state_dict(merged_state(model.state_dict(), CONFIG))  # strict: no name more, none less
    torch.testing.assert_close(plain(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)
    weight = "blocks.1.attention.time.out.weight"
    layer = model.get_submodule(weight.removesuffix(".weight"))
    expected = layer.weight + 2.0 * layer.lora_B.weight @ layer.lora_A.weight
    assert torch.equal(plain.state_dict()[weight], expected)
    untouched = "blocks.0.modulation"
    assert torch.equal(plain.state_dict()[untouched], model.state_dict()[untouched])


def test_a_state_without_adapters_is_merged_already():
    state = make_stdit().state_dict()
    merged = merged_state(state, CONFIG)
    assert list(merged) == list(state)
    assert all(merged[name] is state[name] for name in state)


def test_adapters_alone_have_the_names_of_peft():
    model = make_stdit()
    add_lora(model, LoRAConfig(rank=2, match=("blocks.0.cross.out",)))
    assert set(lora_state(model.state_dict(), "base_model.model.")) == {
        "base_model.model.blocks.0.cross.out.lora_A.weight",
        "base_model.model.blocks.0.cross.out.lora_B.weight",
    }


@pytest.mark.parametrize("recompute", ["selective", "block"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_learn_the_same_when_blocks_are_computed_again(recompute, dropout):
    model = make_stdit()
    add_lora(model, CONFIG.model_copy(update={"dropout": dropout}))
    fill_adapters(model)
    found = []
    for execution in (ExecutionConfig(), ExecutionConfig(recompute=recompute)):
        prepare(model, execution)
        model.zero_grad()
        torch.manual_seed(2)
        model(*stdit_inputs()).square().mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_patterns_that_match_nothing_are_refused():
    with pytest.raises(UserError, match=r"lora.match: 'blocks.9' matches no linear layer; there are blocks"):
        add_lora(make_stdit(), LoRAConfig(rank=2, match=("blocks.9",)))
    with pytest.raises(ValueError, match="no regular expression"):
        LoRAConfig(match=("(",))


def test_a_rank_that_is_no_saving_is_refused():
    model = make_stdit()
    with pytest.raises(UserError, match="rank 16 is not below 16"):
        add_lora(model, LoRAConfig())
    assert all(parameter.requires_grad for parameter in model.parameters())  # nothing was done yet
