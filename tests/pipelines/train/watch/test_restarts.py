"""When workers that failed are worth another start."""

import pytest

from kineograph.store.checkpoints import COMPLETE, checkpoint_folder
from pipelines.train.watch.report import new_report
from pipelines.train.watch.restarts import RESTARTS, GroupFailure, Restarts, Saved, read_restarts
from pipelines.train.watch.stop import StopRequest

DEATH = GroupFailure("death", "a training worker died (rank 1: its process ended)", 1)
MEMORY = GroupFailure("memory", "out of memory", 0)


def save(run, step, complete=True):
    checkpoint_folder(run, step).mkdir(parents=True)
    if complete:
        (checkpoint_folder(run, step) / COMPLETE).touch()


def test_as_many_in_a_row_as_are_borne(tmp_path):
    restarts = Restarts(tmp_path, 2)
    assert [restarts.after(DEATH) for _ in range(3)] == [True, True, False]


def test_none_where_none_is_borne(tmp_path):
    assert not Restarts(tmp_path, 0).after(DEATH)


def test_any_number(tmp_path):
    restarts = Restarts(tmp_path, -1)
    assert all(restarts.after(DEATH) for _ in range(100))


def test_a_new_checkpoint_makes_up_for_what_was(tmp_path):
    restarts, answers = Restarts(tmp_path, 1), []
    for step in (10, 20, 30):
        save(tmp_path, step)
        answers.append(restarts.after(DEATH))
    assert answers == [True, True, True]
    assert not restarts.after(DEATH)


def test_an_unfinished_one_does_not(tmp_path):
    restarts = Restarts(tmp_path, 1)
    restarts.after(DEATH)
    save(tmp_path, 10, complete=False)
    assert not restarts.after(DEATH)


def test_nothing_heals_an_error_of_ours(tmp_path):
    assert not Restarts(tmp_path, -1).after(GroupFailure("ours", "clip x is damaged", 0))


class TestMemory:
    def test_short_once_is_tried_again(self, tmp_path):
        restarts = Restarts(tmp_path, -1)
        assert [restarts.after(MEMORY), restarts.after(MEMORY)] == [True, False]

    def test_short_after_another_checkpoint_is_another_time(self, tmp_path):
        restarts = Restarts(tmp_path, -1)
        assert restarts.after(MEMORY)
        save(tmp_path, 10)
        assert restarts.after(MEMORY)

    def test_a_death_between_them_is_another_time(self, tmp_path):
        restarts = Restarts(tmp_path, -1)
        assert [restarts.after(failure) for failure in (MEMORY, DEATH, MEMORY)] == [True, True, True]


@pytest.mark.parametrize("cause", ["taken away", "no room"])
def test_what_the_cluster_does_is_not_counted(tmp_path, cause):
    restarts = Restarts(tmp_path, 1)
    assert all(restarts.after(GroupFailure(cause, "the cluster")) for _ in range(5))
    assert restarts.after(DEATH)


def test_waiting_for_room_is_said_once(tmp_path):
    restarts = Restarts(tmp_path, 1)
    for _ in range(3):
        restarts.after(GroupFailure("no room", "there is no room for 2 workers now"))
    assert [str(r) for r in read_restarts(tmp_path)] == ["there is no room for 2 workers now; waiting"]


def test_a_run_that_is_to_stop_does_not_start_again(tmp_path):
    StopRequest(tmp_path).ask()
    assert not Restarts(tmp_path, -1).after(DEATH)


def test_restarts_are_on_record(tmp_path):
    save(tmp_path, 10)
    restarts = Restarts(tmp_path, 1)
    restarts.after(DEATH)
    restarts.after(DEATH)
    (restart,) = read_restarts(tmp_path)
    assert (restart.cause, restart.rank, restart.step, restart.in_a_row) == ("death", 1, 10, 1)
    assert str(restart) == f"{DEATH.reason}; all start again from step 10"


def test_a_line_that_was_cut_off_is_passed_over(tmp_path):
    Restarts(tmp_path, 1).after(DEATH)
    with open(tmp_path / RESTARTS, "a") as file:
        file.write('{"cause": "dea')
    assert len(read_restarts(tmp_path)) == 1


def test_a_hang_is_told_in_place_of_the_deaths_that_end_it(tmp_path):
    new_report(tmp_path, "rank 1 (host, pid 5) hangs: 60s in step 7, loading", "", ()).rename(tmp_path / "hang-1")
    restarts = Restarts(tmp_path, -1)
    restarts.after(DEATH)
    new_report(tmp_path, "rank 0 (host, pid 4) hangs: 61s in step 9, loading", "", ())
    restarts.after(DEATH)
    restarts.after(DEATH)
    first, second, third = read_restarts(tmp_path)
    assert first.reason == third.reason == DEATH.reason
    assert second.reason.startswith("rank 0 (host, pid 4) hangs: 61s in step 9, loading (see hang-2")
    assert [restart.rank for restart in (first, second, third)] == [1, 0, 1]


class TestSaved:
    def test_a_new_run_has_nothing(self, tmp_path):
        assert Saved(tmp_path).steps() == Saved(tmp_path, 0).steps() == 0

    def test_the_newest_finished_one_counts(self, tmp_path):
        for step, complete in ((10, True), (20, True), (30, False)):
            save(tmp_path, step, complete)
        assert Saved(tmp_path).steps() == Saved(tmp_path, 20).steps() == 20

    def test_a_damaged_one_counts_when_it_was_written_anew(self, tmp_path):
        for step in (10, 20):
            save(tmp_path, step)
        saved = Saved(tmp_path, 10)
        assert saved.steps() == 10
        save(tmp_path, 15)
        assert saved.steps() == 15
        (checkpoint_folder(tmp_path, 20) / COMPLETE).unlink()
        (checkpoint_folder(tmp_path, 20) / COMPLETE).touch()
        assert saved.steps() == 20

    def test_after_a_damaged_one_a_failure_names_what_all_go_on_from(self, tmp_path):
        for step in (10, 20):
            save(tmp_path, step)
        restarts = Restarts(tmp_path, 1, Saved(tmp_path, 10))
        assert restarts.after(DEATH)
        save(tmp_path, 15)  # which makes up for it
        assert restarts.after(DEATH)
        assert [restart.step for restart in read_restarts(tmp_path)] == [10, 15]
