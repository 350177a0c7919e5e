"""`python -m withstand`: the same as the command `withstand`."""

from withstand.cli.main import run

if __name__ == "__main__":
    run()
