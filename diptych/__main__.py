"""`python -m diptych`: the same as `diptych`; what torchrun starts."""

from diptych.cli import main

if __name__ == "__main__":
    main()
