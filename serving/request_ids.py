"""Ids of requests: unlike one another, and no secrets."""

import random

# Its seed is the system's. `os.urandom` for each id would give up the interpreter and wait for it.
_generator = random.Random()


def new() -> str:
    """32 hexadecimal digits."""
    return f"{_generator.getrandbits(128):032x}"
