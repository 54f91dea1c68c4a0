"""What became of a connection, in words."""

from sshunt.mux import frames
from sshunt.remote.resets import MEANING_OF_RESET


def test_every_reset_code_has_words_of_its_own() -> None:
    codes = {value for name, value in vars(frames).items() if name.startswith("RESET_")}
    assert set(MEANING_OF_RESET) == codes
    assert len(set(MEANING_OF_RESET.values())) == len(codes)
