"""`python -m deepinfer.server --model M --config C` is `deepinfer serve --model M --config C`."""
import sys

from ._program import run


def main() -> int:
    """Serves until a signal; returns the exit code."""
    return run(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
