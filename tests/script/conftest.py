from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.script.rig import Zygote


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Alive until the last test that asks for it."""
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.close()
