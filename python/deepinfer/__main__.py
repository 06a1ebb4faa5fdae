"""`python -m deepinfer ...` is `deepinfer ...`."""
import sys

from ._program import run


def main() -> int:
    """The command line; returns the exit code."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
