"""Published weights: reference outputs, wrappers around files, and files that are something else."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kineograph.errors import UserError
from kineograph.models.importing import load_opensora_v1, load_opensora_v3, read_state
from kineograph.models.importing_dit import load_dit
from kineograph.models.presets import find_preset
from kineograph.models.stdit import STDiT

DATA = Path(__file__).parents[2] / "data" / "reference"


def read_reference(name):
    """Tensors of the file, the weights among them in their published names, and the reference's configuration."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    return tensors, {k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")}, config


@pytest.fixture(scope="module")
def v1():
    return read_reference("stdit_v1")


@pytest.fixture(scope="module")
def v3():
    return read_reference("stdit_v3")


def run(model, tensors, mask, frame_mask=None):
    """The model on a reference's inputs; given frames are at timestep 0."""
    x, caption = tensors["input.x"], tensors["input.caption"][:, 0]
    timestep = tensors["input.timestep"][:, None].expand(-1, x.shape[2])
    if frame_mask is not None:
        timestep = timestep * frame_mask
    fps = tensors.get("input.fps", torch.zeros(len(x)))
    sides = [tensors.get(f"input.{side}", torch.zeros(len(x))) for side in ("height", "width")]
    with torch.inference_mode():
        return model(x, timestep, caption, mask.bool(), fps, torch.stack(sides, dim=1))


class TestReference:
    def test_v1_is_reproduced(self, v1):
        tensors, weights, config = v1
        model, mask = load_opensora_v1(weights, heads=4), tensors["input.caption_mask"]
        assert mask.sum() < mask.numel()
        for said, name in ((run(model, tensors, mask), "masked"), (run(model, tensors, mask | 1), "unmasked")):
            torch.testing.assert_close(said, tensors[f"output.{name}"], atol=1e-5, rtol=0)
        assert sum(p.numel() for p in model.parameters()) == config["num_params"]

    def test_v3_is_reproduced(self, v3):
        tensors, weights, config = v3
        model, mask = load_opensora_v3(weights), tensors["input.caption_mask"]
        torch.testing.assert_close(run(model, tensors, mask), tensors["output.plain"], atol=1e-5, rtol=0)
        said = run(model, tensors, mask, tensors["input.frame_mask"])
        torch.testing.assert_close(said, tensors["output.frame_masked"], atol=1e-5, rtol=0)
        assert sum(p.numel() for p in model.parameters()) == config["num_params"]

    def test_without_the_defect_given_frames_alone_come_out_otherwise(self, v3):
        """What the model says of a given frame is not used; that is why the defect was not noticed."""
        tensors, weights, _ = v3
        model, mask = load_opensora_v3(weights), tensors["input.caption_mask"]
        sound = STDiT(model.config.model_copy(update={"remodulate_given": False})).eval()
        sound.load_state_dict(model.state_dict())
        assert torch.equal(run(sound, tensors, mask), run(model, tensors, mask))
        asked = tensors["input.frame_mask"].bool()
        ours, theirs = (run(m, tensors, mask, asked).transpose(1, 2) for m in (sound, model))
        assert torch.equal(ours[asked], theirs[asked])
        assert (ours[~asked] - theirs[~asked]).abs().amax((1, 2, 3)).min() > 0.01

    @pytest.mark.parametrize(("name", "parameters"), [("opensora-v1", 759_620_768), ("opensora-v3", 1_207_643_972)])
    def test_full_size_has_the_published_number_of_parameters(self, name, parameters):
        with torch.device("meta"):
            model = STDiT(find_preset(f"{name}-xl/2").config)
        assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("file", ["stdit_v1", "stdit_v3", "dit"])
def test_an_imported_model_takes_no_memory_beside_its_state(file):
    """But for the patches, whose channels are put last, and the tables that are computed."""
    _, weights, _ = read_reference(file)
    there = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    model = LOADERS[file](weights)
    made = [name for name, p in model.state_dict().items() if p.untyped_storage().data_ptr() not in there]
    assert made == ["embed_patches.weight"]
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cpu"}


