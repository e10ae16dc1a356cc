"""The seconds that really pass: also while the machine is suspended, and whatever its wall clock is set to."""

import time


def boot_time() -> float:
    """Returns the seconds since the machine started, suspension included; `time.monotonic` stands still meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
