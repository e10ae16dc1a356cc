"""Programs that take more than their share, by what they take, each with how it must end.

Limits are those of `conftest.CONFIG`: 2 CPU seconds, about 450 MiB, 16 processes, 10,000 bytes a stream, 4 MiB of files.
"""

from dataclasses import dataclass

from bus.messages import Outcome

END = Outcome.EXITED
SHORT_S = 0.7


@dataclass(frozen=True)
class Hostile:
    """A program, how it may end, and all that it must print where it ends by itself, if given.

    A program that nears two limits may end by either: how much CPU time a page of memory costs depends on what else runs.
    """

    code: str
    outcomes: tuple[Outcome, ...]
    stdout: str | None = None
    timeout_s: float = 100.0
    """The wall limit; unless a program is to meet it, so far off that a busy machine does not."""


def goes_on(code: str) -> Hostile:
    """For ever, were it not for the wall limit."""
    return Hostile(code, (Outcome.TIMEOUT,), timeout_s=SHORT_S)


def ends(code: str, stdout: str | None = None) -> Hostile:
    """By itself: the limit showed itself as an ordinary error."""
    return Hostile(code, (END,), stdout)


TIME = {
    "busy loop": Hostile("while True: pass", (Outcome.CPU_LIMIT,)),
    "busy loop within one C call": goes_on("sum(range(10**15))"),
    "arithmetic without end": goes_on("pow(7, 10**9)"),
    "regular expression without end": goes_on("import re; re.match('(a+)+$', 'a' * 40 + 'b')"),
    "sleep": goes_on("import time; time.sleep(10**6)"),
    "all signals ignored": goes_on(
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: signal.pause()"
    ),
    "the CPU limit's signal caught": Hostile(
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass", (Outcome.CPU_LIMIT,)
    ),
    "CPU of many processes": Hostile(
        "import os\nfor _ in range(3): os.fork()\nwhile True: pass", (Outcome.TIMEOUT, Outcome.CPU_LIMIT), timeout_s=3.0
    ),
    "a lock that nobody opens": goes_on("import threading\nlock = threading.Lock()\nlock.acquire(); lock.acquire()"),
    "an exit function without end": goes_on("import atexit, time\natexit.register(time.sleep, 10**6)"),
    "a thread without end after the program's end": goes_on(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()"
    ),
    "an output that never flushes": goes_on(
        "import sys, time\nclass Out:\n    def write(self, text): pass\n    def flush(self): time.sleep(10**6)\n"
        "sys.stdout = Out()"
    ),
    "an error message without end": goes_on(
        "import time\nclass Bad(Exception):\n    def __str__(self): time.sleep(10**6)\nraise Bad"
    ),
    "the end prevented": goes_on("import os, time\nos._exit = lambda _: None\nwhile True: time.sleep(1)"),
}

TOGETHER = """
import os, signal
child = {child!r}
pids = []
for n in range(8):
    pid = os.fork()
    if pid == 0:
        exec(child)
        signal.pause()
    pids.append(pid)
print("ended", os.wait()[1])
os.kill(-1, 9)
"""
GREEDY = "block = bytearray(100 << 20)\nfor i in range(0, len(block), 4096): block[i] = 1"
MEMORY = {
    "one large block": ends("x = bytearray(1 << 32)"),
    # Pages that nobody writes to cost no time.
    "a list that grows": ends("x = []\nwhile True: x.append(bytes(1 << 26))"),
    "a list of what was written": Hostile(
        "x = []\nwhile True: x.append(' ' * 1000000 + str(len(x)))", (END, Outcome.CPU_LIMIT, Outcome.OUT_OF_MEMORY)
    ),
    "a number that grows": Hostile(
        "x = 3\nwhile True: x = x * x",
        (END, Outcome.TIMEOUT, Outcome.CPU_LIMIT, Outcome.OUT_OF_MEMORY),
        timeout_s=SHORT_S,
    ),
    "a private mapping": ends(
        "import mmap\ntry: mmap.mmap(-1, 1 << 31, flags=mmap.MAP_PRIVATE)\nexcept OSError: print('refused')",
        "refused\n",
    ),
    "a shared mapping": ends("import mmap\ntry: mmap.mmap(-1, 1 << 31)\nexcept OSError: print('refused')", "refused\n"),
    "thread stacks": ends(
        "import threading\nthreading.stack_size(1 << 28)\ntry:\n"
        "    for n in range(100): threading.Thread(target=input).start()\n"
        "except RuntimeError: print('refused')",
        None,
    ),
    "packed zeros": Hostile(
        "import zlib\npacker = zlib.compressobj(1, wbits=-15)\n"
        "packed = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)\n"
        "try: zlib.decompress(packed * 1000, -15)\nexcept MemoryError: print('refused')",
        (END, Outcome.CPU_LIMIT),
        "refused\n",
    ),
    "deep recursion in C": Hostile(
        "class A: pass\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)", (END, Outcome.CRASHED, Outcome.CPU_LIMIT)
    ),
    "no core file": Hostile("import os; os.abort()", (Outcome.CRASHED,)),
}
MEMORY_TOGETHER = {
    "children together": Hostile(TOGETHER.format(child=GREEDY), (END, Outcome.OUT_OF_MEMORY), None),
    "memory that children share": Hostile(
        "import mmap, os, signal\nfor n in range(8):\n    if os.fork() == 0: break\n"
        "block = mmap.mmap(-1, 100 << 20)\nfor i in range(0, len(block), 4096): block[i] = 1\n"
        "import time; time.sleep(60)",
        (Outcome.OUT_OF_MEMORY, Outcome.TIMEOUT),
        timeout_s=6.0,
    ),
}

