"""Text encoders in curation: what a recipe may say of them, and what they leave in the shards."""

import shutil

import numpy as np
import pytest

from kineograph.config import digest, load_recipe, parse_config
from kineograph.errors import RecipeError, UserError
from kineograph.models.text import load_text_encoder
from kineograph.models.torchvision_shim import ensure_torchvision_importable
from kineograph.store.manifest import Manifest
from kineograph.store.shards import ShardReader
from kineograph.store.tensors import unpack
from kineograph.synth.corpus import BadShares, SynthConfig, write_corpus
from pipelines.data import pipeline
from pipelines.data.config import CurateConfig
from pipelines.data.state import load_config
from pipelines.data.text import TextEncoding, embed_batch, find_encoder, locate_encoder, states_of
from pipelines.data.times import stage_times

RECIPE = {
    "clips": {"min_seconds": 1.125, "max_seconds": 1.5},
    "buckets": {"sizes": ["32x32x1", "32x32x9"], "fps": 8.0},
    "shards": {"rows": 8, "row_group_size": 4},
    "workers": 2,
}
WORDS = "a circle square triangle red green blue yellow moving left right up down still on black white grey".split()  # noqa: SIM905


def parsed(text_encoder):
    return parse_config({**RECIPE, "text_encoder": text_encoder}, CurateConfig)


def test_a_name_alone_is_a_whole_setting():
    long = parsed({"name": "minilm", "max_tokens": 64, "device": "cpu", "dtype": "float32"})
    assert parsed("minilm") == long == CurateConfig.model_validate(RECIPE)
    raw = long.model_dump(mode="json", exclude={"input", "inputs", "workers", "guard", "estimation"})
    assert long.recipe_digest == digest({**raw, "text_encoder": "minilm"})
    assert long.recipe_digest != parsed({"max_tokens": 63}).recipe_digest


def test_a_resolved_recipe_takes_a_setting_of_its_encoder(tmp_path):
    (tmp_path / "recipe.yaml").write_text("text_encoder: {name: 't5:org/t5'}\nbuckets: {sizes: [32x32x1]}\n")
    config = load_recipe(tmp_path / "recipe.yaml", CurateConfig, ["text_encoder.max_tokens=120"])
    assert config.text_encoder == TextEncoding(name="t5:org/t5", max_tokens=120)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("bert", r"'text_encoder.name': no text encoder 'bert'; there is: minilm, t5:NAME_OR_FOLDER"),
        ({"name": "minilm+"}, r"no text encoder 'minilm\+'"),
        ({"name": "t5:"}, "no text encoder 't5:'"),
        ({"max_tokens": 1}, r"'text_encoder.max_tokens'"),
        ({"dtype": "float64"}, r"'text_encoder.dtype'"),
        ({"tokens": 3}, r"unknown key 'text_encoder.tokens'; did you mean 'text_encoder.max_tokens'"),
        (7, "'text_encoder'"),
    ],
)
def test_a_wrong_setting_is_an_error_of_the_recipe(wrong, message):
    with pytest.raises(RecipeError, match=message) as error:
        parsed(wrong)
    assert "\n" not in str(error.value)


