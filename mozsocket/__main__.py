"""``python -m mozsocket`` and the console script: what to say if what the command line needs is missing."""

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
