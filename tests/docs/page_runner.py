"""Runs the snippets of one page in a folder of its own."""
import json
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import yaml

import serve_in_background
from snippets import ROOT

HERE = pathlib.Path(__file__).parent
TIMEOUT = 120  # seconds of one snippet
# What a reader has of the repository; copies, as a snippet may write there.
COPIED = ("configs", "deploy", "docs", "examples")
CARDS = {  # name, uuid, MiB in all, MiB free, compute capability, busy, degrees, milliwatts, limit
    "RTX 5090": "gpu=NVIDIA GeForce RTX 5090|GPU-5090|32607|31500|12.0|3|41|55000|575000",
    "two RTX 5090": ";".join(f"gpu=NVIDIA GeForce RTX 5090|GPU-5090-{i}|32607|31500|12.0|3|41|55000|575000" for i in (0, 1)),
    "RTX 4090": "gpu=NVIDIA GeForce RTX 4090|GPU-4090|24564|23900|8.9|0|38|30000|450000",
}


NEEDED = {"gpu": "a GPU", "cuda": "a program with the CUDA backend"}


class Skipped(Exception):
    """With the reason."""


class Failed(Exception):
    """With what was printed."""


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has(word, program):
    if word == "gpu":
        return os.path.exists("/dev/nvidiactl")
    if word == "cuda":
        asked = subprocess.run([program, "run", "--device", "cuda:99", "hi"], capture_output=True, text=True, timeout=TIMEOUT)
        return "no CUDA backend" not in asked.stderr
    return shutil.which(word) is not None


