"""`python -m jobs`: the command line where no script of it is on the path, as in a sent package."""

from jobs.cli import main

if __name__ == "__main__":
    main(prog_name="admg-batch")