WRAPPED = {
    "bare": lambda state: state,
    "ddp": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled_ddp": lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    "averaged": lambda state: {"model": {k: v * 0 for k, v in state.items()}, "ema": state, "step": 7},
    "trainer": lambda state: {"epoch": 1, "state_dict": {f"model.{k}": v for k, v in state.items()}},
    "deepspeed": lambda state: {"module": {f"module.{k}": v for k, v in state.items()}, "lr": [0.1]},
}


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


class TestFiles:
    @pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
    def test_wrappers_are_taken_off(self, tmp_path, v3, wrap):
        tensors, weights, _ = v3
        torch.save(wrap(weights), tmp_path / "model.pth")
        state = read_state(tmp_path / "model.pth")
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
        said = run(load_opensora_v3(state), tensors, tensors["input.caption_mask"])
        torch.testing.assert_close(said, tensors["output.plain"], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "pytorch_model.bin"])
    def test_a_folder_stands_for_its_one_weight_file(self, tmp_path, name):
        state = {"a": torch.arange(3.0)}
        save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
        (tmp_path / "config.json").write_text("{}")
        assert torch.equal(read_state(tmp_path)["a"], state["a"])

    def test_files_of_old_are_read(self, tmp_path):
        torch.save({"a": torch.arange(3.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert read_state(tmp_path / "old.pth")["a"].tolist() == [0, 1, 2]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_weights_in_half_precision_become_fp32(self, v1, dtype):
        tensors, weights, _ = v1
        exact = load_opensora_v1(weights, heads=4)
        model = load_opensora_v1({name: tensor.to(dtype) for name, tensor in weights.items()}, heads=4)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.config == exact.config
        said, wanted = (run(m, tensors, tensors["input.caption_mask"]) for m in (model, exact))
        assert 0 < (said - wanted).abs().max() < 16 * torch.finfo(dtype).eps * wanted.abs().max()

    def test_a_table_may_be_rounded_and_no_more(self, v1):
        _, weights, _ = v1
        exact, table = load_opensora_v1(weights, heads=4), weights["pos_embed"]
        assert load_opensora_v1(weights | {"pos_embed": table.half().float()}, heads=4).config == exact.config
        for bent in ((1.005 * table).half(), table + 5e-4):
            with pytest.raises(UserError, match="position tables"):
                load_opensora_v1(weights | {"pos_embed": bent}, heads=4)

    @pytest.mark.parametrize("wrapped", [False, True])
    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path, wrapped):
        payload = Payload(tmp_path / "made")
        torch.save({"weight": torch.zeros(1), "x": payload} if wrapped else payload, tmp_path / "evil.pth")
        with pytest.raises(UserError, match="cannot be read as tensors"):
            read_state(tmp_path / "evil.pth")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.99])
    def test_a_truncated_file_is_refused(self, tmp_path, v1, suffix, share):
        whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
        save_file(v1[1], whole) if suffix == ".safetensors" else torch.save(v1[1], whole)
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        with pytest.raises(UserError, match=r"cut\.\w+ cannot be read") as refusal:
            read_state(cut)
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize(
        "content", [[torch.zeros(1)], {}, {"model": {}}, {"step": 3}, {"a": torch.zeros(1), "b": 1}]
    )
    def test_a_file_without_a_state_dict_is_refused(self, tmp_path, content):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match="holds no state dict"):
            read_state(tmp_path / "other.pt")

    def test_a_place_without_a_checkpoint_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="holds 0 weight files"):
            read_state(tmp_path)
        with pytest.raises(UserError, match="no checkpoint at"):
            read_state(tmp_path / "none.pth")


LOADERS = {
    "stdit_v1": lambda state: load_opensora_v1(state, heads=4),
    "stdit_v3": load_opensora_v3,
    "dit": lambda state: load_dit(state, heads=4),
}
ANY_NUMBER = {
    "pos_embed",
    "pos_embed_temporal",
    "y_embedder.y_embedding",
    "y_embedder.embedding_table.weight",
}
"""Tensors of which a model may have any number of rows."""


