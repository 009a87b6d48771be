"""Which parameters learn how, and which settings of DeepSpeed's are taken."""

import pytest
import torch

from kineograph.config import parse_config
from kineograph.errors import RecipeError, UserError
from pipelines.train.optimizer import (
    LR_SCALE,
    RAW_KEYS,
    DeepSpeedConfig,
    OptimizerConfig,
    freeze,
    matches,
    parameter_groups,
)


def model():
    blocks = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(11)))
    return torch.nn.ModuleDict({"blocks": blocks, "head": torch.nn.Linear(2, 1)})


def settings(of, **optimizer):
    """Name to (what its learning rate is multiplied with, weight decay)."""
    groups = parameter_groups(of, OptimizerConfig.model_validate(optimizer))
    by_parameter = {id(p): (group[LR_SCALE], group["weight_decay"]) for group in groups for p in group["params"]}
    return {name: by_parameter[id(p)] for name, p in of.named_parameters() if id(p) in by_parameter}


class TestPatterns:
    def test_a_beginning_ends_at_a_dot(self):
        assert matches("blocks.1", "blocks.1.weight")
        assert not matches("blocks.1", "blocks.10.weight")

    def test_a_whole_name(self):
        assert matches("head.weight", "head.weight")

    def test_a_regular_expression_describes_the_whole_name(self):
        assert matches(r"blocks\.\d+\.bias", "blocks.10.bias")
        assert not matches(r"blocks\.\d", "blocks.10.bias")
        assert not matches("bias", "blocks.10.bias")

    @pytest.mark.parametrize("keys", [{"layers": [{"match": "("}]}, {"freeze": ["("]}])
    def test_what_is_no_expression_is_an_error_in_the_recipe(self, keys):
        with pytest.raises(RecipeError, match="'\\(' is no regular expression"):
            parse_config(keys, OptimizerConfig)


class TestLayers:
    def test_without_layers_all_learn_alike(self):
        assert set(settings(model(), weight_decay=0.1).values()) == {(1.0, 0.1)}

    def test_the_first_that_matches_counts(self):
        layers = [{"match": ".*bias", "weight_decay": 0.0}, {"match": "head", "lr": 10.0}]
        found = settings(model(), weight_decay=0.1, layers=layers)
        assert found["head.bias"] == (1.0, 0.0)
        assert found["head.weight"] == (10.0, 0.1)
        assert found["blocks.3.weight"] == (1.0, 0.1)

    def test_every_parameter_is_in_one_group(self):
        layers = [{"match": ".*bias"}, {"match": "blocks"}]
        groups = parameter_groups(model(), OptimizerConfig.model_validate({"layers": layers}))
        assert sum(len(group["params"]) for group in groups) == len(list(model().parameters()))

    def test_a_pattern_that_matches_nothing_is_an_error_that_tells_near_names(self):
        with pytest.raises(UserError, match=r"optimizer\.layers: 'block\.3' matches no parameter; near: blocks\.3"):
            settings(model(), layers=[{"match": "block.3"}])


class TestFreeze:
    def test_what_is_frozen_is_in_no_group(self):
        frozen = model()
        freeze(frozen, ["blocks"])
        assert set(settings(frozen)) == {"head.weight", "head.bias"}

    def test_layers_may_match_what_is_frozen(self):
        frozen = model()
        freeze(frozen, ["blocks"])
        assert set(settings(frozen, layers=[{"match": "blocks", "lr": 0.1}])) == {"head.weight", "head.bias"}

    def test_nothing_left_is_an_error(self):
        frozen = model()
        freeze(frozen, [".*"])
        with pytest.raises(UserError, match="all parameters are frozen"):
            settings(frozen)

    def test_a_pattern_that_matches_nothing_is_an_error(self):
        with pytest.raises(UserError, match=r"optimizer\.freeze: 'heads' matches no parameter; near: head"):
            freeze(model(), ["heads"])


class TestDeepSpeed:
    def refused(self, **keys):
        with pytest.raises(RecipeError) as caught:
            parse_config(keys, DeepSpeedConfig)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("keys", "reason"),
        [
            ({"zero_stage": 0, "offload": "optimizer"}, "offload optimizer needs zero_stage 1, not 0"),
            ({"zero_stage": 2, "offload": "parameters"}, "offload parameters needs zero_stage 3, not 2"),
        ],
    )
    def test_offloading_needs_a_stage(self, keys, reason):
        assert reason in self.refused(**keys)

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            ({"gradient_clipping": 1.0}, "raw.gradient_clipping cannot be set here: the recipe's optimizer.clip_norm"),
            ({"bf16": {"enabled": True}}, "raw.bf16 cannot be set here: the recipe's precision says it"),
            ({"zero_optimization": {"stage": 3}}, "raw.zero_optimization.stage cannot be set here"),
            ({"zero_optimization": 3}, "raw.zero_optimization is a mapping"),
            (
                {"zero_optimisation": {}},
                "raw.zero_optimisation is no key that is passed on to DeepSpeed; near: zero_opt",
            ),
        ],
    )
    def test_raw_keys_that_are_ours_or_unknown_are_refused(self, raw, reason):
        assert reason in self.refused(raw=raw)

    def test_others_are_taken(self):
        raw = {"zero_optimization": {"reduce_bucket_size": 1000}, "communication_data_type": "bf16"}
        assert parse_config({"raw": raw}, DeepSpeedConfig).raw == raw


@pytest.mark.slow
def test_deepspeed_reads_every_key_that_is_passed_on(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
        monkeypatch.setenv(name, value)
    from deepspeed.runtime.config import DeepSpeedConfig as Theirs

    read = set()

    class Recording(dict):
        def __contains__(self, key):
            read.add(key)
            return super().__contains__(key)

        def get(self, key, default=None):
            read.add(key)
            return super().get(key, default)

    Theirs(Recording(train_micro_batch_size_per_gpu=1, zero_optimization={"stage": 2}))
    assert set(RAW_KEYS) <= read
