"""Certificates for brokers and clients of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme

__all__ = ["Authority"]


class Authority:
    """A CA, a good server certificate and bad ones, as files."""

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.folder = folder
        self.cafile = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.cafile)

    def issue(self, name: str, *identities: str, **options: Any) -> dict[str, str]:
        leaf = self.ca.issue_cert(*identities, **options)
        cert, key = str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")
        for n, blob in enumerate(leaf.cert_chain_pems):
            blob.write_to_path(cert, append=n > 0)
        leaf.private_key_pem.write_to_path(key)
        return {"certfile": cert, "keyfile": key}
