"""The program's commands in this process."""
import signal

from . import _core


def run(arguments: list[str]) -> int:
    """Runs `deepinfer ARGUMENTS`; returns its exit code. Ends as the program does when a signal comes."""
    # What Python does with signals is for programs in Python: Ctrl-C would wait for the command's end, and writing into a
    # closed pipe would be an error to report. A shell's wish that Ctrl-C be ignored stays.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    return _core.run(["deepinfer", *arguments])
