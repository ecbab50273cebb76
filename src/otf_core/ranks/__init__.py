"""Control of a run of several ranks."""
