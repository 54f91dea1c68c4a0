"""Errors for people, and the exit statuses that --help promises."""

from sshunt.errors import ExitCode, UserError


def test_an_error_for_people_says_what_what_to_do_and_how_it_ends() -> None:
    error = UserError("it is closed", "open it", ExitCode.CONNECT)
    assert (str(error), error.message) == ("it is closed", "it is closed")
    assert (error.hint, error.exit_code) == ("open it", 11)


def test_exit_statuses_are_never_renumbered() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "INTERNAL": 1,
        "USAGE": 2,
        "NAME": 10,
        "CONNECT": 11,
        "AUTH": 12,
        "HOST_KEY": 13,
        "NO_PYTHON": 14,
        "REMOTE": 15,
        "PRIVILEGE": 20,
        "CAPTURE": 21,
        "LISTEN": 22,
        "LOST": 23,
        "SIGNALLED": 128,
    }
