"""``python -m polybn`` is the command ``polybn``, where its script is not on the path."""

from polybn.cli import main

if __name__ == "__main__":
    main()
