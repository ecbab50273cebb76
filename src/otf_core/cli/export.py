"""``otf export``: what is written out of a run."""

from __future__ import annotations

from collections.abc import Callable

import click

from otf_core.cli.archive import also_from_folders
from otf_core.client.verbs import EXPORTS, Verb


def export_group(command_of: Callable[[Verb], click.Command]) -> click.Group:
    """The group.

    Args:
        command_of: makes a verb of the wire a command.
    """
    found = click.Group("export", help="Write samples or weights of a run into a file.")
    commands = [command_of(verb) for verb in EXPORTS]
    for command in commands:
        also_from_folders(command)
    for command in commands:  # what has no verb comes into this list
        found.add_command(command)
    return found
