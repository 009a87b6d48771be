"""Kind vae: an autoencoder is trained, measured on clips it has not seen, and left for others to use."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from kineograph.errors import RecipeError, UserError
from kineograph.media.geometry import Bucket
from kineograph.models.vae import (
    CausalVAE,
    CausalVAEConfig,
    PatchPCA,
    PatchPCAConfig,
    fingerprint,
    load_autoencoder,
    save_autoencoder,
)
from kineograph.store.checkpoints import checkpoint_folder, find_fault, latest_checkpoint
from kineograph.store.loader import ClipLoader
from pipelines.train.kinds.vae.config import CropConfig
from pipelines.train.kinds.vae.crop import Size, crop_size, cut_centre, cut_random, whole_size
from pipelines.train.kinds.vae.measure import measure
from pipelines.train.pipeline import check_resume, plan, train
from pipelines.train.preflight import preflight_text
from pipelines.train.registry import open_kind, parse_train_recipe
from tests.pipelines.train.runs import Run
from tests.pipelines.train.steps import batch, losses, part

CAUSAL = {
    "class_name": "AutoencoderKLWan",
    "settings": {
        "base_dim": 4,
        "z_dim": 3,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
    },
}
IMAGE = {
    "class_name": "AutoencoderKL",
    "settings": {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 3,
        "norm_num_groups": 4,
    },
}
STEPS = 4
RECIPE = {
    "kind": "vae",
    "steps": STEPS,
    "vae": {"architecture": CAUSAL},
    "crop": {"size": [16, 24], "frames": 5},
    "loss": {"adversarial": {"start": 1, "discriminator": {"width": 8, "layers": 1}}},
    "batch": {"videos": 3, "images": 3},  # odd: the two ranks get unequal parts
    "optimizer": {"lr": 1e-3, "warmup_steps": 1, "schedule": "constant"},
    "data": {"validation_share": 0.2},
    "validation": {"every": 2, "clips": 2, "pictures": 1},
    "checkpoint": {"every": 2, "keep": 10},
    "workers": {"count": 2},
    "tracking": {"log_every": 1},
    "fit_clips": 4,
}


def config(**parts):
    return parse_train_recipe({**RECIPE, **parts})


def opened(data, run, **parts):
    kind = open_kind(config(**parts), data, run, on_rank=True)
    kind.place(torch.device("cpu"))
    return kind


def step_of(kind, model, number=0):
    """Losses of the step with videos that has this number among those in which the discriminator plays a part."""
    videos = [s for s in range(1, 50) if kind.plan.step(s).stretches[0].bucket.frames > 1]
    return losses(kind, model, videos[number])


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestTrained:
    @pytest.fixture(scope="class")
    def straight(self, dataset, ray_of_two, tmp_path_factory):
        run = tmp_path_factory.mktemp("straight") / "train"
        return train(config(), dataset, run)

    @pytest.fixture(scope="class")
    def run(self, straight):
        return Path(straight["run"])

    def test_it_leaves_an_autoencoder_of_unit_variance(self, run, dataset):
        kind = opened(dataset, run)
        vae = load_autoencoder(run / "vae")
        clips = [vae.encode(video[None])[0] for video in kind._videos()]
        latents = torch.cat([c.flatten(1) for c in clips], dim=1)
        torch.testing.assert_close(latents.std(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)
        torch.testing.assert_close(latents.mean(1), torch.zeros(3), atol=1e-3, rtol=0)

    def test_it_is_the_average_of_the_last_checkpoint(self, run):
        ours, average = (
            load_autoencoder(run / "vae").state_dict(),
            load_file(latest_checkpoint(run) / "ema.safetensors"),
        )
        same = [torch.equal(ours[n.removeprefix("vae.")], t) for n, t in average.items() if "latent_norm" not in n]
        assert all(same)

    def test_the_checkpoints_are_whole_and_hold_the_discriminator(self, run):
        folder = latest_checkpoint(run)
        assert find_fault(folder) == ""
        state = load_file(folder / "extra-discriminator.safetensors")
        assert state["steps"] == STEPS - 1  # of steps 0 to 3 all but the first

    def test_the_discriminator_plays_no_part_before_its_start(self, run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert ["adversarial" in row for row in rows] == [False, True, True, True]
        assert all({"loss", "reconstruction", "kl", "psnr"} <= row.keys() for row in rows)

    def test_it_is_measured_on_held_out_clips(self, run):
        state = json.loads((run / "train.json").read_text())
        assert {"validation_psnr", "validation_ssim"} <= state["validation"].keys()
        client, run_id = MlflowClient(tracking_uri=f"sqlite:///{run.parent}/mlflow.db"), state["mlflow"]["run_id"]
        assert [m.step for m in client.get_metric_history(run_id, "validation_psnr")] == [2, 4]
        assert any("reconstructions" in f.path for f in client.list_artifacts(run_id, "images"))

    def test_a_run_that_was_resumed_ends_at_the_same_bits(self, run, dataset, tmp_path):
        other = Run(tmp_path, RECIPE, dataset)
        assert other.train(steps=2).saved() == 2
        other.train()
        train(config(), dataset, tmp_path / "train")  # it has its steps, but left no autoencoder yet
        ours, theirs = (checkpoint_folder(r, STEPS) for r in (tmp_path / "train", run))
        files = sorted(p.name for p in theirs.glob("*.safetensors"))
        assert files == [f"{n}.safetensors" for n in ("ema", "extra-discriminator", "model", "optimizer")]
        for name in files:
            one, two = load_file(ours / name), load_file(theirs / name)
            assert [n for n in two if not torch.equal(one[n], two[n])] == [], name
        vaes = [load_autoencoder(r / "vae") for r in (tmp_path / "train", run)]
        assert fingerprint(vaes[0]) == fingerprint(vaes[1])

    def test_once_more_changes_nothing(self, run, dataset, straight):
        before = (run / "vae" / "model.safetensors").stat().st_mtime_ns
        again = train(config(), dataset, run)
        assert (run / "vae" / "model.safetensors").stat().st_mtime_ns == before
        assert again == straight

    def test_one_that_was_not_written_is_written_again(self, run, dataset):
        digest = fingerprint(load_autoencoder(run / "vae"))
        state = json.loads((run / "train.json").read_text())
        (run / "train.json").write_text(json.dumps({k: v for k, v in state.items() if k != "exported"}))
        train(config(), dataset, run)
        assert fingerprint(load_autoencoder(run / "vae")) == digest

    def test_another_one_goes_on_from_it(self, run, dataset, tmp_path):
        parts = {"vae": None, "start": str(run / "vae")}
        open_kind(config(**parts), dataset, tmp_path / "train").prepare()
        kind = opened(dataset, tmp_path / "train", **parts)
        model = kind.build()
        kind.start(model)
        assert fingerprint(model.vae) == fingerprint(load_autoencoder(run / "vae"))

    def test_other_settings_do_not_go_on(self, run, dataset):
        wider = {**CAUSAL, "settings": {**CAUSAL["settings"], "z_dim": 4}}
        with pytest.raises(UserError, match=r"cannot go on from step 4: autoencoder\.architecture is "):
            check_resume(open_kind(config(vae={"architecture": wider}), dataset, run))

    def test_diffusion_takes_it(self, run, dataset, tmp_path):
        raw = {"steps": 100, "vae": {"kind": "folder", "path": str(run / "vae")}, "model": {"width": 16, "heads": 2}}
        assert plan(parse_train_recipe(raw), dataset, tmp_path)["reads"] == "videos"


@pytest.mark.parametrize("architecture", [CAUSAL, IMAGE])
def test_a_batch_and_its_losses_do_not_depend_on_who_computes_them(dataset, tmp_path, architecture):
    image = architecture is IMAGE
    parts = {"vae": {"kind": "image_vae" if image else "causal_vae", "architecture": architecture}, "loss": {}}
    kind = opened(dataset, tmp_path, **parts)
    torch.manual_seed(0)
    model = kind.build()
    whole = losses(kind, model, 1)
    parts = [losses(kind, model, 1, rank, world=2).total for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts), whole.total, atol=1e-5, rtol=1e-5)


def test_an_epoch_has_crops_and_noise_of_its_own(dataset, tmp_path):
    kind = opened(dataset, tmp_path)
    slot = part(kind, 1)[1][0]
    first, second = (batch(kind, (replace(slot, epoch=epoch),)) for epoch in (0, 5))
    assert not torch.equal(first, second)


def test_the_adversarial_loss_reaches_the_autoencoder_and_its_own_step_the_discriminator(dataset, tmp_path):
    kind = opened(dataset, tmp_path)
    torch.manual_seed(0)
    model = kind.build()
    before = {n: t.clone() for n, t in kind.extra_state()["discriminator"].items()}
    losses = step_of(kind, model)
    losses.total.sum().backward()
    after = kind.extra_state()["discriminator"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert [n for n, t in before.items() if n.endswith(".weight") and torch.equal(after[n], t)] == []
    assert all(p.grad is None for p in kind.adversary.discriminator.parameters())
    assert not any(part.requires_grad for part in losses.parts.values())


def test_a_discriminator_goes_on_where_it_was(dataset, tmp_path):
    torch.manual_seed(0)
    kind, other = opened(dataset, tmp_path), opened(dataset, tmp_path)
    model = kind.build()
    step_of(kind, model, 1)
    other.load_extra({k: {n: t.clone() for n, t in s.items()} for k, s in kind.extra_state().items()})
    for step in (2, 3):
        mine, its = step_of(kind, model, step), step_of(other, model, step)
        assert torch.equal(mine.total, its.total)
    ours, theirs = (k.extra_state()["discriminator"] for k in (kind, other))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_with_a_linear_path_it_starts_from_principal_components(dataset, tmp_path):
    kind = opened(dataset, tmp_path, vae={"architecture": CAUSAL, "linear_path": True})
    torch.manual_seed(0)
    model = kind.build()
    kind.start(model)
    entry = kind.dataset.held_out[Bucket(32, 32, 9)][0]
    clip = ClipLoader(kind.reader, cache_bytes=0).load([entry])[0].picture
    video = cut_centre(clip, whole_size(Bucket(32, 32, 9), (4, 4, 4)))[None]
    pca = PatchPCA(PatchPCAConfig(channels=3, decoder_noise=None))
    pca.fit(list(kind._videos()))
    with torch.no_grad():
        measured = model.vae.eval().decode(model.vae.encode(video))
    torch.testing.assert_close(measured, pca.decode(pca.encode(video)), atol=1e-3, rtol=0)


class TestPlan:
    def test_it_says_what_is_trained(self, dataset, tmp_path):
        facts = plan(config(), dataset, tmp_path / "train")
        assert facts["reads"] == "videos, for latents of 3 channels and strides (4, 4, 4)"
        assert facts["parameters"] > 0

    def test_a_missing_perceptual_loss_is_said(self, dataset, tmp_path):
        loss = {"perceptual": {"weights": str(tmp_path / "vgg.pth")}}
        facts = plan(config(loss=loss), dataset, tmp_path / "train")
        assert "trained without the perceptual loss: " in preflight_text(facts)
        assert opened(dataset, tmp_path, loss=loss).perceptual is None

    def test_a_crop_smaller_than_a_latent_is_refused(self, dataset, tmp_path):
        with pytest.raises(UserError, match="smaller than a latent of 4x4 pixels"):
            plan(config(crop={"size": [3, 3]}, loss={}), dataset, tmp_path / "train")

    def test_patch_pca_is_not_trained(self, dataset, tmp_path):
        save_autoencoder(PatchPCA(PatchPCAConfig()), tmp_path / "pca")
        with pytest.raises(UserError, match="is a patch_pca, which is fitted and not trained"):
            plan(config(vae=None, start=str(tmp_path / "pca")), dataset, tmp_path / "train")

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"vae": None}, "give either vae"),
            ({"start": "folder"}, "give either vae"),
            ({"vae": {"architecture": "causal-huge"}}, "no preset 'causal-huge'; known: causal-mini"),
            ({"vae": {"kind": "image_vae", "architecture": "causal-mini"}}, "no preset 'causal-mini'; known: image"),
            ({"loss": {"perceptul": {}}}, "unknown key 'loss.perceptul'; did you mean 'loss.perceptual'"),
            ({"vae": {"architecture": CAUSAL, "chunks": 3}}, "unknown key 'vae.chunks'; did you mean 'vae.chunk'"),
        ],
    )
    def test_a_mistake_in_the_recipe_is_one_line(self, parts, message):
        with pytest.raises(RecipeError, match=message) as error:
            config(**parts)
        assert "\n" not in str(error.value)


class TestCrop:
    STRIDES = (4, 8, 8)

    @pytest.mark.parametrize(
        ("bucket", "crop", "size"),
        [
            ("64x96x17", {}, (17, 64, 96)),
            ("64x96x17", {"size": (32, 40), "frames": 9}, (9, 32, 40)),
            ("64x96x17", {"size": (37, 43), "frames": 12}, (9, 32, 40)),
            ("30x44x8", {"size": (64, 64)}, (5, 24, 40)),
            ("64x96x1", {"size": (32, 32), "frames": 9}, (1, 32, 32)),
            ("4x96x1", {}, (1, 0, 96)),
        ],
    )
    def test_it_divides_into_latents(self, bucket, crop, size):
        assert crop_size(Bucket.parse(bucket), CropConfig(**crop), self.STRIDES) == size

    def test_it_is_a_window_of_the_clip(self):
        picture = torch.arange(6 * 9 * 10 * 3).view(6, 9, 10, 3).remainder(256).to(torch.uint8)
        places = set()
        for key in range(50):
            part = cut_random(picture, Size(5, 8, 8), False, key).add(1).mul(127.5).round().to(torch.uint8)
            windows = picture.unfold(0, 5, 1).unfold(1, 8, 1).unfold(2, 8, 1)  # 2 2 3 3 5 8 8
            (place,) = (windows == part).flatten(3).all(-1).nonzero().tolist()
            places.add(tuple(place))
        assert len(places) == 12

    def test_a_mirrored_one_is_mirrored_in_every_frame(self):
        picture = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
        plain = cut_random(picture, Size(3, 8, 8), False, "key")
        found = [cut_random(picture, Size(3, 8, 8), True, key) for key in range(20)]
        mirrored = [torch.equal(f, plain.flip(-1)) for f in found]
        assert all(m or torch.equal(f, plain) for m, f in zip(mirrored, found, strict=True))
        assert 0 < sum(mirrored) < 20

    def test_the_centre_of_what_does_not_divide_is_taken(self):
        picture = torch.zeros(6, 10, 8, 3, dtype=torch.uint8)
        picture[:, 1:9] = 255
        size = whole_size(Bucket(10, 8, 6), self.STRIDES)
        assert (cut_centre(picture, size) == 1).all()


def test_a_reconstruction_is_measured_as_it_is(dataset, tmp_path):
    """A decoder that says nothing is as far off as grey is."""
    kind = opened(dataset, tmp_path)
    vae = CausalVAE(CausalVAEConfig(architecture=CAUSAL)).eval()
    vae.decode = lambda latents: torch.zeros(1, 3, 1 + 4 * (latents.shape[2] - 1), 32, 32)
    held_out = list(kind.dataset.held_out.values())
    loader = ClipLoader(kind.dataset.reader, cache_bytes=0)
    found = measure(vae, loader, held_out, 2, torch.device("cpu"))
    clips = [loader.load([entry])[0].picture for entries in held_out for entry in entries]
    errors = [float((c.double() / 127.5 - 1).square().mean()) for c in clips]
    expected = sum(10 * math.log10(4 / error) for error in errors) / len(errors)
    assert found.metrics["validation_psnr"] == pytest.approx(expected, abs=1e-3)
    assert found.images["reconstructions"].size[0] > 100
