"""A snapshot of a remote that works says nothing of loss."""

from sshunt.tell.snapshot import Snapshot


def test_a_remote_that_works_is_not_lost_and_makes_no_attempt() -> None:
    now = Snapshot(connections=2, received_bytes=10, sent_bytes=5, rtt_s=0.02)
    assert (now.lost_for_s, now.next_attempt_s) == (None, None)
