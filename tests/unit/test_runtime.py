"""The small helpers that every role uses."""

import asyncio
from pathlib import Path

import pytest

from configs.errors import nearest
from runtime import retry
from runtime.files import try_lock, write_whole
from runtime.retry import Backoff
from runtime.waiting import any_set, done_or_stopped


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
