"""Entry point of the command `zomopi`, also run by ``python -m zomopi_core``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say which extra brings it."""
    try:
        from .cli import app
    except ImportError as error:
        sys.exit(f"{error}; pip install 'zomopi[cli]' brings the command line")
    app()


if __name__ == "__main__":
    main()
