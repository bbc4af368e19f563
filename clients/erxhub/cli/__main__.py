"""`python -m erxhub.cli`: the `erxhub` command of this very Python."""

from erxhub.cli.main import main

main()
