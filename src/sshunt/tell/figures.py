"""Figures as a person reads them."""


def bit_rate(bits_per_s: float) -> str:
    """A rate: "3 kbit/s", "1.2 Gbit/s"."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_s < 1000:
            return f"{bits_per_s:.0f} {unit}"
        bits_per_s /= 1000
    return f"{bits_per_s:.1f} Gbit/s"


def size(count_bytes: float) -> str:
    """An amount of data: "12 B", "3.4 MB"."""
    if count_bytes < 1000:
        return f"{count_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count_bytes /= 1000
        if count_bytes < 999.95:
            return f"{count_bytes:.1f} {unit}"
    return f"{count_bytes / 1000:.1f} TB"


def duration(seconds: float) -> str:
    """A time: "4.2 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    units = [(days, "d"), (hours, "h"), (minutes, "min"), (whole_s, "s")]
    while not units[0][0]:
        del units[0]
    return " ".join(f"{count} {unit}" for count, unit in units[:2] if count)


def counted(count: int, noun: str) -> str:
    """``count`` and what is counted: "1 connection", "2 connections"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
