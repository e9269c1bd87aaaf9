"""`python -m aisbreaker_mw` is the `aisbreaker` command."""

from .cli.commands import main

if __name__ == "__main__":
    main()
