"""Reads from nsjail's log and exit status how an execution ended, and what fixes a jail that cannot start.

The program can write neither: nsjail's log goes to a descriptor that the program does not have.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from signal import SIGABRT, SIGKILL, SIGSYS

from bus.messages import Outcome

_ENDED = re.compile(
    rb"^\[I\]\[[^]\n]*\] pid=\d+ \(\[STANDALONE MODE\]\) "
    rb"(?:exited with status: (\d+)|terminated with signal: \S+ \((\d+)\)), \(PIDs left: 0\)$",
    re.MULTILINE,
)
_PROBLEM = re.compile(rb"^\[[EFW]\].*|.*error while loading shared libraries.*|.*[Pp]ython.*rror.*", re.MULTILINE)


@dataclass(frozen=True)
class Ending:
    """Holds what nsjail's log says of the program: its exit code or the signal that ended it, or neither."""

    exit_code: int | None
    signal: int | None

    @classmethod
    def read(cls, record: bytes) -> "Ending | None":
        """Reads the ending from nsjail's log; returns None where nsjail was ended before the program."""
        ended = _ENDED.search(record)
        if ended is None:
            return None
        signal = int(ended[2]) if ended[2] else None
        # What the filter kills for is abort(), but for calls of another architecture (`policy.kafel`).
        return cls(int(ended[1]) if ended[1] else None, SIGABRT if signal == SIGSYS else signal)

    def outcome(self, out_of_memory: bool) -> Outcome:
        """Returns how a program ended that was not ended by us.

        A program is process 1 of its namespace, where no SIGKILL of its own reaches it: that came from the kernel, for
        want of memory or at the CPU limit.

        Args:
            out_of_memory: the kernel killed a process for want of memory, in the jail's group or, where there are no
                groups, on this machine while the program was below its CPU limit.
        """
        if self.signal is None:
            return Outcome.EXITED
        if self.signal != SIGKILL:
            return Outcome.CRASHED
        return Outcome.OUT_OF_MEMORY if out_of_memory else Outcome.CPU_LIMIT


def problems(record: bytes) -> str:
    """Returns nsjail's own words about what went wrong, in one line."""
    lines = [line.decode(errors="replace") for line in _PROBLEM.findall(record)]
    return " | ".join(lines[-4:]) or record[-300:].decode(errors="replace").strip()


def remedy(detail: str) -> str:
    """Returns the message for a set-up failure: what is missing and the one command that fixes it."""
    library = re.search(r"loading shared libraries: (\S+?):", detail)
    if library:
        return f"nsjail lacks {library[1]}: `apt-get install libnl-route-3-200`"
    if "chmod o+x" in detail:
        return f"the jails' users cannot reach the interpreter or a package: install them elsewhere ({detail})"
    if "clone(" in detail or "CLONE_NEW" in detail:
        return f"this user may not make user namespaces: `{_namespace_command()}` ({detail})"
    return f"nsjail cannot set a jail up: {detail}"


def _namespace_command() -> str:
    """Returns the command that allows user namespaces, by what the kernel has."""
    for switch, wanted in (
        ("kernel/apparmor_restrict_unprivileged_userns", "0"),
        ("kernel/unprivileged_userns_clone", "1"),
    ):
        path = Path("/proc/sys", switch)
        if path.exists() and path.read_text().strip() != wanted:
            return f"sysctl -w {switch.replace('/', '.')}={wanted}"
    return "sysctl -w user.max_user_namespaces=65536"
