"""What the tests of the hub share."""
import os
import random
import signal
import subprocess

from hub_stand_in import StandIn

SEED = 20240501


def noise(n, seed=SEED):
    """Bytes that do not compress, the same in every run."""
    return random.Random(f"{seed} {n}").randbytes(n)


class Hub(StandIn):
    """The stand-in, and the program that talks to it with a cache of its own."""

    def __init__(self, program, folder):
        super().__init__()
        self.program = program
        self.home = folder / "hf"
        self.cache = self.home / "hub"
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(folder), "HF_HOME": str(self.home), "HF_ENDPOINT": self.url,
            "HF_HUB_DOWNLOAD_TIMEOUT": "2", "DEEPINFER_CACHE_DIR": str(folder / "own"),
        }

    def start(self, *args, env=None, **options):
        return subprocess.Popen([self.program, *map(str, args)], env=self.environment | (env or {}), text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def call(self, *args, env=None, stdin="", timeout=120, **options):
        with self.start(*args, env=env, **options) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                raise
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def repo(self, name):
        return self.cache / ("models--" + name.replace("/", "--"))

    def layout(self, name):
        """Every file and link below a model's folder: {path: content's length or target}."""
        root = self.repo(name)
        return {str(p.relative_to(root)): os.readlink(p) if p.is_symlink() else p.stat().st_size
                for p in sorted(root.rglob("*")) if p.is_symlink() or p.is_file()}

    def blobs(self, name):
        return {p.name for p in (self.repo(name) / "blobs").glob("*")}
