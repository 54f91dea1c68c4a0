"""The agent's life: one session, its lanes, its end.

    start    with one lane (its HELLO has been read, not yet answered)
    go on    take in further lanes that stubs bring; answer each HELLO
    end      GOODBYE from the client, or no lane for the grace time that the client asked for; or
             SIGTERM

A session is the client's only once it has sent something behind its HELLO (it asks for an
acknowledgement at once): it may have been stopped while it was starting, and knows nothing of a
session then. Until that has come, the end of the lane is the end of the session.

Nothing is written anywhere but to the lanes. Every lane that ends takes its stub along (closing
``control``), so no ssh command outlives its lane.
"""

import asyncio
import gc
import json
import os
import signal
import socket
from collections import deque
from typing import Deque, Dict, List, Optional

from sshunt.agent.attach import AttachedLane, AttachListener
from sshunt.agent.rendezvous import Doorstep, host_id
from sshunt.direct.carrier import Direct
from sshunt.mux import frames
from sshunt.mux.datagram_frames import FLOW_DONE
from sshunt.mux.events import DatagramReceived, FlowEnded
from sshunt.mux.frames import Destination
from sshunt.mux.hello import (
    AGENT,
    FEATURE_COPY,
    FEATURE_DETACHED,
    FEATURE_SPLICE,
    REFUSED_OTHER,
    REFUSED_VERSION,
    VERSION_MAX,
    VERSION_MIN,
    common_version,
    make_hello,
)
from sshunt.mux.limits import DEAD_LANES, MAX_GRACE_S, MAX_LANES
from sshunt.mux.session import Session
from sshunt.mux.streams import Stream
from sshunt.relay.incoming import FlowAssociation, FlowQuestion, StreamConnection
from sshunt.relay.lane import CHANNEL_WINDOW_BYTES, LaneIO
from sshunt.relay.reactor import AUTO, COPY, SPLICE, Reactor
from sshunt.relay.sockets import GC_THRESHOLD, keep_heap
from sshunt.relay.tunnel import Tunnel, TunnelOwner

#: How long what is left to say after a goodbye may take to leave: its acknowledgement waits behind
#: at most one full pipe, and a client that reads empties that in a round trip.
DRAIN_DEADLINE_S = 1.0

#: How often we look whether it has left.
DRAIN_POLL_S = 0.01

#: How long a client may take to say something behind its HELLO for the first time. It does so
#: within a round trip; but where a network was cut just then, the lane may stay open for hours.
CONFIRM_DEADLINE_S = 60.0

#: How often it is looked whether flows of datagrams have been idle for too long.
END_IDLE_EVERY_S = 20.0

#: Where a cleaner removes the directory that stubs come by, it is made anew within this time.
REFRESH_EVERY_S = 60.0


def serve(lanes: List[AttachedLane], doorstep: Optional[Doorstep], token: bytes) -> None:
    """Run the session that begins with ``lanes`` until it is over.

    ``doorstep`` is where stubs bring further lanes; None if the session can't outlive its lane.
    """
    if hasattr(gc, "freeze"):  # Python 3.7
        gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    keep_heap()
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(signal.SIGTERM, loop.stop)  # the host shuts down: reset what is open
    try:
        life = _Life(loop, lanes[0], doorstep, token)
        for lane in lanes:
            life.take_lane(lane)
        loop.run_forever()
        life.close()
        for _ in range(2):  # cancelled look-ups close their sockets, and what they have begun
            loop.call_soon(loop.stop)  # who else stops it is welcome
            loop.run_forever()
    finally:
        loop.close()
    if life.failure is not None:
        raise life.failure


