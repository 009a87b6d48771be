"""Files and signals that ask a run to stop."""

import os
import signal
import threading

import pytest

from pipelines.train.watch import stop
from pipelines.train.watch.stop import SIGNALS, STOP, Stopped, StopRequest, stopped, stopped_by_signals


@pytest.fixture(autouse=True)
def _looks_always(monkeypatch):
    monkeypatch.setattr(stop, "LOOK_EVERY_S", 0.0)


class TestRequest:
    def test_a_touched_file_asks(self, tmp_path):
        request = StopRequest(tmp_path)
        assert not request.is_set()
        (tmp_path / STOP).touch()
        assert request.is_set()

    def test_the_disk_is_left_alone_between_looks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(stop, "LOOK_EVERY_S", 3600.0)
        request = StopRequest(tmp_path)
        assert not request.is_set()
        (tmp_path / STOP).touch()
        assert not request.is_set()

    def test_taken_back(self, tmp_path):
        request = StopRequest(tmp_path)
        request.ask()
        assert request.is_set()
        request.take_back()
        assert not request.is_set()

    def test_facts_of_a_touched_file(self, tmp_path):
        (tmp_path / STOP).touch()
        assert StopRequest(tmp_path).facts() == {}

    def test_obeying_keeps_who_asked(self, tmp_path):
        (tmp_path / STOP).write_text('{"signal": 15}')
        StopRequest(tmp_path).obeyed(120)
        assert StopRequest(tmp_path).facts() == {"signal": 15, "step": 120}


class TestSignals:
    @pytest.fixture(autouse=True)
    def _restore(self):
        before = {number: signal.getsignal(number) for number in SIGNALS}
        yield
        for number, handler in before.items():
            signal.signal(number, handler)

    @pytest.mark.parametrize("number", SIGNALS)
    def test_the_first_asks(self, tmp_path, number, capsys):
        with stopped_by_signals(tmp_path):
            os.kill(os.getpid(), number)
        assert StopRequest(tmp_path).facts() == {"signal": number}
        assert capsys.readouterr().err.startswith(f"{number.name}: saving at the next step, then leaving")

    @pytest.mark.parametrize("number", SIGNALS)
    def test_the_second_ends_it(self, tmp_path, number):
        with stopped_by_signals(tmp_path):
            os.kill(os.getpid(), number)
            with pytest.raises(Stopped, match="stopped at once") as info:
                os.kill(os.getpid(), number)
        assert info.value.exit_code == 128 + number

    def test_one_after_a_touched_file_is_a_first_one(self, tmp_path):
        (tmp_path / STOP).touch()
        with stopped_by_signals(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
        assert StopRequest(tmp_path).facts() == {"signal": signal.SIGTERM}

    def test_handlers_are_put_back(self, tmp_path):
        before = [signal.getsignal(number) for number in SIGNALS]
        with stopped_by_signals(tmp_path):
            pass
        assert [signal.getsignal(number) for number in SIGNALS] == before

    def test_another_thread_than_the_main_one_cannot_and_need_not(self, tmp_path):
        reached = []

        def work():
            with stopped_by_signals(tmp_path):
                reached.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert reached


class TestTheEnd:
    def test_of_a_signal(self, tmp_path):
        (tmp_path / STOP).write_text('{"signal": 15, "step": 120}')
        end = stopped(tmp_path, 120)
        assert (str(end), end.exit_code) == (
            "stopped by SIGTERM with 120 steps saved; run the same command again to go on",
            143,
        )
        assert not (tmp_path / STOP).exists()

    def test_of_a_file_before_the_first_step(self, tmp_path):
        (tmp_path / STOP).touch()
        end = stopped(tmp_path, 0)
        assert str(end).startswith(f"stopped by the file {tmp_path / STOP} before anything was saved;")
        assert end.exit_code == 130