PROCESSES = {
    "fork bomb": Hostile(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        (Outcome.TIMEOUT, Outcome.CPU_LIMIT),
        None,
        1.5,
    ),
    "thread bomb": ends(
        "import threading, time\ntry:\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError: print('refused')",
        "refused\n",
    ),
    "orphans in sessions of their own": ends(
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0: time.sleep(60)\n"
        "        os._exit(0)\nprint('left them')",
        "left them\n",
    ),
    "stopped children": ends(
        "import os, signal, time\npid = os.fork()\nif pid == 0: time.sleep(60)\nos.kill(pid, signal.SIGSTOP)\n"
        "print('stopped')",
        "stopped\n",
    ),
    "children that hold the output open": ends(
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nprint('gone')", "gone\n"
    ),
    "children that nobody waits for": ends(
        "import os\ntry:\n    while True:\n        if os.fork() == 0: os._exit(0)\nexcept OSError: print('refused')",
        "refused\n",
    ),
    "its own kernel priority": ends("import os\ntry: os.nice(-20)\nexcept OSError: print('refused')", "refused\n"),
}

FLOOD = Outcome.OUTPUT_LIMIT
OUTPUT = {
    "one line without end": Hostile("import os\nwhile True: os.write(1, b'y' * 65536)", (FLOOD,)),
    "single bytes": Hostile("import os\nwhile True: os.write(1, b'y')", (FLOOD,)),
    "empty lines": Hostile("while True: print()", (FLOOD,)),
    "errors": Hostile("import os\nwhile True: os.write(2, b'y' * 65536)", (FLOOD,)),
    "both streams in turn": Hostile("import os\nwhile True: os.write(1, b'a' * 99); os.write(2, b'b' * 99)", (FLOOD,)),
    "many children": Hostile("import os\nfor _ in range(3): os.fork()\nwhile True: os.write(1, b'y' * 4096)", (FLOOD,)),
    "a child after the program's end": Hostile(
        "import os\nif os.fork() == 0:\n    while True: os.write(1, b'y' * 4096)", (FLOOD, END)
    ),
    "warnings of a traceback": Hostile("raise Exception('y' * 10**6)", (FLOOD,)),
    "slowly up to the wall": goes_on("import time\nwhile True: print('drip'); time.sleep(0.01)"),
    "bytes that are no text": ends("import os\nos.write(1, bytes(range(128, 256)))", "\ufffd" * 128),
    "zeros and control characters": ends("import os\nos.write(1, b'\\0\\x1b[2J\\x07\\r')", "\0\x1b[2J\x07\r"),
    "half of a character": ends("import os\nos.write(1, '€'.encode()[:2])", "\ufffd"),
    "text that has no encoding": ends("print('\\udc80')", "\ufffd\n"),
}

DESCRIPTORS = {
    "all closed": ends("import os\nos.closerange(0, 1000)\nos._exit(0)", ""),
    "output closed, then printed": Hostile("import sys\nsys.stdout.close()\nprint('x')", (END,), ""),
    "all closed and asleep": goes_on("import os, time\nos.closerange(0, 1000)\ntime.sleep(60)"),
    "input put to another use": ends("import os\nos.dup2(1, 0)\nos.write(0, b'x')", "x"),
    "as many as it can get": ends(
        "import os\nheld = []\ntry:\n    while True: held.append(os.open('/dev/null', 0))\n"
        "except OSError as e: print(e.errno)",
        "24\n",
    ),
    "pipes filled to the brim": ends(
        "import os\nheld = []\ntry:\n    while True:\n"
        "        r, w = os.pipe(); os.set_blocking(w, False); held.append(r)\n"
        "        try:\n            while True: os.write(w, bytes(65536))\n        except BlockingIOError: pass\n"
        "except OSError as e: print(e.errno)",
        "24\n",
    ),
}

FILES = {
    "a full disk": ends(
        "try:\n    for n in range(99): open(f'/box/{n}', 'wb').write(bytes(1 << 20))\n"
        "except OSError as e: print(e.errno)",
        "28\n",
    ),
    "files that have no name": ends(
        "import os\nheld = []\ntry:\n    while True:\n"
        "        held.append(open('/box/x', 'wb', 0)); held[-1].write(bytes(1 << 20)); os.unlink('/box/x')\n"
        "except OSError as e: print(e.errno)",
        "28\n",
    ),
    "inodes": ends(
        "import os\ntry:\n    for n in range(10**5): os.mkdir(f'/box/{n}')\nexcept OSError as e: print(e.errno)", "28\n"
    ),
    "a sparse file": ends("try: open('/box/x', 'wb').truncate(1 << 40)\nexcept OSError as e: print(e.errno)", "27\n"),
    "deep folders": ends(
        "import os\ntry:\n    while True: os.mkdir('d'); os.chdir('d')\nexcept OSError as e: print(e.errno)", "28\n"
    ),
    "a mapping of more than the folder holds": Hostile(
        "import mmap\nf = open('/box/x', 'w+b')\nf.truncate(4 << 20)\nm = mmap.mmap(f.fileno(), 4 << 20)\n"
        "m[:] = b'y' * len(m)",
        (Outcome.CRASHED,),
    ),
}

EXCESS = {
    f"{subject}: {name}": program
    for subject, programs in {
        "time": TIME,
        "memory": MEMORY,
        "memory together": MEMORY_TOGETHER,
        "processes": PROCESSES,
        "output": OUTPUT,
        "descriptors": DESCRIPTORS,
        "files": FILES,
    }.items()
    for name, program in programs.items()
}
