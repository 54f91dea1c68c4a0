"""Properties of credit, for the windows of one session and a peer that uses what it was given."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sshunt.mux.limits import INITIAL_WINDOW_BYTES, LEAST_WINDOW_BYTES, MAX_WINDOW_BYTES
from sshunt.mux.windows import MOST_PROMISED_BYTES, PLACES, ReceiveWindow, SessionCredit

pytestmark = pytest.mark.fuzz


class WindowsOfOneSession(RuleBasedStateMachine):
    """``granted`` is what the sender knows, ``arrived`` what it has sent, ``consumed`` what was
    read of that.
    """

    windows = Bundle("windows")

    def __init__(self) -> None:
        super().__init__()
        self.credit = SessionCredit()
        self.now = 0.0
        self.number = 1
        self.granted: dict[ReceiveWindow, int] = {}
        self.arrived: dict[ReceiveWindow, int] = {}
        self.consumed: dict[ReceiveWindow, int] = {}

    @rule(target=windows, size=st.sampled_from([LEAST_WINDOW_BYTES, INITIAL_WINDOW_BYTES]))
    def open_stream(self, size: int) -> ReceiveWindow:
        window = ReceiveWindow(self.credit, self.number, self.now, size)
        self.number += 2
        assert LEAST_WINDOW_BYTES <= window.limit <= size
        self.granted[window] = window.limit
        self.arrived[window] = self.consumed[window] = 0
        return window

    @rule(window=windows, share=st.floats(0, 1))
    def send(self, window: ReceiveWindow, share: float) -> None:
        self.arrived[window] += int((self.granted[window] - self.arrived[window]) * share)
        if self.arrived[window] > window.limit:  # it was called back, and that is on its way
            assert window.admit(self.arrived[window])

    @rule(window=windows, share=st.floats(0, 1), rtt_s=st.sampled_from([0.0, 0.001, 0.1]))
    def consume(self, window: ReceiveWindow, share: float, rtt_s: float) -> None:
        size = int((self.arrived[window] - self.consumed[window]) * share)
        before = window.limit
        told = window.consume(size, self.now, rtt_s)
        self.consumed[window] += size
        assert window.limit >= before, "a limit fell because something was read"
        if told:
            self._tell(window)

    @rule(window=windows)
    def send_and_consume_all(self, window: ReceiveWindow) -> None:
        self.send(window, 1.0)
        self.consume(window, 1.0, 0.1)
        assert window.limit > self.arrived[window], "its sender waits for ever"

    @rule(seconds=st.sampled_from([0.0, 0.0005, 0.05, 3.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(hears=st.booleans())
    def call_back(self, hears: bool) -> None:
        by_number = {window.number: window for window in self.granted}
        for number in self.credit.idle(self.now):
            window = by_number[number]
            if window.recall(self.arrived[window], self.now) and hears:
                self._tell(window)

    def _tell(self, window: ReceiveWindow) -> None:
        self.granted[window] = max(window.limit, self.arrived[window])

    @rule(window=consumes(windows))
    def close_stream(self, window: ReceiveWindow) -> None:
        window.close()
        del self.granted[window], self.arrived[window], self.consumed[window]

    @invariant()
    def the_places_taken_are_those_of_the_windows(self) -> None:
        for step in range(1, len(PLACES)):
            taken = sum(window.step >= step for window in self.granted)
            assert self.credit.taken[step] == taken <= PLACES[step]
        assert self.credit.promised_bytes <= MOST_PROMISED_BYTES

    @invariant()
    def nothing_that_was_promised_exceeds_the_window(self) -> None:
        for window in self.granted:
            assert window.limit - self.consumed[window] <= window.window_bytes <= MAX_WINDOW_BYTES
            assert self.arrived[window] <= window.limit

    @invariant()
    def a_sender_without_credit_is_one_whose_reader_has_something_to_read(self) -> None:
        for window in self.granted:
            if self.arrived[window] == self.consumed[window]:
                assert window.limit - self.consumed[window] >= LEAST_WINDOW_BYTES // 2


WindowsOfOneSession.TestCase.settings = settings(
    deadline=None, max_examples=50, stateful_step_count=40
)
test_windows_of_one_session = WindowsOfOneSession.TestCase
