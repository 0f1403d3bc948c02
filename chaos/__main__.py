"""`python -m chaos` is the `chaos` command."""

from chaos.cli import app

if __name__ == "__main__":
    app()
