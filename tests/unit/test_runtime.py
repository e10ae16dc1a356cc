"""The small helpers that every role uses."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import nearest
from runtime import retry
from runtime.files import try_lock, write_whole
from runtime.locks import HeldError, held, held_within
from runtime.retry import Backoff, Restarts
from runtime.waiting import any_set, done_or_stopped


def test_a_process_ends_with_its_output_and_exit_functions_but_its_interpreter_stays():
    code = (
        "import atexit\n"
        "from runtime.child import end_process\n"
        "class Kept:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Kept()\n"
        "atexit.register(print, 'exit function', end='')\n"
        "print('output ', end='')\n"
        "end_process(3)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "output exit function", "")


class TestFiles:
    def test_a_written_file_is_alone_and_has_its_mode(self, tmp_path: Path):
        path = tmp_path / "bus.json"
        write_whole(path, "one")
        write_whole(path, "zwölf", mode=0o600)
        assert path.read_text(encoding="utf-8") == "zwölf"
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == [path]

    def test_a_write_that_fails_leaves_what_was_there(self, tmp_path: Path):
        path = tmp_path / "bus.json"
        write_whole(path, "one")
        with pytest.raises(UnicodeEncodeError):
            write_whole(path, "two \udc80")
        assert path.read_text() == "one"

    def test_a_lock_has_one_holder_until_it_is_closed(self, tmp_path: Path):
        path = tmp_path / "lock"
        with path.open("w") as first, path.open() as second:
            assert try_lock(first)
            assert not try_lock(second)
            first.close()
            assert try_lock(second)


class TestLocks:
    def test_a_lock_names_who_holds_it_and_ends_with_the_body(self, tmp_path: Path):
        path = tmp_path / "up.lock"
        for _ in range(2):
            with held(path):
                with pytest.raises(HeldError) as caught, held(path):
                    pass
                assert caught.value.holder == f"process {os.getpid()} on {os.uname().nodename}"

    def test_a_child_that_inherits_it_holds_it_as_well(self, tmp_path: Path):
        path = tmp_path / "lock"
        with held(path) as descriptor:
            child = subprocess.Popen(["sleep", "600"], pass_fds=(descriptor,))
        try:
            with pytest.raises(HeldError), held(path):
                pass
        finally:
            child.kill()
            child.wait()
        with held(path):
            pass

    async def test_one_can_wait_for_it(self, tmp_path: Path):
        path = tmp_path / "lock"
        with held(path):
            with pytest.raises(HeldError, match="lock is held by process"):
                async with held_within(path, 0.0):
                    pass
            waiting = asyncio.create_task(self.enter(path))
            await asyncio.sleep(0.01)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 60)

    async def enter(self, path: Path) -> None:
        async with held_within(path, 60.0):
            pass


class TestRestarts:
    def test_what_dies_again_and_again_is_given_up(self):
        restarts = Restarts(2, good_life_s=600.0)
        assert [restarts.died() for _ in range(4)] == [True, True, False, False]
        assert restarts.count == 4

    def test_a_good_life_or_progress_begins_the_count_again(self, monkeypatch: pytest.MonkeyPatch):
        now = 100.0
        monkeypatch.setattr(retry.time, "monotonic", lambda: now)
        restarts = Restarts(1, good_life_s=600.0)
        for _ in range(9):
            now += 600.0
            assert restarts.died()
        for _ in range(9):
            assert restarts.died(progress=True)
        now += 599.0
        assert not restarts.died()


class TestBackoff:
    async def test_pauses_double_up_to_the_longest(self, monkeypatch: pytest.MonkeyPatch):
        pauses: list[float] = []

        async def sleep(seconds: float) -> None:
            pauses.append(seconds)

        monkeypatch.setattr(retry.asyncio, "sleep", sleep)
        backoff = Backoff(60.0, first_s=1.0, longest_s=3.0)
        for _ in range(4):
            await backoff.pause()
        assert all(longest / 2 <= pause <= longest for pause, longest in zip(pauses, (1, 2, 3, 3), strict=True))

    def test_it_is_over_once_its_patience_is(self, monkeypatch: pytest.MonkeyPatch):
        now = 100.0
        monkeypatch.setattr(retry.time, "monotonic", lambda: now)
        backoff = Backoff(5.0)
        now = 105.0
        assert not backoff.over
        now = 105.1
        assert backoff.over


class TestWaiting:
    async def test_work_that_is_done_first_is_done(self):
        work = asyncio.create_task(asyncio.sleep(0, "result"))
        assert await done_or_stopped(work, asyncio.Event())
        assert work.result() == "result"

    async def test_work_that_a_stop_overtakes_is_left_as_it_is(self):
        stop, work = asyncio.Event(), asyncio.get_running_loop().create_future()
        stop.set()
        assert not await done_or_stopped(work, stop, grace_s=0.001)
        assert not work.cancelled()

    async def test_work_may_end_in_the_time_of_grace(self):
        stop, work = asyncio.Event(), asyncio.get_running_loop().create_future()
        stop.set()
        waiting = asyncio.create_task(done_or_stopped(work, stop, grace_s=60.0))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        work.set_result(None)
        assert await waiting

    async def test_one_of_several_events_is_enough(self):
        first, second = asyncio.Event(), asyncio.Event()
        waiting = asyncio.create_task(any_set(first, second))
        await asyncio.sleep(0)
        assert not waiting.done()
        second.set()
        await asyncio.wait_for(waiting, 60)


@pytest.mark.parametrize(
    ("name", "valid", "hint"),
    [
        ("stepps", ["steps", "seed"], ": did you mean steps?"),
        ("xyz", ["steps", "seed"], ": valid are steps, seed"),
        ("xyz", map(str, range(100)), f": valid are {', '.join(map(str, range(20)))}, ... (100 in all)"),
        ("xyz", [], ""),
    ],
)
def test_an_unknown_name_gets_a_hint(name: str, valid: list[str], hint: str):
    assert nearest(name, valid) == hint
