"""`python -m pave` is the `pave` command."""

from pave.cli.main import main

if __name__ == "__main__":
    main()
