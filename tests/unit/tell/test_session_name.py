"""A session's digits and its abstract name are one: whoever reads the digits comes too late."""

import errno
import os
import secrets
import socket
import sys

import pytest

from sshunt.tell.control import sessions
from sshunt.tell.session_name import abstract_name, draw, take


def test_a_session_s_socket_name_is_taken_before_its_digits_are_visible() -> None:
    session, place = draw()
    assert place is not None
    with place, socket.socket(socket.AF_UNIX) as squatter:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            squatter.bind(abstract_name(session))
        assert session not in sessions()  # nobody listens yet


def test_digits_already_taken_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["0badc0de", "0badc0de", "600dc0de"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(drawn))
    squatter = take("0badc0de")
    assert squatter is not None
    with squatter:
        session, place = draw()
        assert (session, place is None) == ("600dc0de", False)
        assert take("600dc0de") is None
        if place is not None:
            place.close()


def test_a_session_has_digits_even_without_abstract_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    session, place = draw()
    assert (len(session), place) == (8, None)