class PageRunner:
    """`place`: what all pages share (conftest.py). Snippets are run in their order, each once."""

    def __init__(self, place, folder):
        self.place, self.folder = place, folder
        self.port = free_port()
        self.state = str(folder / ".server")
        self.interpreter = None
        self.results = {}
        work = self.work = folder / "work"
        work.mkdir(parents=True)
        for name in COPIED:
            if (ROOT / name).exists():
                shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
        for script in (work / "examples").glob("*.py"):
            script.write_text(self._local(script.read_text()))
        for name, target in place.models.items():
            if target.is_dir():
                shutil.copytree(target, work / name)
            else:
                (work / name).symlink_to(target)
        self._programs()

    def _programs(self):
        """deepinfer and python, with servers in the background, and a stricter curl."""
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        serve = shlex.join([sys.executable, str(HERE / "serve_in_background.py"), str(self.port), self.state])
        program, python = shlex.quote(str(self.place.program)), shlex.quote(sys.executable)
        scripts = {
            # `deepinfer run` reads the prompt from standard input, where none is given.
            "deepinfer": f'case "$1" in\nserve) exec {serve} {program} "$@" ;;\n'
                         f'run) echo "Say hello." | exec {program} "$@" ;;\n*) exec {program} "$@" ;;\nesac\n',
            "python": f'case "$1 $2" in\n"-m deepinfer.server") exec {serve} {python} "$@" ;;\n*) exec {python} "$@" ;;\nesac\n',
        }
        scripts["python3"] = scripts["python"]
        # An answer of status 400 and more is a failure, which curl alone does not say.
        if shutil.which("curl"):
            scripts["curl"] = f'exec {shlex.quote(shutil.which("curl"))} --fail-with-body "$@"\n'
        for name, text in scripts.items():
            (self.bin / name).write_text("#!/bin/bash\n" + text)
            (self.bin / name).chmod(0o755)

    def environment(self, snippet):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("DEEPINFER_", "HF_", "XDG_"))}
        env |= self.place.environment
        env |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.folder / "home"), "TMPDIR": str(self.folder)}
        card = snippet.text("card")
        if card:
            if not self.place.fake_nvml.exists():
                raise Failed(f"{self.place.fake_nvml} is missing: build the target fake_nvml")
            env |= {"DEEPINFER_CUDA_LIB_DIR": str(self.place.fake_nvml), "CUDA_VISIBLE_DEVICES": "0,1" if "two" in card else "0",
                    "FAKE_NVML": f"driver=580.82.07;cuda=13000;{CARDS[card]}"}
        return env

    def close(self):
        if self.interpreter:
            self.interpreter.kill()
            self.interpreter.wait()
            for descriptor in self.pipes:
                os.close(descriptor)
        code = serve_in_background.stop(self.state)
        assert code == 0, f"the page's last server ended with exit code {code}"

    def run_up_to(self, page_snippets, index):
        """Runs what comes before, once, then the snippet. Returns a Skipped, a Failed, or None."""
        for i, snippet in enumerate(page_snippets[:index + 1]):
            if i not in self.results:
                self.results[i] = self._outcome(snippet)
        return self.results[index]

    def _outcome(self, snippet):
        try:
            self._run(snippet)
        except (Skipped, Failed) as outcome:
            return outcome
        return None

    def _run(self, snippet):
        problem = snippet.problem()
        if problem:
            raise Failed(problem)
        if snippet.text("skip"):
            raise Skipped(snippet.text("skip"))
        missing = [word for word in snippet.texts("needs") if not has(word, self.place.program)]
        if missing:
            raise Skipped("needs " + ", ".join(NEEDED.get(word, word) for word in missing))
        if snippet.text("file"):
            (self.work / snippet.text("file")).write_text(snippet.code)
        failure = None
        try:
            getattr(self, "_" + snippet.language)(snippet, self._code(snippet))
        except Failed as failed:
            failure = failed
        words = snippet.text("fails")
        if words is None and failure:
            raise failure
        if words is not None and (failure is None or words not in str(failure)):
            raise Failed(f"expected a failure that says {words!r}, got " + (f"another one:\n{failure}" if failure else "none"))

    def _code(self, snippet):
        code = snippet.code
        for text in snippet.texts("replace"):
            old, _, new = text.partition(" => ")
            if old not in code:
                raise Failed(f"directive replace: {old!r} is not in the snippet")
            code = code.replace(old, new)
        return self._local(code)

    def _local(self, text):
        """With this page's port in place of the default one."""
        return re.sub(r"\b(127\.0\.0\.1|localhost):8000\b", rf"\1:{self.port}", text)

    def _server(self, code, env):
        """The server that a snippet talks to, unless it starts one: what quickstart.sh leaves running."""
        starts = "serve" in code or "deepinfer.server" in code
        talks = f":{self.port}" in code or "examples/" in code
        if talks and not starts and not os.path.exists(self.state + ".pid"):
            self._shell("deepinfer serve", env)

    def _shell(self, code, env):
        # Not a pipe: a server that stays must not keep it open.
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", code], cwd=self.work, env=env, stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=output, start_new_session=True)
            try:
                code = process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = f"none within {TIMEOUT} s"
            output.seek(0)
            text = output.read().decode(errors="replace")
        print(text)
        if code != 0:
            raise Failed(f"exit code {code}\n{text}")

    def _sh(self, snippet, code):
        env = self.environment(snippet)
        self._server(code, env)
        self._shell(code, env)

    def _python(self, snippet, code):
        env = self.environment(snippet)
        self._server(code, env)
        if snippet.text("card"):  # its environment is another one
            (self.folder / "card.py").write_text(code)
            return self._shell(f"python {shlex.quote(str(self.folder / 'card.py'))}", env)
        if not self.interpreter:
            self._interpreter(env)
        self._ask({"code": code, "file": snippet.page, "line": snippet.line})

    def _interpreter(self, env):
        (read, self.requests), (self.answers, write) = os.pipe(), os.pipe()
        self.pipes = (self.requests, self.answers)
        self.printed = (self.folder / "python.log").open("w+")
        self.interpreter = subprocess.Popen([sys.executable, HERE / "python_blocks.py", str(read), str(write)], cwd=self.work,
                                            env=env, stdin=subprocess.DEVNULL, stdout=self.printed, stderr=self.printed,
                                            pass_fds=(read, write))
        os.close(read)
        os.close(write)

    def _ask(self, request):
        os.write(self.requests, (json.dumps(request) + "\n").encode())
        answer, end = b"", time.monotonic() + TIMEOUT
        while not answer.endswith(b"\n"):
            if not select.select([self.answers], [], [], max(0, end - time.monotonic()))[0]:
                self.interpreter.kill()
                raise Failed(f"not done within {TIMEOUT} s")
            piece = os.read(self.answers, 65536)
            if not piece:
                self.printed.seek(0)
                raise Failed(f"the interpreter ended, exit code {self.interpreter.wait()}\n{self.printed.read()}")
            answer += piece
        error = json.loads(answer)["error"]
        if error:
            self.printed.seek(0)
            raise Failed(f"{self.printed.read()}\n{error}")

    def _yaml(self, snippet, code):
        if snippet.text("parse only"):
            try:
                list(yaml.safe_load_all(code))
            except yaml.YAMLError as e:
                raise Failed(str(e)) from e
            return
        path = self.folder / "settings.yaml"
        path.write_text(code)
        self._shell(f"{shlex.quote(str(self.place.program))} config --config {shlex.quote(str(path))}", self.environment(snippet))

    def _json(self, snippet, code):
        try:
            json.loads(code)
        except ValueError as e:
            raise Failed(str(e)) from e

    def _jsonl(self, snippet, code):
        for line in code.splitlines():
            self._json(snippet, line)

    def _text(self, snippet, code):
        pass
