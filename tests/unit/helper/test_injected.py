"""The sockets by which packets leave that we make."""

import os
import socket

import pytest

from sshunt.capture.nft_held import INJECTED_MARK
from sshunt.helper.injected import raw_socket


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_a_raw_socket_sends_bears_our_mark() -> None:
    with raw_socket(socket.AF_INET, socket.IPPROTO_UDP) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, 36) == INJECTED_MARK
