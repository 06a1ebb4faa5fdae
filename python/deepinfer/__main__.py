"""`python -m deepinfer ...` is `deepinfer ...`."""
import sys

from . import _core


def main() -> int:
    """The program's command line; returns its exit code."""
    return int(_core.run(["deepinfer", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
