"""Which users of the host jails run as."""

import tempfile
from pathlib import Path

import pytest

from sandbox import users
from sandbox.users import OutsideUsers, users_of_root, users_of_this_user

ALL = [range(2**32 - 1)]
OF_A_CONTAINER = [range(65536)]


@pytest.mark.parametrize(
    ("mapped", "first"),
    [
        (ALL, 1879048192),
        (OF_A_CONTAINER, 60578),
        ([range(1000), range(1000, 70000)], 60578),
        ([range(1)], users.INSIDE_ID),
        ([range(60600)], users.INSIDE_ID),
    ],
    ids=["a host", "a container", "two blocks", "root alone", "too few"],
)
def test_root_takes_users_that_nobody_has(monkeypatch: pytest.MonkeyPatch, mapped: list[range], first: int):
    monkeypatch.setattr(users, "_mapped", lambda kind: mapped)
    found = users_of_root()
    assert found.uids[0] == found.gids[0] == first
    assert bool(found.shared) == (first == users.INSIDE_ID)
    assert not found.by_helper


def test_groups_must_be_there_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(users, "_mapped", lambda kind: ALL if kind == "uid" else OF_A_CONTAINER)
    assert users_of_root().gids[0] == 60578


def test_jails_of_different_processes_have_different_users():
    outside = OutsideUsers(range(1000, 2000), range(5000, 6000), by_helper=True)
    first, second = outside.maps(7).decode(), outside.maps(8).decode()
    assert 'outside_id: "1007"' in first
    assert 'outside_id: "5007"' in first
    assert 'outside_id: "1008"' in second
    assert first.count("use_newidmap: true") == 2
    assert 'outside_id: "1000"' in outside.maps(3000).decode()


def test_an_ordinary_user_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    present = str(tmp_path / "helper")
    Path(present).touch(mode=0o755)
    monkeypatch.setattr(users, "HELPERS", (str(tmp_path / "absent"), present))
    assert "apt-get install uidmap" in users_of_this_user([]).shared
    monkeypatch.setattr(users, "HELPERS", (present, present))
    monkeypatch.setattr(users, "_subordinate", lambda file, uid: range(0))
    assert "usermod --add-subuids" in users_of_this_user([]).shared
    monkeypatch.setattr(users, "_subordinate", lambda file, uid: range(100000, 165536))
    closed = tmp_path / "closed"
    (closed / "package").mkdir(parents=True)
    monkeypatch.setattr(users, "_closed_to_others", lambda source: closed)
    found = users_of_this_user([closed / "package"])
    assert f"chmod o+rX {closed}" in found.shared
    assert len(found.uids) == len(found.gids) == 1


def test_what_keeps_others_from_a_file():
    # Pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        folder = Path(home, "package")
        folder.mkdir(mode=0o755)
        assert users._closed_to_others(folder) == Path(home)
        Path(home).chmod(0o711)
        assert users._closed_to_others(folder) is None
        folder.chmod(0o711)
        assert users._closed_to_others(folder) == folder
        folder.chmod(0o755)
        file = folder / "sub" / "module.py"
        file.parent.mkdir(mode=0o755)
        file.touch(mode=0o640)
        assert users._closed_to_others(folder) == file
        assert users._closed_to_others(file) == file
        file.chmod(0o644)
        assert users._closed_to_others(folder) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("somebody:100000:65536\n", range(0)),
        ("4711:100000:65536\n", range(100000, 165536)),
        ("4711:100000:10\n4711:200000:20\n", range(200000, 200020)),
        ("# comment\n4711:many:10\n4711:1\n", range(0)),
        ("4711:0:65536\n4711:4000:1000\n", range(0)),
        ("4711:100000:99999999999999999999\n4711:4294967000:1000\n", range(0)),
    ],
)
def test_the_range_of_a_user(tmp_path: Path, text: str, expected: range):
    (tmp_path / "subuid").write_text(text)
    assert users._subordinate(tmp_path / "subuid", 4711) == expected
    assert users._subordinate(tmp_path / "absent", 4711) == range(0)


def test_a_range_is_found_beside_what_is_no_text(tmp_path: Path):
    (tmp_path / "subuid").write_bytes(b"# f\xfcr\n4711:100000:65536\n")
    assert users._subordinate(tmp_path / "subuid", 4711) == range(100000, 165536)
    assert users._subordinate(tmp_path, 4711) == range(0)
