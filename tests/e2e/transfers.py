"""Transfers through a tunnel whose every byte is checked, and logins that need a person."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from sshunt.lab.servers import payload_sha256, write_payload
from sshunt.lab.world import Lab


class Transfer:
    """curl moving ``size`` bytes in the background, down or up, within ``deadline_s``."""

    def __init__(self, lab: Lab, size: int, *, down: bool, deadline_s: int = 120) -> None:
        host = lab.target.v4
        self._size, self._deadline_s = size, deadline_s
        if down:
            command = f"curl -sS -m {deadline_s} http://{host}/bytes/{size} | sha256sum"
        else:
            body = lab.folder / f"body-{size}"
            if not body.exists():
                write_payload(body, size)
            command = f"curl -sS -m {deadline_s} -T {body} -X POST http://{host}/sha256"
        self._process = lab.client.popen(["sh", "-c", command], stdout=subprocess.PIPE)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def sha256(self) -> str:
        """Of what arrived; waits for it."""
        said = self._process.communicate(timeout=self._deadline_s)[0].decode().split()
        return said[0] if said else ""

    def is_whole(self) -> bool:
        return self.sha256() == payload_sha256(self._size)


@contextmanager
def without_the_key(lab: Lab) -> Iterator[None]:
    """As behind a password: a login needs a person meanwhile, and there is none."""
    key = lab.account("root").home / ".ssh" / "id_ed25519"
    hidden = key.rename(key.with_suffix(".hidden"))
    try:
        yield
    finally:
        hidden.rename(key)
