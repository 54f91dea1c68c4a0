"""What the guest tells the machine that started it: JSON lines on its second serial port.

    {"event": "booted"}                                           once for each boot
    {"event": "facts", "facts": {"kernel": "6.1.0-...", ...}}     what is tested here
    {"event": "check", "name": "...", "result": "ok", "why": "", "seconds": 1.5, "log": "..."}
    {"event": "rebooting"}
    {"event": "done"}                                             nothing follows

``result`` is "ok", "failed" or "can't", the last where this system lacks what the check is about.
"""

import json
from pathlib import Path

PORT = Path("/dev/ttyS1")


def tell(event: str, **more: object) -> None:
    """Send one line to whoever started this guest, and show it on the console."""
    line = json.dumps({"event": event, **more})
    try:
        PORT.write_text(f"{line}\n")
    except OSError as error:  # started by hand, or kept alive after the run
        print(f"nobody is told: {error}")
    print(line, flush=True)
