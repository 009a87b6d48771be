"""Checkpoints: whole or not used, and it is said which and why."""

import errno
import json
import os
import shutil
from unittest.mock import Mock

import pytest

from kineograph.errors import UserError
from kineograph.store.checkpoints import (
    COMPLETE,
    CONFIG,
    DIGESTS,
    checkpoint_folder,
    find_fault,
    latest_checkpoint,
    link_folder,
    list_checkpoints,
    read_config,
    resolve_checkpoint,
    seal,
    step_of,
)


def save(run, step):
    folder = checkpoint_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(100)))
    (folder / "vae").mkdir()
    (folder / "vae" / "model.safetensors").write_bytes(bytes(range(50)))
    (folder / CONFIG).write_text(json.dumps({"step": step}))
    seal(folder)
    return folder


@pytest.fixture
def run(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step)
    return tmp_path


def flip_a_bit(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[50] ^= 1
    (folder / "model.safetensors").write_bytes(data)


DAMAGE = {
    "the bytes of model.safetensors": flip_a_bit,
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "vae/model.safetensors is missing": lambda folder: (folder / "vae" / "model.safetensors").unlink(),
    "config.json is missing": lambda folder: (folder / CONFIG).unlink(),
    "it was not finished": lambda folder: (folder / COMPLETE).unlink(),
    "digests.json cannot be read": lambda folder: (folder / DIGESTS).unlink(),
    "digests.json does not list its files": lambda folder: (folder / DIGESTS).write_text("{}"),
}


def test_the_newest_checkpoint_is_used(run):
    assert latest_checkpoint(run) == checkpoint_folder(run, 30)


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, fault):
    DAMAGE[fault](checkpoint_folder(run, 30))
    assert latest_checkpoint(run) == checkpoint_folder(run, 20)


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_checkpoint_is_named_with_what_is_wrong(run, fault, capsys):
    folder = checkpoint_folder(run, 30)
    DAMAGE[fault](folder)
    latest_checkpoint(run)
    assert capsys.readouterr().err.startswith(f"skipping checkpoint {folder}: {fault}")


def test_an_empty_folder_is_passed_over(run):
    checkpoint_folder(run, 40).mkdir()
    assert latest_checkpoint(run) == checkpoint_folder(run, 30)


def test_when_all_are_damaged_there_is_none(run):
    for folder in list_checkpoints(run):
        flip_a_bit(folder)
    assert latest_checkpoint(run) is None


def test_other_folders_are_no_checkpoints(run):
    (run / "checkpoints" / "step-5").mkdir()
    (run / "checkpoints" / "notes").mkdir()
    assert [step_of(folder) for folder in list_checkpoints(run)] == [10, 20, 30]


def test_a_damaged_checkpoint_that_is_asked_for_by_name_is_refused(run):
    folder = checkpoint_folder(run, 20)
    flip_a_bit(folder)
    with pytest.raises(UserError, match=r"is damaged: the bytes of model\.safetensors"):
        resolve_checkpoint(folder)


def test_a_whole_checkpoint_that_is_asked_for_by_name_is_used(run):
    assert resolve_checkpoint(checkpoint_folder(run, 10)) == checkpoint_folder(run, 10)


def test_a_run_without_a_whole_checkpoint_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="train one with 'kineo train"):
        resolve_checkpoint(tmp_path)


def test_a_moved_checkpoint_is_still_whole(run, tmp_path):
    moved = shutil.move(checkpoint_folder(run, 30), tmp_path / "elsewhere-step")
    assert find_fault(moved) == ""


def test_a_config_that_cannot_be_read_is_a_users_error(run):
    folder = checkpoint_folder(run, 30)
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match=r"config\.json of checkpoint .* cannot be read"):
        read_config(folder)


class TestLinkFolder:
    @pytest.fixture
    def source(self, tmp_path):
        (tmp_path / "source" / "inner").mkdir(parents=True)
        (tmp_path / "source" / "config.json").write_text("{}")
        (tmp_path / "source" / "inner" / "weights").write_bytes(b"weights")
        return tmp_path / "source"

    def test_the_files_are_the_same_ones(self, source, tmp_path):
        link_folder(source, tmp_path / "target")
        for name in ("config.json", "inner/weights"):
            assert (tmp_path / "target" / name).samefile(source / name)

    def test_they_are_copied_where_they_cannot_be_linked(self, source, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EXDEV, "another device")))
        link_folder(source, tmp_path / "target")
        copy = tmp_path / "target" / "inner" / "weights"
        assert copy.read_bytes() == b"weights"
        assert not copy.samefile(source / "inner" / "weights")

    def test_nothing_else_is_left(self, source, tmp_path):
        link_folder(source, tmp_path / "target")
        left = {p.relative_to(tmp_path / "target").as_posix() for p in (tmp_path / "target").rglob("*") if p.is_file()}
        assert left == {"config.json", "inner/weights"}
