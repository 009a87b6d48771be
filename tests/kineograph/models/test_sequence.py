"""Ranks that share the tokens of a batch give what one rank gives, and each keeps its share in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kineograph.models.measure import saved_for_backward
from kineograph.models.sequence import SequenceGroup, sequence_groups
from kineograph.models.stdit import STDiT, STDiTBlock, STDiTConfig
from tests.kineograph.models.sequence_ranks import CASES, LONG, TEXT, C, inputs, loss, make, run

COMPILED = "compiled and recomputed"
RUNS = {  # world, ranks that share a clip, cases
    "two": (2, 2, list(CASES)),
    "three": (3, 3, [case for case in CASES if case != COMPILED]),
    "two pairs": (4, 2, ["whole clips"]),
}


class Run:
    """What the ranks of a run wrote."""

    def __init__(self, name, folder):
        self.world, self.size, self.cases = RUNS[name]
        self.folder = folder
        script = Path(__file__).with_name("sequence_ranks.py")
        given = [str(self.world), str(self.size), folder, *self.cases]
        ranks = [
            subprocess.Popen([sys.executable, script, str(rank), *given], stderr=subprocess.PIPE, text=True)
            for rank in range(self.world)
        ]
        errors = [rank.communicate(timeout=250)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * self.world, "\n".join(error[-2000:] for error in errors)
        self.facts = [json.loads((folder / f"facts {rank}.json").read_text()) for rank in range(self.world)]

    def tensors(self, case, rank):
        return load_file(self.folder / f"{case} {rank}.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name, each made when it is first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Run(name, tmp_path_factory.mktemp("ranks"))
        return made[name]

    return get


def alone(case):
    """Output, gradients and bytes kept of one rank that has all tokens."""
    model, given = make(case), inputs(case)
    with saved_for_backward() as saved:
        output = run(model, given, case)
    loss(output, case).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients, saved.bytes


EXACT = [(name, case) for name, (_, _, cases) in RUNS.items() for case in cases if case != "bf16"]


@pytest.mark.parametrize(("name", "case"), EXACT)
def test_output_and_gradients_are_those_of_one_rank(runs, name, case):
    ranks = runs(name)
    output, gradients, _ = alone(case)
    clips = len(output) // (ranks.world // ranks.size)
    for rank in range(ranks.world):
        found = ranks.tensors(case, rank)
        mine = output[rank // ranks.size * clips :][:clips]
        torch.testing.assert_close(found.pop("output"), mine, atol=1e-5, rtol=1e-5)
        assert found.keys() == gradients.keys()
        for parameter, summed in found.items():  # over ranks, without any factor
            error, size = (summed - gradients[parameter]).abs().max(), gradients[parameter].abs().max()
            assert error <= 1e-4 * size + 1e-8, (parameter, error, size)


@pytest.mark.parametrize("name", ["two", "three"])
def test_under_autocast_they_differ_by_rounding(runs, name):
    found = runs(name).tensors("bf16", rank=1)
    output, gradients, _ = alone("bf16")
    for tensor, expected in [(found[name], gradients[name]) for name in gradients] + [(found["output"], output)]:
        assert (tensor - expected).norm() <= 0.05 * expected.norm() + 1e-4


def test_every_so_many_ranks_in_a_row_are_a_replica(runs):
    facts = runs("two pairs").facts
    assert [(rank["replica"], rank["rank"]) for rank in facts] == [(0, 0), (0, 1), (1, 0), (1, 1)]


class TestExchanges:
    """Of two joined blocks, or two pairs of alternating ones."""

    @pytest.mark.parametrize("name", ["two", "three"])
    @pytest.mark.parametrize("case", ["joined", "alternating", "opensora v1"])
    def test_are_two_a_block(self, runs, name, case):
        for rank in runs(name).facts:
            assert (rank[case]["forward"], rank[case]["backward"]) == (4, 4)

    def test_within_blocks_that_are_computed_again_are_done_again(self, runs):
        for case in ("recompute block", "recompute selective", "recompute alternating", COMPILED):
            assert [rank[case]["backward"] for rank in runs("two").facts] == [8, 8]

    @pytest.mark.parametrize("case", ["whole clips", "a still", "stills", "one place"])
    def test_are_none_where_whole_clips_are_shared_out(self, runs, case):
        assert [rank[case]["forward"] for rank in runs("three").facts] == [0, 0, 0]

    def test_are_as_many_for_any_number_of_clips(self, runs):
        assert {rank["several clips"]["forward"] for rank in runs("two").facts} == {4}
        assert {rank["few clips"]["forward"] for rank in runs("three").facts} == {4}

    @pytest.mark.parametrize("case", ["a long clip", "a long clip alternating"])
    def test_send_a_quarter_of_the_tokens_between_two_ranks(self, runs, case):
        tokens = LONG["frames"] * (LONG["height"] // 2) * (LONG["width"] // 2)
        assert [rank[case]["bytes"] for rank in runs("two").facts] == [16 * tokens * 64 * 4 / 4] * 2

    def test_under_autocast_send_half(self, runs):
        for rank in runs("two").facts:
            assert rank["bf16"]["bytes"] == rank["alternating"]["bytes"] / 2

    def test_do_not_break_a_compiled_block(self, runs):
        facts = [rank[COMPILED] for rank in runs("two").facts]
        assert [(one["graphs"], one["broken"]) for one in facts] == [(1, 0), (1, 0)]


class TestMemory:
    @pytest.mark.parametrize("name", ["two", "three"])
    @pytest.mark.parametrize("case", ["a long clip", "a long clip recomputed", "a long clip alternating"])
    def test_of_a_rank_is_its_share(self, runs, name, case):
        """Nearly: text and modulation are whole on each."""
        ranks, (_, _, whole) = runs(name), alone(case)
        for rank in ranks.facts:
            assert rank[case]["kept"] / whole == pytest.approx(1 / ranks.size, rel=0.1)

    def test_holds_a_clip_that_is_too_long_for_one_rank(self, runs):
        """What fits one rank is as long as one rank's share of the clip; the clip itself takes twice as much there."""
        _, _, whole = alone("a long clip")
        limit = 0.55 * whole
        assert all(rank["a long clip"]["kept"] < limit for rank in runs("two").facts)