def refusal_of(file, state):
    """What is said of a state that is refused; "" of one that is taken."""
    try:
        LOADERS[file](state)
    except UserError as error:
        return str(error)
    return ""


def other_shapes(tensor):
    """A dimension fewer and one more, then each dimension shorter, longer, and gone."""
    yield tensor[0]
    yield tensor[None]
    yield tensor.flatten()[0]
    for axis in range(tensor.ndim):
        yield tensor.narrow(axis, 0, tensor.shape[axis] - 1)
        yield torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)
        yield tensor.narrow(axis, 0, 0)


class TestRefusal:
    @pytest.mark.parametrize("file", LOADERS)
    def test_any_tensor_that_is_missing_or_of_another_shape_is_noticed(self, file):
        weights = read_reference(file)[1]
        for name, tensor in weights.items():
            damaged = [{k: v for k, v in weights.items() if k != name}]
            damaged += [weights | {name: other} for other in other_shapes(tensor) if other.shape != tensor.shape]
            for state in damaged:
                said = refusal_of(file, state)
                assert said or name in ANY_NUMBER
                assert "\n" not in said

    @pytest.mark.parametrize("file", LOADERS)
    def test_what_is_not_understood_is_not_left_aside(self, file):
        with pytest.raises(UserError, match=r"1 tensors are unknown, e\.g\. extra"):
            LOADERS[file](read_reference(file)[1] | {"extra": torch.zeros(1)})

    @pytest.mark.parametrize("name", ["pos_embed", "pos_embed_temporal"])
    def test_a_position_table_of_another_shape_is_named_with_its_shape(self, v1, name):
        table = v1[1][name]
        for wrong in (table[0], table[..., 4:], table.repeat(2, 1, 1)):
            with pytest.raises(UserError) as refusal:
                load_opensora_v1(v1[1] | {name: wrong}, heads=4)
            assert f"{name} is of shape {list(wrong.shape)}, not" in str(refusal.value)

    def test_a_file_of_another_format_is_refused(self, v1, v3):
        _, dit, _ = read_reference("dit")
        with pytest.raises(UserError, match="not of a 3D convolution"):
            load_opensora_v1(dit, heads=4)
        with pytest.raises(UserError, match="no Open-Sora v1 checkpoint"):
            load_opensora_v1(v3[1], heads=4)
        with pytest.raises(UserError, match="no Open-Sora v3 checkpoint"):
            load_opensora_v3(v1[1], heads=4)

    @pytest.mark.parametrize("change", ["learned", "shuffled", "nan", "by_column", "zero"])
    def test_position_tables_of_another_kind_are_refused(self, v1, change):
        _, weights, _ = v1
        places = weights["pos_embed"]
        made = {
            "learned": torch.randn_like(places),
            "shuffled": places.flip(1),
            "nan": places * math.nan,
            "by_column": places.unflatten(1, (4, 6)).transpose(1, 2).flatten(1, 2),
            "zero": places * 0,
        }
        with pytest.raises(UserError, match="position tables"):
            load_opensora_v1(weights | {"pos_embed": made[change]}, heads=4)
        with pytest.raises(UserError, match="position tables"):
            load_opensora_v1(weights | {"pos_embed_temporal": made[change][:, :4]}, heads=4)

    def test_patches_of_several_frames_are_refused(self, v1):
        _, weights, _ = v1
        kernel, out = weights["x_embedder.proj.weight"], weights["final_layer.linear.bias"]
        thick = {"x_embedder.proj.weight": kernel.repeat(1, 1, 2, 1, 1), "final_layer.linear.bias": out.repeat(2)}
        with pytest.raises(UserError, match="must cover one latent frame"):
            load_opensora_v1(weights | thick, heads=4)

    @pytest.mark.parametrize(("heads", "said"), [(None, "give --heads"), (5, "multiple of"), (0, "greater than")])
    def test_heads_must_be_known_and_fit(self, v1, heads, said):
        with pytest.raises(UserError, match=said):
            load_opensora_v1(v1[1], heads=heads)
