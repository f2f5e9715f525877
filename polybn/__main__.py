"""The command ``polybn``, also as ``python -m polybn`` where its script is not on the path."""

import sys


def main() -> None:
    """Import the command line and run it; Ctrl-C ends both without a traceback."""
    try:
        from polybn import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
