"""`python -m uellm_cli` is `uellm`."""

from uellm_cli.cli import main

if __name__ == "__main__":
    main()