class _Life(TunnelOwner):
    """The session's state at this end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        first: AttachedLane,
        doorstep: Optional[Doorstep],
        token: bytes,
    ) -> None:
        self._loop = loop
        self._token = token
        self._detached = doorstep is not None
        self._grace_s = min(first.hello.grace_s, MAX_GRACE_S) if self._detached else 0
        self._grace: Optional[asyncio.TimerHandle] = None
        self._unconfirmed = loop.call_later(CONFIRM_DEADLINE_S, self._end_unless_confirmed)
        self.failure: Optional[BaseException] = None
        session = Session(
            AGENT, first.hello.initial_window_bytes, first.hello.max_streams, CHANNEL_WINDOW_BYTES
        )
        features = first.hello.features
        way = SPLICE if features & FEATURE_SPLICE else AUTO
        way = COPY if features & FEATURE_COPY else way
        self._reactor = Reactor(loop, way=way)
        self._tunnel = Tunnel(self._reactor, session, self, outlives_lanes=self._grace_s > 0)
        self._direct = Direct(self._reactor)
        self._dead: Deque[int] = deque(maxlen=DEAD_LANES)  # not here, but perhaps on their way
        self._controls: Dict[int, socket.socket] = {}  # the stubs', by lane
        self._attach: Optional[AttachListener] = None
        if doorstep is not None:
            self._attach = AttachListener(loop, doorstep.sockets, token, self.take_lane)
            self._loop.call_later(REFRESH_EVERY_S, self._refresh, doorstep, self._attach)
        loop.set_exception_handler(self._on_failure)
        loop.call_later(END_IDLE_EVERY_S, self._end_idle)

    def take_lane(self, lane: AttachedLane) -> None:
        """Answer the lane's HELLO and add it to the session, or refuse it."""
        answer = make_hello(
            AGENT,
            self._token,
            lane=lane.hello.lane,
            features=FEATURE_DETACHED if self._detached else 0,
            grace_s=self._grace_s,
            host=host_id(),
        )
        if common_version(answer, lane.hello) is None:
            self._refuse(
                lane,
                REFUSED_VERSION,
                "this agent speaks protocol versions %d to %d" % (VERSION_MIN, VERSION_MAX),
            )
            return
        if lane.hello.lane in self._tunnel.lanes or len(self._tunnel.lanes) >= MAX_LANES:
            self._refuse(lane, REFUSED_OTHER, "lane %d is taken" % lane.hello.lane)
            return
        if lane.hello.lane in self._dead:
            self._refuse(lane, REFUSED_OTHER, "lane %d is over" % lane.hello.lane)
            return
        try:
            # A fresh pipe takes these few bytes at once.
            os.write(lane.write_fd, answer.encode())
            added = self._tunnel.add_lane(lane.hello.lane, lane.read_fd, lane.write_fd)
        except OSError:
            self._drop(lane)  # its ssh has died on the way here: nothing to the other lanes
            return
        if lane.control is not None:
            self._controls[added.lane_id] = lane.control
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _refresh(self, doorstep: Doorstep, attach: AttachListener) -> None:
        lost, fresh = doorstep.refresh()
        if lost is not None:
            attach.remove(lost)
        if fresh is not None:
            attach.add(fresh)
        self._loop.call_later(REFRESH_EVERY_S, self._refresh, doorstep, attach)

    def _refuse(self, lane: AttachedLane, status: int, sentence: str) -> None:
        answer = make_hello(
            AGENT,
            self._token,
            lane=lane.hello.lane,
            status=status,
            sentence=sentence,
            host=host_id(),
        )
        try:
            os.write(lane.write_fd, answer.encode())
        except OSError:
            pass  # it hung up before it could be refused
        self._drop(lane)

    def _drop(self, lane: AttachedLane) -> None:
        """Let go of a lane that the tunnel does not have."""
        os.close(lane.read_fd)
        os.close(lane.write_fd)
        if lane.control is not None:
            lane.control.close()
        self._end_if_alone()

    @property
    def _is_confirmed(self) -> bool:
        lanes = self._tunnel.session.lanes.values()
        return self._tunnel.was_heard or any(lane.received for lane in lanes)

    def _end_unless_confirmed(self) -> None:
        if not self._is_confirmed:
            self._loop.stop()

    def _end_if_alone(self) -> None:
        """Without a lane, end after the grace time; a running grace time is left as it is."""
        if not self._tunnel.lanes and self._grace is None:
            grace_s = self._grace_s if self._is_confirmed else 0
            self._grace = self._loop.call_later(grace_s, self._loop.stop)

    def on_request(self, stream: Stream, destination: Destination) -> bool:
        """A program wants a connection."""
        self._direct.connect(StreamConnection(self._tunnel, stream, destination))
        return True

    def on_datagram(self, event: DatagramReceived) -> bool:
        """The client, or a program, asks something, or begins a flow."""
        datagrams, now = self._tunnel.session.datagrams, self._loop.time()
        network = event.flow.target.network
        if network == frames.DNS:
            question = FlowQuestion(self._tunnel, event.flow, event.data)
            question.asked = self._direct.ask(question)
        elif network == frames.STATISTICS:
            datagrams.send(event.flow, json.dumps(self._tunnel.statistics()).encode(), now)
        elif network in (frames.UDP, frames.ECHO):
            association = FlowAssociation(self._tunnel, event.flow)
            association.outlet = self._direct.associate(association)
            association.on_datagram(event)
        else:
            return False
        return True

    def _end_idle(self) -> None:
        """The word that a flow is over may have been lost."""
        for flow in self._tunnel.session.datagrams.end_idle(self._loop.time()):
            flow.owner.on_flow_ended(FlowEnded(flow, FLOW_DONE))
        self._tunnel.wake()
        self._loop.call_later(END_IDLE_EVERY_S, self._end_idle)

    def on_lane_gone(self, lane_id: int) -> None:
        """A lane that may still be on its way here."""
        self._dead.append(lane_id)

    def on_lane_ended(self, lane: LaneIO, reason: str) -> None:
        """A lane takes its stub along; the last one, in time, the session."""
        control = self._controls.pop(lane.lane_id, None)
        if control is not None:
            control.close()
        if self._tunnel.breaks_the_protocol:
            self._tunnel.forgive()
            self._tunnel.session.say_goodbye(frames.GOODBYE_PROTOCOL, reason)
            self.on_goodbye(frames.GOODBYE_PROTOCOL, "")
            return
        self._end_if_alone()

    def on_goodbye(self, code: int, sentence: str) -> None:
        """It is over: for the client, or for us."""
        # No more data: then what is left to say is little, and the acknowledgement, for which the
        # client waits, is the first of it.
        self._tunnel.reset_all()
        self._tunnel.pump()
        self._drain(self._loop.time() + DRAIN_DEADLINE_S)

    def _drain(self, deadline: float) -> None:
        """End as soon as the lanes have taken everything, or at the deadline."""
        waiting = any(lane.has_backlog for lane in self._tunnel.lanes.values())
        if waiting and self._loop.time() < deadline:
            self._loop.call_later(DRAIN_POLL_S, self._drain, deadline)
        else:
            self._loop.stop()

    def _on_failure(self, loop: asyncio.AbstractEventLoop, context: "dict[str, object]") -> None:
        """A bug of ours, or what asyncio could not do: end, and let main() report it."""
        error = context.get("exception")
        if self.failure is not None or not isinstance(error, BaseException):
            return
        self.failure = error
        loop.stop()
        try:
            self._tunnel.session.say_goodbye(frames.GOODBYE_INTERNAL, repr(error))
            self._tunnel.pump()
        except Exception:  # noqa: BLE001 (perhaps the very bug that brought us here)
            pass

    def close(self) -> None:
        """Close all lanes, connections and the listener."""
        if self._attach is not None:
            self._attach.close()
        self._direct.close()
        self._tunnel.close()
        self._reactor.close()
        for control in self._controls.values():
            control.close()
