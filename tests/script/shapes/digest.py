"""Writes what a run has come to, so that two runs can be compared."""

import hashlib
import json
import random

import numpy as np
import torch


def write(path, **parts):
    """A hash of each part, and of the random numbers, into a file."""
    rng = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    with open(path, "w") as file:
        json.dump({name: _hash(part) for name, part in {**parts, **rng}.items()}, file, indent=1)


def _hash(part):
    found = hashlib.sha256()
    _feed(found, part)
    return found.hexdigest()[:16]


def _feed(found, part):
    if isinstance(part, torch.nn.Module | torch.optim.Optimizer):
        part = part.state_dict()
    if isinstance(part, torch.Tensor):
        found.update(part.detach().cpu().contiguous().view(-1).numpy().tobytes())
    elif isinstance(part, np.ndarray):
        found.update(part.tobytes())
    elif isinstance(part, dict):
        for key in sorted(part, key=str):
            found.update(str(key).encode())
            _feed(found, part[key])
    elif isinstance(part, list | tuple):
        for each in part:
            _feed(found, each)
    else:
        found.update(repr(part).encode())
