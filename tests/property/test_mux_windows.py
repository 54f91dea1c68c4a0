"""Properties of credit, for several windows that share one budget for growth."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sshunt.mux.limits import MAX_WINDOW_BYTES
from sshunt.mux.windows import GrowthBudget, ReceiveWindow

BUDGET_BYTES = 40 * 1024 * 1024


class WindowsOfOneSession(RuleBasedStateMachine):
    """``granted`` and ``consumed`` are what a peer and a relay would know."""

    windows = Bundle("windows")

    def __init__(self) -> None:
        super().__init__()
        self.budget = GrowthBudget(BUDGET_BYTES)
        self.now = 0.0
        self.granted: dict[ReceiveWindow, int] = {}
        self.consumed: dict[ReceiveWindow, int] = {}
        self.initial: dict[ReceiveWindow, int] = {}

    @rule(target=windows, initial=st.sampled_from([4, 1000, 262144]))
    def open_stream(self, initial: int) -> ReceiveWindow:
        window = ReceiveWindow(initial)
        self.granted[window] = self.initial[window] = initial
        self.consumed[window] = 0
        return window

    @rule(window=windows, share=st.floats(0, 1), rtt_s=st.sampled_from([0.0, 0.001, 0.1]))
    def consume(self, window: ReceiveWindow, share: float, rtt_s: float) -> None:
        if window not in self.granted:
            return
        size = int((self.granted[window] - self.consumed[window]) * share)
        limit = window.consume(size, self.now, rtt_s, self.budget)
        self.consumed[window] += size
        if limit is not None:
            assert limit >= self.granted[window], "a limit fell"
            assert limit - self.consumed[window] <= MAX_WINDOW_BYTES
            self.granted[window] = limit

    @rule(seconds=st.sampled_from([0.0, 0.0005, 0.05, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(window=consumes(windows))
    def close_stream(self, window: ReceiveWindow) -> None:
        window.close(self.budget)
        del self.granted[window]

    @invariant()
    def the_budget_is_never_exceeded_and_always_returned(self) -> None:
        growth = sum(window.window_bytes - self.initial[window] for window in self.granted)
        assert growth + self.budget.left_bytes == BUDGET_BYTES
        assert self.budget.left_bytes >= 0

    @invariant()
    def a_consumer_that_keeps_up_never_leaves_its_sender_without_credit(self) -> None:
        for window, granted in self.granted.items():
            credit = granted - self.consumed[window]
            assert credit >= self.initial[window] // 2


WindowsOfOneSession.TestCase.settings = settings(
    deadline=None, max_examples=50, stateful_step_count=40
)
test_windows_of_one_session = WindowsOfOneSession.TestCase
