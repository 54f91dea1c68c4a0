"""The main job: unmodified programs on the client reach the office through a plain ssh login.

neighbour ------------- client ------------- server ------------- target
                        sshunt               sshd + agent         web server, sshd, iperf3
"""

import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sshunt.lab.servers import payload_sha256
from sshunt.lab.world import ELSEWHERE_V4, OFFICE_V4, OFFICE_V6, Lab
from tests.e2e.tunnels import Tunnel, fetch

#: More than any window, buffer or pipe on the way.
BIG_BYTES = 50_000_000


def url(lab: Lab, version: int, path: str = "/") -> str:
    return f"http://{lab.target.v4 if version == 4 else f'[{lab.target.v6}]'}{path}"


def test_one_line_says_what_is_routed_and_to_where(tunnel: Tunnel) -> None:
    line = next(line for line in tunnel.said.splitlines() if line.startswith("sshunt: connected"))
    for part in ("server", OFFICE_V4, OFFICE_V6, "RTT"):
        assert part in line


@pytest.mark.parametrize("version", [4, 6])
def test_curl_fetches_a_page_at_its_real_address(lab: Lab, tunnel: Tunnel, version: int) -> None:
    page = fetch(lab.client, url(lab, version))
    assert "Hello from the office" in page
    # The office sees the server, as it would see anybody who is logged in there.
    assert ("10.55.0.1" if version == 4 else "fd00:55::1") in page


@pytest.mark.parametrize("version", [4, 6])
def test_a_big_download_arrives_byte_for_byte(lab: Lab, tunnel: Tunnel, version: int) -> None:
    get = f"curl -sS -g -m 60 '{url(lab, version, f'/bytes/{BIG_BYTES}')}' | sha256sum"
    assert lab.client.run(["sh", "-c", get]).stdout.split()[0] == payload_sha256(BIG_BYTES)


@pytest.mark.parametrize("version", [4, 6])
def test_a_big_upload_arrives_byte_for_byte(
    lab: Lab, tunnel: Tunnel, version: int, tmp_path: Path
) -> None:
    data = os.urandom(BIG_BYTES)
    file = tmp_path / "upload"
    file.write_bytes(data)
    answer = fetch(
        lab.client,
        url(lab, version, "/sha256"),
        *("--data-binary", f"@{file}", "-H", "Expect:", "-m", "60"),
    )
    assert answer.strip() == hashlib.sha256(data).hexdigest()


def test_many_downloads_at_once_keep_their_bytes_apart(lab: Lab, tunnel: Tunnel) -> None:
    def get(size: int) -> bool:
        fetched = f"curl -sS -m 60 {url(lab, 4, f'/bytes/{size}')} | sha256sum"
        done = lab.client.run(["sh", "-c", fetched])
        return done.stdout.split()[0] == payload_sha256(size)

    sizes = [1, 1000, 70_000, 262_144, 262_145, 1_000_000, 3_000_000, 10_000_000] * 2
    with ThreadPoolExecutor(len(sizes)) as pool:
        assert all(pool.map(get, sizes))


def test_ssh_works_through_the_tunnel(lab: Lab, tunnel: Tunnel) -> None:
    sshd = lab.sshd(lab.target)
    said = lab.client.run(["ssh", "target", "echo $SSH_CONNECTION"]).stdout
    assert said.split()[2:] in ([lab.target.v4, "22"], [lab.target.v6, "22"])
    sshd.stop()


def test_git_clones_over_ssh_through_the_tunnel(lab: Lab, tunnel: Tunnel, tmp_path: Path) -> None:
    sshd = lab.sshd(lab.target, port=2200)
    home = lab.account("ada").home
    make = (
        "git init -q work && cd work && git config user.email a@b && git config user.name a"
        " && head -c 3000000 /dev/urandom >blob && git add blob && git commit -qm one"
        " && git rev-parse HEAD"
    )
    commit = lab.target.run(["sh", "-c", make], user="ada", cwd=str(home)).stdout.strip()
    there = f"ssh://ada@{lab.target.v4}:2200{home}/work"
    lab.client.run(["git", "clone", "-q", there, str(tmp_path / "clone")])
    head = lab.client.run(["git", "-C", str(tmp_path / "clone"), "rev-parse", "HEAD"]).stdout
    assert head.strip() == commit
    sshd.stop()


@pytest.mark.parametrize("direction", [[], ["--reverse"], ["--bidir"], ["-P", "8"]])
def test_iperf3_runs_through_the_tunnel(lab: Lab, tunnel: Tunnel, direction: list[str]) -> None:
    server = lab.target.popen(["iperf3", "--server", "--one-off"], stdout=subprocess.DEVNULL)
    lab.target.run(["sh", "-c", "until ss -Hltn | grep -q :5201; do sleep 0.01; done"])
    test = ["iperf3", "--json", "-t", "1", "-c", lab.target.v4, *direction]
    done = lab.client.run(test, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["end"]["sum_received"]["bytes"] > 0
    assert server.wait(10) == 0


def test_addresses_that_are_not_routed_stay_reachable_as_before(lab: Lab, tunnel: Tunnel) -> None:
    with lab.server.listen(ELSEWHERE_V4) as listener:
        with lab.client.connect(ELSEWHERE_V4, listener.getsockname()[1]):
            peer = listener.accept()
            assert peer[1][0] == lab.client.v4  # directly, not by the agent
            peer[0].close()


def test_the_server_itself_is_reached_directly(lab: Lab, tunnel: Tunnel) -> None:
    assert lab.client.run(["ssh", "server", "echo $SSH_CLIENT"]).stdout.split()[0] == lab.client.v4
