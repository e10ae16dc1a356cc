"""Runs first in the jailed interpreter; it is passed to `python -c` as text and imported by nobody.

Arguments: the program's CPU seconds, the bytes of heap that the C library takes at once (0 without packages), then packages
to import before the program. It says on nsjail's log that it waits, reads the whole program from standard input (so
`input()` finds its end), says that the program begins, makes the pipe on descriptor 3 its standard error, and becomes the
program: `__main__`, with tracebacks that show the program's own lines only. It ends without taking the modules apart, which
for large packages takes longer than most programs.
"""

import atexit
import builtins
import os
import resource
import sys

if __name__ == "__main__":
    leave, modules, run_exit_functions = os._exit, sys.modules, atexit._run_exitfuncs
    cpu_s, heap, packages = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    path = "/box/main.py"
    sys.argv[:] = [path]
    sys.path.append("/packages")
    os.environ["PYTHONPATH"] = "/packages"
    if heap:
        # In huge pages: the kernel takes those back in a fifth of the time, and the answer waits for it.
        import ctypes
        import mmap

        libc = ctypes.CDLL(None)
        libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        end = libc.sbrk(0)
        start = -(-(end - heap) // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(start, end - start, mmap.MADV_HUGEPAGE)
        for name in ("GLIBC_TUNABLES", "PYTHONMALLOC"):
            os.environ.pop(name, None)
    for package in packages:
        __import__(package)
    # The site module, which is not loaded, would define these.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    main = modules["__main__"] = type(sys)("__main__")
    main.__file__ = path
    os.write(2, b"waiting with %d KiB\n" % resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    source = sys.stdin.buffer.read()
    if not source:
        # Nobody wants this jail any more: no program is empty.
        leave(0)
    with open(path, "wb") as file:
        file.write(source)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # What was spent on waiting and importing does not count. The limit has whole seconds: never too few.
    spent = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (spent + cpu_s, spent + cpu_s))
    # From here on nothing of this file's output can reach the log, nor the program's.
    os.write(2, b"program started\n")
    os.dup2(3, 2)
    os.close(3)
    status = 0
    try:
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)  # noqa: S102
    except SystemExit as end:
        if isinstance(end.code, int):
            status = end.code
        elif end.code is not None:
            sys.stderr.write(f"{end.code}\n")
            status = 1
    except BaseException as error:  # noqa: BLE001 - shown as the interpreter would, without the frame of this file
        if error.__traceback__:
            error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    # As the interpreter ends: threads, exit functions, buffers; whatever a program made of them is its own matter.
    if "threading" in modules:
        modules["threading"]._shutdown()
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112
            continue
    # As the interpreter does, which takes a number that is no C long for -1.
    leave(status & 0xFF if -(2**63) <= status < 2**63 else 0xFF)
