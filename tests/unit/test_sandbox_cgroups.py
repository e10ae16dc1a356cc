"""Where control groups are found, what is written into them, and what is removed, on trees of plain folders."""

import os
from pathlib import Path

import pytest

from configs.schema import SandboxConfig
from runtime.files import try_lock
from sandbox.cgroups import (
    CgroupsUnavailable,
    _make_service_group,
    delegated,
    find_hierarchies,
    kills,
    settings,
)

CONFIG = SandboxConfig(memory_mb=100, max_processes=7, cpus=0.5)
MOUNTS_V1 = """\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
35 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
"""
UNIFIED = "36 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
MEMBER_V1 = "9:name=systemd:/\n8:pids:/a\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/c\n"
MOUNT_V2 = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MEMBER_V2 = "0::/user.slice/session-3.scope\n"


def folders(mountinfo: str, membership: str) -> list[tuple[str, int, str]]:
    found = find_hierarchies(mountinfo, membership)
    return [(name, hierarchy.version, str(hierarchy.folder)) for name, hierarchy in found.items()]


@pytest.mark.parametrize("mounts", [MOUNTS_V1, UNIFIED + MOUNTS_V1], ids=["v1 alone", "mixed"])
def test_version_1_has_a_folder_for_each_controller(mounts):
    root = "/sys/fs/cgroup"
    assert folders(mounts, MEMBER_V1) == [
        ("memory", 1, f"{root}/memory/a/b"),
        ("pids", 1, f"{root}/pids/a"),
        ("cpu", 1, f"{root}/cpu,cpuacct"),
    ]


def test_version_2_has_one_folder_for_all():
    folder = "/sys/fs/cgroup/user.slice/session-3.scope"
    assert folders(MOUNT_V2, MEMBER_V2) == [("memory", 2, folder), ("pids", 2, folder), ("cpu", 2, folder)]


def test_version_2_where_version_1_lacks_a_controller():
    assert {version for _, version, _ in folders(UNIFIED + MOUNTS_V1.replace("rw,pids", "rw,net_cls"), MEMBER_V1)} == {
        2
    }


@pytest.mark.parametrize(
    ("root", "folder"),
    [("/docker/c1", "/sys/fs/cgroup/x"), ("/elsewhere", "/sys/fs/cgroup")],
    ids=["the container's part is mounted", "another part is mounted"],
)
def test_a_container_sees_its_part_of_the_tree(root, folder):
    mounts = MOUNT_V2.replace(" / /sys", f" {root} /sys")
    assert folders(mounts, "0::/docker/c1/x\n")[0][2] == folder


@pytest.mark.parametrize("mounts", ["", MOUNTS_V1.replace("rw,memory", "rw,net_cls")], ids=["none", "without memory"])
def test_what_is_not_mounted_is_named_with_the_remedy(mounts):
    with pytest.raises(CgroupsUnavailable, match=r"memory.*`mount -t cgroup2"):
        find_hierarchies(mounts, MEMBER_V1)


def test_settings_of_version_1():
    memory = str(132 * 1024**2)
    assert settings(1, CONFIG) == {
        "memory": {"memory.limit_in_bytes": memory, "memory.memsw.limit_in_bytes": memory},
        "pids": {"pids.max": "8"},
        "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
    }


def test_settings_of_version_2():
    assert settings(2, CONFIG) == {
        "memory": {"memory.max": str(132 * 1024**2), "memory.swap.max": "0"},
        "pids": {"pids.max": "8"},
        "cpu": {"cpu.max": "50000 100000"},
    }


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
        ("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 5\n", 1),
        ("low 0\n", 0),
    ],
    ids=["version 1", "version 2", "an old kernel"],
)
def test_kills_for_want_of_memory(text, count):
    assert kills(text) == count


def unified(folder: Path, controllers: str, enabled: str) -> Path:
    """A group of version 2 as plain files."""
    for name, text in {"controllers": controllers, "subtree_control": enabled, "type": "domain", "procs": ""}.items():
        (folder / f"cgroup.{name}").write_text(text)
    return folder


def test_a_group_without_the_controllers_is_refused_and_left_alone(tmp_path):
    with pytest.raises(CgroupsUnavailable, match=r"no controller cpu, memory: `systemd-run .*Delegate=yes"):
        delegated(unified(tmp_path, "pids io", ""))
    assert not (tmp_path / "service-zerotir").exists()


def test_a_group_that_hands_its_controllers_down_is_used_as_it_is(tmp_path):
    assert delegated(unified(tmp_path, "cpu memory pids", "cpu memory pids")) == tmp_path
    assert not (tmp_path / "service-zerotir").exists()


def test_the_service_moves_into_a_leaf_to_let_its_group_be_divided(tmp_path):
    own = unified(tmp_path, "cpu io memory pids", "")
    assert delegated(own) == own
    assert (own / "service-zerotir" / "cgroup.procs").read_text() == "0"
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    # Asked again from the leaf, the same group is the answer.
    unified(own, "cpu io memory pids", "cpu memory pids")
    assert delegated(own / "service-zerotir") == own


def test_a_service_that_holds_the_others_up_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sandbox.cgroups.LOCK_S", 0.05)
    holder = os.open(tmp_path, os.O_RDONLY)
    assert try_lock(holder)
    with pytest.raises(CgroupsUnavailable, match="another sandbox service has held"):
        _make_service_group(object(), {"memory": tmp_path})
    os.close(holder)


def test_services_that_share_only_some_hierarchies_leave_each_other_alone(tmp_path):
    """On version 1 a host's processes may lie apart for memory and together for everything else."""

    class Owner:
        pass

    def service(memory: str) -> tuple[Owner, dict[str, Path]]:
        owner = Owner()
        places = {"memory": memory, "pids": "shared", "cpu": "shared"}
        for name in places.values():
            (tmp_path / name).mkdir(exist_ok=True)
        return owner, _make_service_group(owner, {name: tmp_path / place for name, place in places.items()})

    first, folders = service("one")
    for folder in folders.values():
        (folder / "0").mkdir(exist_ok=True)
    second, others = service("two")
    assert all((folder / "0").is_dir() for folder in folders.values())
    assert folders["pids"].parent == others["pids"].parent
    del first
    assert not any(folder.exists() for folder in folders.values())
    assert all(folder.is_dir() for folder in others.values())
    # One that was killed has left locks that nobody holds.
    left = tmp_path / "shared" / "zerotir-00000000"
    (left / "7").mkdir(parents=True)
    third, _ = service("one")
    assert not left.exists()
    del second, third
