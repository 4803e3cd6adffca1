"""Fixtures of the tests of programs."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ..certificates import AUTHORITY, certificate

if sys.version_info < (3, 11):  # a dependency of AnyIO
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """PEM files: the authority, the usual certificate with its key, both of these separately, and another key."""
    directory = tmp_path_factory.mktemp("certificates")
    leaf, other = certificate(), certificate("other.example")
    pems = {
        "authority": AUTHORITY.cert_pem,
        "both": leaf.private_key_and_cert_chain_pem,
        "certificate": leaf.cert_chain_pems[0],
        "key": leaf.private_key_pem,
        "other": other.private_key_and_cert_chain_pem,
        "other_key": other.private_key_pem,
    }
    for name, pem in pems.items():
        pem.write_to_path(str(directory / f"{name}.pem"))
    return SimpleNamespace(**{name: directory / f"{name}.pem" for name in pems})