def test_an_encoder_that_is_not_there_is_named_before_any_work(tmp_path):
    (tmp_path / "raw").mkdir()
    write_corpus(tmp_path / "raw", SynthConfig(videos=1, images=1, bad=NOTHING_BAD), progress=False)
    with pytest.raises(UserError, match="text encoder t5:/gone: there is no such folder"):
        pipeline.curate(parsed("minilm+t5:/gone"), tmp_path / "raw", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_class_labels_are_states_too(tmp_path):
    settings = locate_encoder(TextEncoding(name="labels"))
    encoder = find_encoder(settings)
    embed_batch({"captions": ["3", "999"]}, run=str(tmp_path), settings=settings, key=encoder.key)
    assert states_of(tmp_path, "999", encoder).tolist() == [[3, 231]]
    assert states_of(tmp_path, " ", encoder).shape == (0, 2)
    with pytest.raises(UserError, match="not 'a cat'"):
        embed_batch({"captions": ["a cat"]}, run=str(tmp_path), settings=settings, key=encoder.key)
    assert encoder.info.model_dump() == {"name": "labels", "width": 2, "max_tokens": 1, "dtype": "float32"}


def test_states_of_another_device_are_others():
    cpu, gpu, second = (find_encoder(TextEncoding(device=device)) for device in ("cpu", "cuda", "cuda:1"))
    assert cpu.info == gpu.info
    assert cpu.key != gpu.key == second.key


def test_a_worker_with_other_files_says_so(tmp_path):
    with pytest.raises(UserError, match=r"text encoder minilm has other files on node .*: give all nodes the same"):
        embed_batch({"captions": ["a cat"]}, run=str(tmp_path), settings=TextEncoding(), key="0" * 32)
    assert not (tmp_path / "work").exists()


NOTHING_BAD = BadShares(**dict.fromkeys(BadShares.model_fields, 0.0))


def save_t5(folder, seed):
    """A T5 of two layers with a vocabulary of WORDS."""
    ensure_torchvision_importable()
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Six synthetic videos and images, with captions."""
    folder = tmp_path_factory.mktemp("synthetic")
    shape = {"max_side": 128, "max_seconds": 2, "max_scenes": 1, "fps": (8,), "aspects": ("1:1", "4:3")}
    corpus = SynthConfig(videos=6, seed=1, images=0.3, bad=NOTHING_BAD, **shape)
    write_corpus(folder, corpus, progress=False)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "t5"
    save_t5(folder, 0)
    return folder


@pytest.fixture(scope="module")
def curated(raw, t5, ray_of_two, tmp_path_factory):
    """(run directory, summary) of a run whose captions the tiny T5 has read, by a relative name."""
    run = tmp_path_factory.mktemp("curated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(t5.parent)
        return run, pipeline.curate(parsed({"name": "t5:t5", "max_tokens": 120}), raw, run)


@pytest.fixture
def own(curated, tmp_path):
    shutil.copytree(curated[0], tmp_path / "run")
    return tmp_path / "run"


def rows_of(run):
    reader = ShardReader(run)
    return reader.read([entry.address for entry in reader.index()])


def states_by_caption(run):
    return {row["caption"]: unpack(row["text_embedding"]) for row in rows_of(run)}


def counts(run):
    return {entry["stage"]: entry["items"] for entry in stage_times(run)}


@pytest.mark.slow
class TestRun:
    """Curation for real, with a T5."""

    def test_the_shards_hold_what_the_manifest_s_encoder_says(self, curated, t5):
        info = Manifest.load(curated[0]).text_encoder
        assert info.model_dump() == {"name": f"t5:{t5}", "width": 16, "max_tokens": 120, "dtype": "float32"}
        found = states_by_caption(curated[0])
        assert len(found) >= 4
        encoder = load_text_encoder(info.name, info.max_tokens)
        for caption, states in found.items():
            np.testing.assert_array_equal(states, encoder.encode([caption])[0])
        assert [path.name for path in (curated[0] / "work" / "text").iterdir()] == [encoder.fingerprint[:32]]

    def test_another_run_gives_the_same_dataset(self, curated, raw, t5, tmp_path):
        config = parsed({"name": f"t5:{t5}", "max_tokens": 120}).model_copy(update={"workers": 1})
        assert pipeline.curate(config, raw, tmp_path / "run")["digest"] == curated[1]["digest"]

    def test_deciding_again_encodes_nothing(self, curated, own):
        before = counts(own)
        assert pipeline.decide(own)["digest"] == curated[1]["digest"]
        assert {stage for stage, items in counts(own).items() if items != before[stage]} == {"selected"}

    def test_another_encoder_encodes_the_captions_anew_and_no_more(self, curated, own, t5):
        before = counts(own)
        pipeline.decide(own, [f"text_encoder=minilm+t5:{t5}"])
        changed = {stage for stage, items in counts(own).items() if items != before[stage]}
        assert changed == {"selected", "encoded captions", "wrote"}
        info = Manifest.load(own).text_encoder
        assert info.model_dump() == {"name": f"minilm+t5:{t5}", "width": 384, "max_tokens": 64, "dtype": "float32"}
        assert {states.shape[1] for states in states_by_caption(own).values()} == {384}
        pipeline.decide(own, [f"text_encoder.name=t5:{t5}", "text_encoder.max_tokens=4"])
        assert {len(states) for states in states_by_caption(own).values()} == {4}

    def test_states_in_half_precision_are_made_again_from_what_the_manifest_says(self, curated, own):
        pipeline.decide(own, ["text_encoder.dtype=bfloat16"])
        info, exact = Manifest.load(own).text_encoder, states_by_caption(curated[0])
        encoder = load_text_encoder(info.name, info.max_tokens, dtype=info.dtype)
        for caption, states in states_by_caption(own).items():
            np.testing.assert_array_equal(states, encoder.encode([caption])[0])
            assert np.abs(states - exact[caption]).max() > 0

    def test_other_weights_in_the_same_folder_are_another_encoder(self, curated, own, t5, tmp_path):
        shutil.copytree(t5, tmp_path / "t5")
        pipeline.decide(own, [f"text_encoder.name=t5:{tmp_path / 't5'}"])
        first = states_by_caption(own)
        save_t5(tmp_path / "t5", 1)
        pipeline.decide(own)
        assert load_config(own).text_encoder.name == f"t5:{tmp_path / 't5'}"
        encoder = load_text_encoder(f"t5:{tmp_path / 't5'}", 120)
        for caption, states in states_by_caption(own).items():
            np.testing.assert_array_equal(states, encoder.encode([caption])[0])
            assert np.abs(states - first[caption]).max() > 0
