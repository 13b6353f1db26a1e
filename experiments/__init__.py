"""What a person runs, `python -m experiments.NAME` (README: Entry points), and what that shares."""
