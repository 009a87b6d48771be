"""The engine on two ranks (engine_ranks.py), beside a plain loop: every way of spreading its state takes the same steps."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.pipelines.train.engine_ranks import CASES, DECAY, END, HALF, STAGES, Net, lr_of, micro_losses

RANKS = ((0, 2), (1, 2), (0, 1))
"""Rank and world of each process; the last one is alone."""
TRAINED = ("down.weight", "up.bias", "up.weight", "video.bias", "video.weight")
FROZEN = ("centre", "frozen", "held.bias", "held.weight")

pytestmark = pytest.mark.slow
every_case = pytest.mark.parametrize("case", CASES)
every_stage = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("engine_ranks.py")
    processes = []
    for rank, world in RANKS:
        with open(folder / f"{rank} of {world}.log", "w") as log:
            command = [sys.executable, script, str(rank), str(world), folder]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0] * len(RANKS), "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
    return folder


@pytest.fixture(scope="module")
def walked(folder):
    """What rank 0 saved, by name: tensors as "weights/NAME" and so on."""
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def plain():
    """The same steps without an engine."""
    model = Net(1)
    model.held.requires_grad_(False)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decays = {name: 0.0 if name.endswith("bias") else 0.01 for name in named}
    scales = {name: 0.5 if name == "down.weight" else 1.0 for name in named}
    adam = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decays[name]} for name, p in named.items()], betas=(0.9, 0.99), foreach=False
    )
    average = {name: p.detach().clone() for name, p in named.items()}
    norms = []
    for step in range(END):
        adam.zero_grad()
        for loss in micro_losses(model, step, rank=0, world=1):
            loss.backward()
        for group, scale in zip(adam.param_groups, scales.values(), strict=True):
            group["lr"] = lr_of(step) * scale
        norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), 1.0)))
        # A parameter that nothing reached has a gradient of zero.
        for p in named.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        adam.step()
        decay = min(DECAY, (2 + step) / (11 + step))
        for name, p in named.items():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    moments = {f"{m}.{name}": adam.state[p][m] for name, p in named.items() for m in ("exp_avg", "exp_avg_sq")}
    state = model.state_dict()
    whole = {
        "weights": state,
        "average": {**state, **average},
        "moments": {**moments, "step": torch.tensor(float(END))},
    }
    flat = {f"{part}/{name}": values for part, tensors in whole.items() for name, values in tensors.items()}
    return {**flat, "norms/norms": torch.tensor(norms)}


def assert_near(ours, theirs, tolerance=1e-6):
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def later(state):
    """``state`` with the norms of its second half alone, as of one that went on from there."""
    return {**state, "norms/norms": state["norms/norms"][-(END - HALF) :]}


def without_norms(state):
    return {name: values for name, values in state.items() if name != "norms/norms"}


@every_case
def test_it_takes_the_steps_of_a_plain_loop(walked, plain, case):
    """Weights, moments, average and gradient norms; micro-batches that differ in number, a parameter that some do not
    reach, clipping, learning rates and decays by layer."""
    assert_near(walked[f"straight {case}"], plain)


def test_the_steps_are_worth_comparing(plain):
    """Some gradients are clipped and some are not, and what is trained has moved."""
    norms = plain["norms/norms"]
    assert (norms > 1).any()
    assert (norms < 1).any()
    began = Net(1).state_dict()
    assert all((plain[f"weights/{name}"] - began[name]).abs().max() > 1e-3 for name in TRAINED)


@every_case
def test_loading_gives_back_what_was_saved(walked, case):
    assert_same_bits(walked[f"loaded {case}"], without_norms(walked["half 2"]))


@every_case
def test_going_on_under_the_same_stage_gives_the_same_bits(walked, case):
    assert_same_bits(walked[f"same {case}"], later(walked[f"straight {case}"]))


@every_case
def test_what_stage_2_saved_goes_on_under_any_other(walked, plain, case):
    assert_near(walked[f"resumed {case}"], later(plain))


def test_stage_1_to_3_to_2(walked, plain):
    assert_near(without_norms(walked["1 to 3 to 2"]), without_norms(plain))


def test_two_ranks_to_one_to_two(walked, plain):
    assert_near(without_norms(walked["two, one, two"]), without_norms(plain))


def test_offloaded_on_one_rank(walked, plain):
    assert_near(walked["alone offloaded"], later(plain))


def test_moments_are_saved_under_the_names_of_the_weights(walked):
    expected = {f"moments/{moment}.{name}" for name in TRAINED for moment in ("exp_avg", "exp_avg_sq")}
    assert {name for name in walked["half 2"] if name.startswith("moments/")} == {*expected, "moments/step"}


@every_case
def test_what_is_frozen_stays_as_it_was(walked, case):
    began = Net(1).state_dict()
    for walk in (f"straight {case}", f"resumed {case}"):
        for part in ("weights", "average"):
            assert all(torch.equal(walked[walk][f"{part}/{name}"], began[name]) for name in FROZEN)


@every_stage
def test_micro_batches_add_up_to_the_large_one(walked, stage):
    assert_near(walked[f"4 passes {stage}"], walked[f"1 passes {stage}"])


def test_weights_and_settings_that_do_not_fit_are_refused_in_a_line(folder):
    refused = {path.stem.removeprefix("refused "): path.read_text() for path in folder.glob("refused *.txt")}
    assert refused == {
        "unknown key": "deepspeed.raw.zero_optimization.reduce_bucket_sise is no key of DeepSpeed's; "
        "near: reduce_bucket_size, stage3_prefetch_bucket_size, allgather_bucket_size",
        "other shape": "centre of the checkpoint is (4,), and (5,) in the recipe's model",
        "other names": "the checkpoint has no centre: it is of another model than the recipe's",
    }


class TestGuard:
    """Gradients that are not finite on one rank alone."""

    @every_case
    def test_such_a_step_changes_nothing(self, walked, case):
        assert_same_bits(walked[f"after poison {case}"], walked[f"before poison {case}"])

    @every_case
    def test_the_steps_after_it_are_those_without_it(self, walked, case):
        assert_same_bits(walked[f"past poison {case}"], without_norms(walked[f"half {case}"]))

    @every_case
    def test_after_some_in_a_row_every_rank_stops(self, folder, case):
        messages = {(folder / f"failure {case} {rank}.txt").read_text() for rank in (0, 1)}
        assert messages == {
            "2: the loss was not finite in 3 steps in a row: lower optimizer.lr and run the same command again"
        }


class TestBf16:
    @every_stage
    def test_it_takes_nearly_the_same_steps(self, walked, plain, stage):
        """Weights move by up to 0.01 a step; bf16 has 8 bits."""
        ours = without_norms(walked[f"bf16 {stage}"])
        assert_near(ours, without_norms(plain), tolerance=0.02)
        assert any((ours[name] - plain[name]).abs().max() > 1e-5 for name in ours)

    @every_stage
    def test_it_goes_on_from_weights_in_fp32(self, walked, stage):
        assert_same_bits(walked[f"bf16 same {stage}"], later(walked[f"bf16 {stage}"]))

    @every_stage
    def test_what_is_frozen_is_not_rounded(self, walked, stage):
        frozen = walked[f"bf16 {stage}"]["weights/frozen"]
        assert torch.equal(frozen, torch.full((5,), 1.1))  # which bf16 does not have
        assert math.isclose(float(frozen[0]), 1.1, rel_tol=1e-6)
