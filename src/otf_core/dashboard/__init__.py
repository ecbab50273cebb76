"""The dashboard: its own process, asyncio, never torch.

``hub`` talks with trainers, ``store`` keeps what they said, ``api`` and ``live`` serve it to the
page, the command line and the Python client, ``serve`` starts and ends the whole.
"""
