"""A mount namespace in which an unprivileged user reaches what root's jails mount.

nsjail opens the sources of its mounts as the jail's user. Started by root that is an unprivileged user, who cannot
enter root's home, where an environment often lies. So root makes, once, a mount namespace in which the sources are
bound below a folder open to all, and starts each nsjail inside it. The host's own mounts do not change, and the
namespace ends with the last process or descriptor that holds it.
"""

import os
import select
import shutil
import subprocess
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sandbox.layout import Mount, SandboxUnavailable

FOLDERS = ("/mnt", "/srv", "/media", "/opt")
TIMEOUT_S = 20.0

# $1 is the folder that is covered, the others are sources. It stays alive until its standard input ends.
_SCRIPT = """
folder=$1; shift
mount -t tmpfs -o mode=0755,size=64k tmpfs "$folder"
number=0
for source in "$@"; do
    if [ -d "$source" ]; then mkdir "$folder/$number"; else : > "$folder/$number"; fi
    mount --bind "$source" "$folder/$number"
    number=$((number + 1))
done
echo ready
read -r _ || true
"""


class Stage:
    """Sources at places that every user reaches, inside the mount namespace that `descriptor` refers to."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        """Makes the namespace. Raises SandboxUnavailable where root may not mount."""
        folder = next(
            (f for f in FOLDERS if Path(f).is_dir() and not any(m.source.is_relative_to(f) for m in mounts)), None
        )
        tools = [shutil.which(tool) for tool in ("unshare", "nsenter", "sh")]
        if folder is None or None in tools:
            raise SandboxUnavailable(
                f"root's jails need one folder of {', '.join(FOLDERS)} to cover and util-linux: "
                "`mkdir -p /mnt && apt-get install util-linux`, or run the sandbox as an ordinary user"
            )
        unshare, self.nsenter, shell = (str(tool) for tool in tools)
        maker = subprocess.Popen(
            [unshare, "--mount", "--propagation", "private", shell, "-ec", _SCRIPT, "sh", folder]
            + [str(mount.source) for mount in mounts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert maker.stdout is not None
        readable, _, _ = select.select([maker.stdout], [], [], TIMEOUT_S)
        ready = bool(readable) and maker.stdout.readline() == b"ready\n"
        if ready:
            self.descriptor = os.open(f"/proc/{maker.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.descriptor)
        _, errors = maker.communicate(timeout=TIMEOUT_S)
        if not ready:
            raise SandboxUnavailable(
                f"root may not mount here ({errors.decode(errors='replace').strip()}): give the container "
                "`--cap-add SYS_ADMIN`, or run the sandbox as an ordinary user"
            )
        self.mounts = [replace(mount, source=Path(folder, str(number))) for number, mount in enumerate(mounts)]
