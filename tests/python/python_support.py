"""What several tests of the package need."""
import os
import signal
import subprocess
import sys
import textwrap
import threading


def idle(engine, seconds=20):
    """Whether the engine comes to rest in time."""
    for _ in range(seconds * 100):
        if engine.stats()["running"] + engine.stats()["waiting"] == 0:
            return True
        threading.Event().wait(0.01)
    return False


def script(text, *args, **options):
    path = os.pathsep.join(sys.path)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(text), *args], env=os.environ | {"PYTHONPATH": path},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            # A shell's background job hands down that SIGINT is ignored, and Python keeps to that.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options)
