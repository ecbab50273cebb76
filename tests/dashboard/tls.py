"""A certificate of localhost for a hundred years, signed by itself, and its key; for tests only."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CERT: Final = """\
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUXX68UgaC0R7Fvp0CulrrW7QxhPIwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyOTE5MzQxM1oYDzIxMjYxMTA1
MTkzNDEzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAR7oWUkqDCXpyl3Koqpnp+d5in7a8zH1nydqwRBCEh6UvUmw085jIUd
uf5O9He1w6uen4J/S+E01SOOmaHcvYibo28wbTAdBgNVHQ4EFgQU5MZpbmnbsiL9
hw2qJKI4lpfAQpcwHwYDVR0jBBgwFoAU5MZpbmnbsiL9hw2qJKI4lpfAQpcwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAIQkvPGV2M7y1qYDMBmvPMoLWUxOsWRT43Ufl4CE20MIAiBY
LejsP3l8npdnSPXM9Kra29yTGZnrcBP8e2fkvaOkyg==
-----END CERTIFICATE-----
"""
KEY: Final = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgx9TKtU54Xo0NcrAM
UBZvKhoXyL/owS934nfnFq+JvGGhRANCAAR7oWUkqDCXpyl3Koqpnp+d5in7a8zH
1nydqwRBCEh6UvUmw085jIUduf5O9He1w6uen4J/S+E01SOOmaHcvYib
-----END PRIVATE KEY-----
"""


def pair(folder: Path) -> tuple[Path, Path]:
    """Both as files."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_text(CERT)
    key.write_text(KEY)
    key.chmod(0o600)
    return cert, key
