"""What the jailed interpreter runs first; it is passed to `python -c` as text and imported by nobody.

It reads the whole program from standard input (so `input()` finds its end), says on nsjail's log that the program
begins, makes the pipe on descriptor 3 its standard error, and becomes the program: `__main__`, with tracebacks that
show the program's own lines only.
"""

import builtins
import os
import sys

if __name__ == "__main__":
    source = sys.stdin.buffer.read()
    path = "/box/main.py"
    with open(path, "wb") as file:
        file.write(source)
    sys.path.append("/packages")
    # The site module, which is not loaded, would define these.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    main = sys.modules["__main__"] = type(sys)("__main__")
    main.__file__ = path
    # From here on nothing of this file's output can reach the log, nor the program's.
    os.write(2, b"program started\n")
    os.dup2(3, 2)
    os.close(3)
    try:
        exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)  # noqa: S102
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - shown as the interpreter would, without the frame of this file
        if error.__traceback__:
            error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
