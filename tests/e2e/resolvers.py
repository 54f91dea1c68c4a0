"""Resolvers (dnsmasq) on hosts of the lab, and programs that ask them."""

import subprocess
from pathlib import Path

from sshunt.lab.hosts import Host


def resolver(host: Host, *words: str, port_at: str = "") -> "subprocess.Popen[bytes]":
    """A dnsmasq on all addresses of a host that answers by itself only."""
    only = ["--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--cache-size=0", "--pid-file="]
    started = host.popen(["dnsmasq", "--keep-in-foreground", "--user=root", *only, *words])
    host.wait_for_port(port_at or host.v4, 53)
    return started


def laid_over(conf: Path, switch: Path) -> str:
    binds = f"mount --bind {conf} /etc/resolv.conf; mount --bind {switch} /etc/nsswitch.conf"
    return f'set -e; {binds}; exec "$@"'
