"""See and control a PyTorch Lightning run while it trains.

from otf_lightning import OnTheFlyCallback

trainer = L.Trainer(max_epochs=3, callbacks=[OnTheFlyCallback()])
"""

from typing import TYPE_CHECKING, Any

from otf_core import __version__
from otf_lightning.callback import OnTheFlyCallback, attach_lightning
from otf_lightning.strategies import (
    OTFDDPStrategy,
    OTFFSDP2Strategy,
    OTFFSDPStrategy,
    OTFModelParallelStrategy,
    OTFSingleDeviceStrategy,
    register,
)

if TYPE_CHECKING:
    from otf_lightning.notebook import show

__all__ = [
    "OTFDDPStrategy",
    "OTFFSDP2Strategy",
    "OTFFSDPStrategy",
    "OTFModelParallelStrategy",
    "OTFSingleDeviceStrategy",
    "OnTheFlyCallback",
    "__version__",
    "attach_lightning",
    "show",
]

register()  # Trainer(strategy="otf_ddp")


def __getattr__(name: str) -> Any:
    if name != "show":  # only notebooks need it
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from otf_lightning.notebook import show

    return show
