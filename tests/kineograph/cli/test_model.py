"""`kineo model` tells what models cost, and stays light until it is asked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kineograph.cli.model import model
from kineograph.errors import UserError
from kineograph.models.stdit import STDiTConfig
from kineograph.models.vae import PatchPCA, PatchPCAConfig, save_autoencoder
from kineograph.models.vit import VIT_PRESETS
from kineograph.store.checkpoints import checkpoint_folder, seal
from tests.kineograph.cli.test_main import HEAVY, imported_by

MODEL = STDiTConfig(in_channels=4, text_width=6, width=32, depth=2, heads=4).model_dump(mode="json")
GENERATOR = {
    "model": MODEL,
    "autoencoder": {"kind": "patch_pca", "channels": 4, "strides": [2, 4, 4]},
    "buckets": ["16x24x5", "16x24x1"],
    "text_encoder": {"name": "minilm", "width": 6, "max_tokens": 9},
}
CLASSIFIER = {
    "kind": "classifier",
    "label": "shape",
    "labels": ["circle", "square", "triangle"],
    "model": VIT_PRESETS["vit-demo"].model_dump(mode="json"),
    "step": 3,
}


def call(*arguments: str) -> Any:
    done = CliRunner().invoke(model, arguments, catch_exceptions=False, standalone_mode=False)
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def save(run: Path, config: dict[str, Any]) -> Path:
    folder = checkpoint_folder(run, 3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    seal(folder)
    return folder


@pytest.mark.parametrize("arguments", [("model", "-h"), ("model", "info", "-h"), ("model", "list", "-h")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments).isdisjoint(HEAVY)


def test_the_list_has_every_size() -> None:
    models = {row["name"]: row for row in call("list", "--json")["models"]}
    assert {"stdit-tiny/2", "stdit-xl/2", "opensora-v1-xl/2", "opensora-v3-xl/2", "dit-xl/2", "vit-b/16"} <= set(models)
    assert models["opensora-v1-xl/2"]["parameters"] == 759_620_768
    said = call("list")
    assert all(name in said for name in models)


def test_a_preset_is_told_in_numbers() -> None:
    facts = call("info", "opensora-v1-xl/2", "--json")
    assert facts["parameters"]["total"] == sum(facts["parameters"]["parts"].values()) == 759_620_768
    assert (facts["latent_size"], facts["visual_tokens"], facts["text_tokens"]) == ([16, 32, 32], 16 * 16 * 16, 120)
    flops = facts["flops"]
    assert flops["training"] == 3 * flops["forward"] == 3 * sum(flops["parts"].values())
    assert flops["forward_per_token"] == flops["forward"] / facts["visual_tokens"]
    assert facts["memory_bytes"]["weights_fp32"] == 4 * 759_620_768


def test_and_in_words() -> None:
    said = call("info", "dit-xl/2")
    assert "an image: 256x256 = 1x32x32 latents = 256 visual tokens" in said
    assert "674,834,720" in said


def test_what_is_given_takes_the_place_of_what_is_usual() -> None:
    options = ("--size", "9x64x96", "--vae-strides", "2x4x4", "--text-tokens", "7", "--set", "depth=3")
    facts = call("info", "stdit-s/2", *options, "--json")
    assert (facts["latent_size"], facts["visual_tokens"]) == ([5, 16, 24], 5 * 8 * 12)
    assert (facts["text_tokens"], facts["config"]["depth"]) == (7, 3)
    image = call("info", "stdit-s/2", "--size", "64x96", "--json")
    assert image["size"] == [1, 64, 96]


def test_a_checkpoint_is_told_as_it_was_trained(tmp_path: Path) -> None:
    folder = save(tmp_path, GENERATOR)
    facts = call("info", str(folder), "--json")
    assert facts["config"] == MODEL
    assert (facts["size"], facts["latent_size"], facts["text_tokens"]) == ([5, 16, 24], [3, 4, 6], 9)
    assert call("info", str(tmp_path), "--json")["parameters"] == facts["parameters"]  # the newest of a run


def test_an_imported_checkpoint_has_the_strides_of_the_autoencoder_beside_it(tmp_path: Path) -> None:
    vae = PatchPCA(PatchPCAConfig(stride=2, temporal_stride=1, channels=4))
    save_autoencoder(vae, checkpoint_folder(tmp_path, 3) / "vae")
    save(tmp_path, {key: value for key, value in GENERATOR.items() if key != "autoencoder"})
    assert call("info", str(tmp_path), "--json")["latent_size"] == [5, 8, 12]


def test_a_classifier_as_well(tmp_path: Path) -> None:
    facts = call("info", str(save(tmp_path, CLASSIFIER)), "--json")
    assert (facts["size"], facts["visual_tokens"]) == ([1, 32, 32], 16)
    assert facts["parameters"]["parts"]["head"] == 3 * (128 + 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stdit-xxl/2",), "did you mean 'stdit-xl/2'"),
        (("stdit-s/2", "--size", "big"), "write frames, height and width"),
        (("stdit-s/2", "--vae-strides", "0x8x8"), "write frames, height and width"),
        (("stdit-s/2", "--set", "dept=3"), "did you mean 'depth'"),
        ((".",), "has no whole checkpoint"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        call("info", *arguments)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_lacks_something_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, {key: value for key, value in GENERATOR.items() if key != "buckets"})
    with pytest.raises(UserError, match=r"is not of a generator: 'buckets'"):
        call("info", str(folder))
