"""serve_in_background.py PORT STATE PROGRAM ARGUMENTS... : starts a server on PORT, waits until it is ready, leaves it running.

What stands for `deepinfer serve` in the shell of a page: its own --port gives way to PORT, and a server that an earlier
line of the page started is ended first and must end cleanly. STATE is a file name: STATE.pid holds the server's process,
STATE.code its exit code once it has ended, STATE.log what it printed.
"""
import os
import pathlib
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

SHELL = '"$@" & echo $! >"$0.pid"; wait $!; code=$?; rm -f "$0.pid"; echo $code >"$0.code"'


def beside(state, suffix):
    return pathlib.Path(str(state) + suffix)


def exit_code(state, timeout=60):
    """Of a server that is ending; None when it does not."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        text = beside(state, ".code").read_text() if beside(state, ".code").exists() else ""
        if text.endswith("\n"):
            return int(text)
        time.sleep(0.01)
    return None


def stop(state):
    """Ends the server of `state`. Returns its exit code; 0 when none was started."""
    pid = beside(state, ".pid")
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)
    elif not beside(state, ".code").exists():
        return 0
    code = exit_code(state)
    beside(state, ".code").unlink(missing_ok=True)
    return code


def without_port(arguments):
    kept, value = [], False
    for argument in arguments:
        if not value and argument != "--port" and not argument.startswith("--port="):
            kept.append(argument)
        value = argument == "--port"
    return kept


def ready(port, arguments):
    if "--uds" in arguments:
        return os.path.exists(arguments[arguments.index("--uds") + 1])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    scheme = "https" if "--ssl-certfile" in arguments else "http"
    try:
        with urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}/health/ready", timeout=5, context=context) as reply:
            return reply.status == 200
    except OSError:  # refused, or 503 while the model loads
        return False


def main():
    port, state, arguments = sys.argv[1], sys.argv[2], without_port(sys.argv[3:])
    if "--help" in arguments:
        return subprocess.call(arguments)
    code = stop(state)
    if code != 0:
        sys.exit(f"the server before this one ended with exit code {code}:\n" + beside(state, ".log").read_text(errors="replace"))
    with beside(state, ".log").open("w") as log:
        # The shell stays as its parent and keeps the exit code.
        subprocess.Popen(["sh", "-c", SHELL, state, *arguments, "--port", port], stdin=subprocess.DEVNULL, stdout=log,
                         stderr=log, start_new_session=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not beside(state, ".code").exists():
        if beside(state, ".pid").exists() and ready(port, arguments):
            return 0
        time.sleep(0.02)
    print(beside(state, ".log").read_text(errors="replace"), file=sys.stderr)
    code = exit_code(state, 1) or 1
    beside(state, ".code").unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
