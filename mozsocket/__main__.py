"""``python -m mozsocket`` and the console script: run the command line, or say which package it lacks."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from . import cli
    except ModuleNotFoundError as exc:
        if exc.name not in ("click", "tqdm"):
            raise
        sys.exit("mozsocket: error: the command line needs `pip install 'mozsocket[cli]'`")
    cli.main()


if __name__ == "__main__":
    main()
