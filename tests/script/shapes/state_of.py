"""A module beside the script that holds a number."""

TOTAL = 0
