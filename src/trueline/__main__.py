"""`python -m trueline`: the command line, also for launchers that start modules."""

from trueline.cli import main

if __name__ == "__main__":
    main()
