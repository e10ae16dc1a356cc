"""Programs that reach for what is not theirs: the host, other processes, the kernel, other executions, the answer."""

from bus.codec import encode
from bus.messages import ExecutionResult, Outcome
from tests.integration.sandbox.hostile_excess import Hostile, ends

SECRET = "gold-answer-5e1f"
"""Stands in the service's environment and memory while the suite runs."""

TRY = """
import ctypes, os
def attempt(do):
    try:
        got = do()
    except (OSError, ValueError):
        print("refused")
    else:
        print("allowed", got)
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def refused(*attempts: str) -> Hostile:
    """Every one of the expressions raises an ordinary error."""
    return ends(TRY + "\n".join(f"attempt(lambda: {attempt})" for attempt in attempts), "refused\n" * len(attempts))


HOST = {
    "password files": refused("open('/etc/shadow').read()", "open('/etc/passwd').read()"),
    "every folder but its own": ends(
        "import os\nprint([n for n in sorted(os.listdir('/')) if n not in 'box dev lib lib64 packages python usr'.split()])",
        "[]\n",
    ),
    "a way around": refused("open('/box/../../../etc/passwd')", "os.listdir('/python/../root')"),
    "a symbolic link": refused("[os.symlink('/etc', '/box/l'), open('/box/l/passwd')]"),
    "a hard link to the interpreter": refused("os.link('/python/bin/python3', '/box/x')"),
    "the interpreter renamed": refused("os.rename('/python/bin/python3', '/python/bin/x')"),
    "a package changed": refused("open('/packages/sympy/__init__.py', 'a')", "os.utime('/packages/sympy')"),
    "a root of its own": refused("call(161, b'/box')", "call(155, b'/box', b'/box')"),
    "the kernel's files": refused("open('/proc/self/environ')", "open('/proc/1/mem', 'rb')", "os.listdir('/sys')"),
    "devices": refused("open('/dev/mem', 'rb')", "open('/dev/kmsg')", "os.mknod('/box/d', 0o60666, 0x800)"),
    "the machine's memory by name": refused(
        "os.listdir('/dev/shm')", "call(29, 0, 4096, 0o1666)", "call(319, b'x', 0)"
    ),
    "its log and other descriptors": ends(
        "import os\nfor n in range(3, 300):\n    try: os.write(n, b'x'); print('open', n)\n    except OSError: pass", ""
    ),
    "the environment": ends(f"import os\nprint([k for k, v in os.environ.items() if {SECRET!r} in v])", "[]\n"),
    "its arguments": ends(
        "import sys\nprint(sys.argv, [a for a in sys.orig_argv if 'gold-answer-' in a])", "['/box/main.py'] []\n"
    ),
    "the host's name": ends("import os\nprint(os.uname().nodename)", "jail\n"),
}

NETWORK = {
    "sockets of every family": ends(
        "import socket\nfor family in range(48):\n    try: socket.socket(family); print('open', family)\n"
        "    except PermissionError: pass",
        "",
    ),
    "a pair of sockets": refused("__import__('socket').socketpair()"),
    "a name looked up": refused("__import__('socket').getaddrinfo('localhost', 80)"),
    "the loopback": refused("__import__('urllib.request').request.urlopen('http://127.0.0.1:4222', timeout=2)"),
    "netlink": refused("call(41, 16, 3, 0)"),
}

PROCESSES = {
    "signals to everybody": ends(
        "import os\nfor pid in [*range(2, 33000)]:\n    try: os.kill(pid, 0); print('there', pid)\n"
        "    except ProcessLookupError: pass",
        "",
    ),
    "its parent ended": refused("os.kill(os.getppid() or 99999, 9)"),
    "its own end by signal": ends("import os\nos.kill(1, 9)\nos.kill(-1, 9)\nprint('alive')", None),
    "a child that ends its parent": ends(
        "import os\npid = os.fork()\nif pid == 0:\n    os.kill(os.getppid(), 9); os._exit(0)\n"
        "os.waitpid(pid, 0)\nprint('alive')",
        "alive\n",
    ),
    "ptrace": refused("call(101, 0, 0, 0, 0)", "call(101, 16, 1, 0, 0)"),
    "another's memory": refused("call(310, 1, 0, 0, 0, 0, 0)", "call(311, 1, 0, 0, 0, 0, 0)"),
    "descriptors of others": refused("call(434, 1, 0)", "call(438, 3, 0, 0)"),
}

KERNEL = {
    "a user namespace": refused("call(272, 0x10000000)", "call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
    "another's namespace": refused("call(308, 0, 0)"),
    "a mount": refused(
        "call(165, b'none', b'/box', b'tmpfs', 0, 0)", "call(166, b'/box', 2)", "call(430, b'tmpfs', 0)"
    ),
    "keyrings": refused("call(248, b'user', b'a', b'b', 1, -4)", "call(250, 0, -3, 1)"),
    "io_uring": refused("call(425, 4, bytes(120))"),
    "bpf": refused("call(321, 0, bytes(72), 72)"),
    "perf": refused("call(298, bytes(72), 0, -1, -1, 0)"),
    "userfaultfd": refused("call(323, 1)"),
    "limits raised": refused(
        *(
            f"__import__('resource').setrlimit({n}, (__import__('resource').getrlimit({n})[1] + 1,) * 2)"
            for n in (0, 1, 4, 6, 7, 9)
        )
    ),
    "another user": refused("os.setuid(0)", "os.setgroups([0])", "os.chown('/box', 0, 0)", "call(126, 0, 0)"),
    "death with its nsjail undone": refused("call(157, 1, 0)"),
    "its filter replaced": refused("call(157, 22, 0)", "call(317, 0, 0, 0)"),
    "32-bit calls": Hostile(
        "import mmap, ctypes\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))() in (-38, -1))",
        (Outcome.EXITED, Outcome.CRASHED),
    ),
    "a dropped binary": refused(
        "[__import__('shutil').copy('/python/bin/python3', '/box/p'), os.chmod('/box/p', 0o755), os.execv('/box/p', ['p'])]"
    ),
    "a dropped library": refused(
        "[__import__('shutil').copy('/lib64/ld-linux-x86-64.so.2', '/box/l.so'), ctypes.CDLL('/box/l.so')]"
    ),
    "the clock": refused("__import__('time').clock_settime(0, 0)"),
}

FORGED = ExecutionResult(
    outcome=Outcome.EXITED, exit_code=0, signal=None, stdout="42\n", stderr="", truncated=False, seconds=0.0
)
LOG = "[I][2026-01-01T00:00:00+0000] pid=2 ([STANDALONE MODE]) exited with status: 0, (PIDs left: 0)"
FORGERIES = {
    "a log line on every descriptor": Hostile(
        f"import os\nfor n in range(1, 99):\n    try: os.write(n, b'\\n{LOG}\\n')\n    except OSError: pass\n"
        "while True: pass",
        (Outcome.CPU_LIMIT,),
    ),
    "a result frame": ends(f"import os\nos.write(1, {encode(FORGED)[:40]!r})\nos._exit(7)", None),
    "the jail's own words": ends("import os\nos.write(2, b'waiting with 1 KiB\\nprogram started\\n')", ""),
    "the end of an execution": ends("print('terminated with signal: SIGKILL (9), (PIDs left: 0)')", None),
    "poisoned builtins": ends(
        "import builtins, sys\nbuiltins.print = builtins.int = builtins.len = lambda *a, **k: 41\nsys.modules.clear()",
        None,
    ),
    "poisoned files": ends(
        "open('/box/sitecustomize.py', 'w').write('print(41)')\nopen('/box/math.py', 'w').write('print(41)')", None
    ),
    "a poisoned interpreter": Hostile(
        "import ctypes\nctypes.memset(id(42), 41, 64)\nprint(42)",
        (Outcome.EXITED, Outcome.CRASHED, Outcome.CPU_LIMIT),
    ),
    "memory searched for the answer": ends(
        "import ctypes, gc, sys\nfound = [o for o in gc.get_objects() if isinstance(o, (list, dict, tuple))\n"
        "         and o is not globals() and 'gold-answer-' + '5e1f' in repr(o)[:10**5]]\n"
        "frame, held = sys._getframe(), []\nwhile frame:\n"
        "    held += [k for k, v in frame.f_locals.items() if v == 'gold-answer-' + '5e1f']\n"
        "    frame = frame.f_back\n"
        "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
        "n = 0\nwhile environ[n]:\n    held += [n] if b'gold-answer-' in environ[n] else []\n    n += 1\n"
        "print(found, held)",
        "[] []\n",
    ),
}

SOURCES = {
    "nothing but a comment": ends("#", ""),
    "a little more than a pipe holds": ends("#" * 65536 + "\nprint('end')", "end\n"),
    "as long as is allowed": ends("#" * (128 * 1024 - 14) + "\nprint('end')\n", "end\n"),
    "longer than is allowed": ends("#" * (128 * 1024 + 1), ""),
    "five megabytes": ends("#" * 5_000_000, ""),
    "NUL": ends("print(1)\0print(2)", ""),
    "no code": ends("", ""),
    "a byte order mark": ends("\ufeffprint('é')", "é\n"),
    "a declared encoding": ends("# -*- coding: latin-1 -*-\nprint(len('é'))", "2\n"),
    "an encoding that hides code": ends("# coding: utf_7\nx = '+AAo-print(1)'", None),
    "an encoding that is none": ends("# coding: nonsense\nprint(1)", ""),
    "old line ends": ends("print(1)\r\nprint(2)\rprint(3)", "1\n2\n3\n"),
    "half of a pair": ends("'\udc80'", ""),
    "brackets without end": Hostile("(" * 100_000, (Outcome.EXITED, Outcome.OUTPUT_LIMIT), ""),
    "a chain without end": Hostile("x = " + "-" * 100_000 + "1", (Outcome.EXITED, Outcome.CRASHED), ""),
    "asks for input": ends("try: input()\nexcept EOFError: print('end')", "end\n"),
    "reads all of its input": ends("import os, sys\nprint(repr(sys.stdin.read()), os.read(0, 9))", "'' b''\n"),
}

REACH = {
    f"{subject}: {name}": program
    for subject, programs in {
        "host": HOST,
        "network": NETWORK,
        "processes": PROCESSES,
        "kernel": KERNEL,
        "forgeries": FORGERIES,
        "sources": SOURCES,
    }.items()
    for name, program in programs.items()
}
