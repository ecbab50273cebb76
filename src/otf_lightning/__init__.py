"""See and control a PyTorch Lightning run while it trains.

from otf_lightning import OnTheFlyCallback

trainer = L.Trainer(max_epochs=3, callbacks=[OnTheFlyCallback()])
"""

from otf_core import __version__
from otf_lightning.callback import OnTheFlyCallback, attach_lightning

__all__ = ["OnTheFlyCallback", "__version__", "attach_lightning"]
