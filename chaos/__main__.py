"""`python -m chaos` is the `chaos` command."""

from chaos.commands.cli import app

if __name__ == "__main__":
    app()
