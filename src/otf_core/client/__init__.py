"""Python client of the dashboard's API: the standard library only, never torch.

```python
from otf_core.client import connect

run = connect()                 # or connect("digits"), if several are live
run.pause()                     # returns when the run is held
run.set("lr", 1e-4)
run.resume()
```

``Client`` is the dashboard itself, for several runs and for those that are over.
"""

from otf_core.client.choosing import ChoiceError
from otf_core.client.client import (
    Client,
    ClientError,
    NoAnswerError,
    NoDashboardError,
    NotConnectedError,
    RefusedError,
)
from otf_core.client.run import AsyncRun, Run, connect, connect_async
from otf_core.client.verbs import UsageError

__all__ = [
    "AsyncRun",
    "ChoiceError",
    "Client",
    "ClientError",
    "NoAnswerError",
    "NoDashboardError",
    "NotConnectedError",
    "RefusedError",
    "Run",
    "UsageError",
    "connect",
    "connect_async",
]
