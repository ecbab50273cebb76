"""Python client of the dashboard's API: the standard library only, never torch.

```python
from otf_core.client import Client

client = Client.from_rendezvous()
[session] = client.live_sessions()
client.send(session["session_id"], "pause")          # returns when the run is held
```
"""

from otf_core.client.client import (
    Client,
    ClientError,
    NoAnswerError,
    NoDashboardError,
    NotConnectedError,
    RefusedError,
)

__all__ = [
    "Client",
    "ClientError",
    "NoAnswerError",
    "NoDashboardError",
    "NotConnectedError",
    "RefusedError",
]
