"""`python -m cueva`: the command line, where the `cueva` script is not on the path."""

from cueva.cli import main

if __name__ == "__main__":
    main()
