"""What became of a connection over there, for people: the protocol's reset codes in words."""

from sshunt.mux import frames

#: The meanings of reset codes; one that is not here says nothing more.
MEANING_OF_RESET = {
    frames.RESET_ABORTED: "reset by the far host",
    frames.RESET_REFUSED: "refused by the far host",
    frames.RESET_HOST_UNREACHABLE: "the far host is unreachable",
    frames.RESET_NET_UNREACHABLE: "its network is unreachable from there",
    frames.RESET_TIMED_OUT: "the far host did not answer in time",
    frames.RESET_NAME_UNKNOWN: "the name is unknown there",
    frames.RESET_NO_RESOURCES: "the far side is out of descriptors or ports",
    frames.RESET_NOT_PERMITTED: "not permitted there",
    frames.RESET_OTHER: "failed there",
}

#: Those that say that a connection has not come about.
NOBODY_IS_THERE = frozenset(
    {
        frames.RESET_REFUSED,
        frames.RESET_HOST_UNREACHABLE,
        frames.RESET_NET_UNREACHABLE,
        frames.RESET_TIMED_OUT,
        frames.RESET_NOT_PERMITTED,
    }
)
