"""Two sessions speak with each other: who says what, and what each hears."""

from sshunt.mux.payload import Payload
from tests.unit.mux.ends import Ends


def test_a_frame_behind_an_acknowledgement_is_released_only_when_all_of_it_was_processed():
    ends = Ends()
    near, far = ends.connect()
    ends.agent.write(far, Payload(b"x" * 1000), ends.now)
    ends.send(ends.agent)  # so the client owes an acknowledgement
    ends.client.write(near, Payload(b"y" * 1000), ends.now)
    wire = ends.transmit(ends.client)
    ends.deliver(ends.agent, size=len(wire) - 1)
    ends.now += 1
    ends.send(ends.agent)  # which acknowledges all but the last byte
    assert len(ends.client.lanes[1].outstanding) == 1
