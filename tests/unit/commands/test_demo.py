"""The demo's words and its table; that its proofs hold is seen in tests/e2e/test_demo.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from sshunt.commands.demo import Proof, ProofError, _end, _lab_gone, _require, _show, _try, main
from sshunt.errors import ExitCode, UserError
from sshunt.lab.world import Lab


def test_a_demo_takes_no_words() -> None:
    with pytest.raises(UserError, match="takes no words, not 'fast'") as caught:
        main(["fast"])
    assert caught.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_asked_for_help_it_explains_itself_and_does_nothing(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == ExitCode.OK
    assert capsys.readouterr().out.startswith("usage: sshunt demo\n")


def test_programs_that_are_missing_are_named_with_how_to_get_them() -> None:
    _require("sh")
    with pytest.raises(UserError, match="never-made, nor-this") as caught:
        _require("sh", "never-made", "nor-this")
    assert "apt-get install" in caught.value.hint


def test_what_is_proved_is_shown_as_it_was_seen() -> None:
    assert _try("one", lambda: "seen") == Proof("one", True, "seen")


@pytest.mark.parametrize(
    "error",
    [ProofError("seen otherwise"), OSError("no such thing"), subprocess.TimeoutExpired("curl", 1)],
    ids=lambda error: type(error).__name__,
)
def test_what_can_not_be_proved_is_a_proof_that_failed(error: Exception) -> None:
    def prove() -> str:
        raise error

    assert _try("one", prove) == Proof("one", False, str(error))


def test_a_bug_in_a_proof_is_not_taken_for_a_failed_proof() -> None:
    def prove() -> str:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        _try("one", prove)


def test_when_all_proofs_held_the_reassurance_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    _show([Proof("one", True, "seen"), Proof("another one", True, "seen, too")], 20.4)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "  ok      one          seen",
        "  ok      another one  seen, too",
        "",
        "2 of 2 proofs held, in 20 s. Nothing is left behind.",
    ]


def test_a_proof_that_failed_is_not_followed_by_a_reassurance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _show([Proof("one", True, "seen"), Proof("other", False, "not seen")], 1.0)
    printed = capsys.readouterr().out
    assert "FAILED  other" in printed
    assert "1 of 2 proofs held" in printed
    assert "Nothing is left behind" not in printed


def test_a_program_that_does_not_end_when_asked_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sshunt.commands.demo.END_DEADLINE_S", 0.1)
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        _end(deaf)
        assert deaf.returncode == -9
    with subprocess.Popen(["sleep", "1000"]) as willing:
        _end(willing)
        assert willing.returncode == -15


def test_what_is_left_of_a_lab_is_named(lab: Lab) -> None:
    with pytest.raises(ProofError, match="still there: "):
        _lab_gone(lab)  # it stands
    with Lab(sshd=False) as other:
        pass
    assert _lab_gone(other) == "no namespace, no file"
    left = Path("/run/netns", f"{other.name}-left")
    left.touch()
    try:
        with pytest.raises(ProofError, match="left"):
            _lab_gone(other)
    finally:
        left.unlink()
