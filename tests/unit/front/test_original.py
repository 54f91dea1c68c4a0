"""A connection that nothing redirected has no original destination.

That a redirected one has is shown end to end, with real rules: see ``tests/e2e/test_capture.py``.
"""

import socket

import pytest

from sshunt.front.original import NotRedirected, OriginalDestinations


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_direct_connection_to_the_listener_is_told_from_a_redirected_one(
    family: socket.AddressFamily, address: str
) -> None:
    with socket.create_server((address, 0), family=family) as listener:
        with socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
            with accepted, pytest.raises(NotRedirected):
                OriginalDestinations(listener).of(accepted)
