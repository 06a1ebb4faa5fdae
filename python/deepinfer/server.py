"""`python -m deepinfer.server --model M --config C` is `deepinfer serve --model M --config C`."""
import sys

from . import _core


def main() -> int:
    """Serves until a signal; returns the exit code."""
    return int(_core.run(["deepinfer", "serve", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
