"""What a person runs: every module here is a command, `python -m experiments.NAME`."""
