"""Importance-sampled timesteps as the diffusion kind trains with them: drawn, weighted, learned from, kept."""

import pytest
import torch

from kineograph.diffusion.importance import Drawn
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.steps import losses
from tests.pipelines.train.tiny_dataset import CLIPS, STILLS, VAE, VIDEOS, make_dataset

N, HISTORY = 4, 10
RECIPE = {
    "steps": 100,
    "model": {"width": 32, "depth": 1, "heads": 2},
    "vae": VAE,
    "diffusion": {"kind": "gaussian", "steps": N, "schedule": "cosine", "timesteps": "importance"},
    "samples": {"steps": 2},
    "batch": {"videos": CLIPS, "images": CLIPS},
    "data": {"validation_share": 0},
}


@pytest.fixture(scope="module", params=[STILLS, VIDEOS], ids=["images", "videos"])
def data(tmp_path_factory, request):
    return make_dataset(tmp_path_factory.mktemp("data"), buckets=(request.param,))


@pytest.fixture
def make(data, tmp_path):
    """Makes a rank of the same run."""
    config = parse_train_recipe(RECIPE)
    open_kind(config, data, tmp_path).prepare()

    def rank():
        kind = open_kind(config, data, tmp_path, on_rank=True)
        kind.place(torch.device("cpu"))
        return kind

    return rank


@pytest.fixture
def model(make):
    torch.manual_seed(0)
    model = make().build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def history():
    """Of a run in which a timestep t lost (t + 1)²: told ten times of each."""
    losses = (torch.arange(N) + 1.0).square()[:, None].expand(N, HISTORY)
    return {"timesteps": {"losses": losses.double().clone(), "seen": torch.full((N,), HISTORY)}}


def step_of(kind, model, step=0, rank=0, world=1):
    with torch.no_grad():
        found = losses(kind, model, step, rank, world).total
    kind.after_step(kind.plan.step(step))
    return found


def spied(kind, monkeypatch):
    """What is drawn and told from now on."""
    drawn, told = [], []
    draw, tell = kind.timesteps.draw, kind.timesteps.tell
    monkeypatch.setattr(kind.timesteps, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    monkeypatch.setattr(kind.timesteps, "tell", lambda *a: told.append(a[0]) or tell(*a))
    return drawn, told


def parts(kind):
    """Predictions of a clip: a video's first frame is one of its own."""
    return 1 if kind.dataset.buckets[0].is_image else 2


def test_losses_are_weighted_and_what_is_told_is_not(make, model, monkeypatch):
    kind = make()
    kind.load_extra(history())
    drawn, told = spied(kind, monkeypatch)
    total = step_of(kind, model)
    assert len(drawn) == len(told) == parts(kind)
    probabilities = 0.999 * torch.tensor([1.0, 4, 9, 16]) / 30 + 0.001 / N
    for one, (_, _, timesteps, _) in zip(drawn, told, strict=True):
        assert torch.equal(one.timesteps, timesteps)
        torch.testing.assert_close(one.weights, 1 / (N * probabilities[timesteps]))
    weighted = [one.weights * losses for one, (_, _, _, losses) in zip(drawn, told, strict=True)]
    expected = weighted[0] if len(weighted) == 1 else (2 * weighted[0] + weighted[1]) / 3  # of 3 latent frames
    torch.testing.assert_close(total, expected)


def test_weights_scale_the_loss(make, model, monkeypatch):
    kind = make()
    plain = step_of(kind, model)
    draw = kind.timesteps.draw
    monkeypatch.setattr(kind.timesteps, "draw", lambda *a: Drawn(draw(*a).timesteps, torch.full((CLIPS,), 3.0)))
    torch.testing.assert_close(step_of(kind, model), 3 * plain)


def test_every_step_is_learned_from_on_all_ranks_alike(make, model, monkeypatch):
    kind = make()
    drawn, told = spied(kind, monkeypatch)
    step_of(kind, model)
    seen = torch.cat([one.timesteps for one in drawn]).bincount(minlength=N)
    state = kind.extra_state()["timesteps"]
    assert torch.equal(state["seen"], seen)
    for timestep in range(N):
        losses = torch.cat([losses[timesteps == timestep] for _, _, timesteps, losses in told])[-HISTORY:]
        kept = state["losses"][timestep][: len(losses)]
        torch.testing.assert_close(kept.sort().values, losses.double().sort().values, atol=1e-6, rtol=1e-6)
    step_of(kind, model, step=1)
    assert int(kind.extra_state()["timesteps"]["seen"].sum()) == 2 * CLIPS * parts(kind)


def test_a_rank_puts_its_losses_in_their_places_of_the_step(make, model, monkeypatch):
    kind = make()
    _, told = spied(kind, monkeypatch)
    for rank in range(3):
        step_of(kind, model, rank=rank, world=3)
    places = [place for one in told for place in one.places]
    assert sorted(places) == sorted([*range(CLIPS)] * parts(kind))


def test_a_run_goes_on_with_its_history_and_draws_by_it(make, model):
    fresh, taught, resumed = make(), make(), make()
    taught.load_extra(history())
    step_of(taught, model)
    resumed.load_extra(taught.extra_state())
    for name, tensor in taught.extra_state()["timesteps"].items():
        assert torch.equal(resumed.extra_state()["timesteps"][name], tensor)
    step_of(fresh, model)
    expected = step_of(taught, model, step=1)
    assert torch.equal(step_of(resumed, model, step=1), expected)
    assert not torch.equal(step_of(fresh, model, step=1), expected)


def test_a_run_with_uniform_timesteps_keeps_nothing(data, tmp_path):
    config = parse_train_recipe(RECIPE, ["diffusion.timesteps=uniform"])
    open_kind(config, data, tmp_path).prepare()
    kind = open_kind(config, data, tmp_path, on_rank=True)
    kind.place(torch.device("cpu"))
    assert kind.extra_state() == {}