class TestWithoutAGroup:
    @pytest.mark.parametrize("layout", ["joined", "alternating", "full"])
    def test_a_block_is_one_graph(self, layout):
        model = STDiT(STDiTConfig(in_channels=C, text_width=TEXT, width=16, heads=2, depth=1, layout=layout))
        torch._dynamo.reset()
        for block in model.blocks:
            assert isinstance(block, STDiTBlock)
            block.forward = torch.compile(block.forward, fullgraph=True, backend="eager")
        given = inputs("joined")
        assert model(*given).shape == given[0].shape


class TestGroups:
    def test_of_one_are_none(self):
        assert sequence_groups(4, 1) is None

    def test_that_leave_ranks_over_are_refused(self):
        with pytest.raises(ValueError, match="5 ranks cannot share tokens by 2"):
            sequence_groups(5, 2)

    def test_are_refused_where_each_token_attends_to_all(self):
        model = STDiT(STDiTConfig(in_channels=C, text_width=TEXT, width=16, heads=2, depth=1, layout="full"))
        with pytest.raises(ValueError, match="layout to joined or alternating"):
            model.sequence = SequenceGroup(None, 0, 2, 0)
        model.sequence = None
        assert model.sequence is None

    @pytest.mark.parametrize(("count", "size", "shares"), [(5, 2, [3, 2]), (15, 4, [4, 4, 4, 3]), (1, 3, [1, 0, 0])])
    def test_share_evenly_up_to_one(self, count, size, shares):
        assert SequenceGroup(None, 0, size, 0).shares(count) == shares

    @pytest.mark.parametrize(
        ("clips", "frames", "places", "by_clips"),
        [
            (4, 16, 64, True),  # a clip for each
            (5, 16, 64, False),  # one would have two
            (5, 1, 64, True),  # stills
            (1, 16, 64, False),
            (1, 3, 64, True),  # one rank would have no frame
            (1, 64, 3, True),
        ],
    )
    def test_share_clips_where_that_is_as_even(self, clips, frames, places, by_clips):
        assert SequenceGroup(None, 0, 4, 0).is_for_clips(clips, frames, places) == by_clips
