"""All that has to do with control groups, on every layout that users' machines have.

The machine on which this was written has a layout that hardly any user has, and on all others the
guard was once never made: see ``layouts``.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sshunt.lab.world import ELSEWHERE_V4, Lab
from tests.e2e.captures import Start, captures, cgroups, has_rules, helpers, soon, tables
from tests.e2e.interruptions import NO_FIRST_ADDRESS
from tests.e2e.layouts import (
    LAYOUTS,
    another_option,
    inside,
    layout,
    options_of_cgroup2,
    own_group,
)
from tests.e2e.tunnels import OFFICE, Remains, Tunnel, fetch, kill

EVERYTHING = [["0.0.0.0/0", "remote", 0, 65535], ["::/0", "remote", 0, 65535]]


@pytest.fixture(params=LAYOUTS)
def before(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The command prefix of a layout."""
    with layout(request.param) as prefix:
        yield prefix


@pytest.fixture
def start(lab: Lab) -> Iterator[Start]:
    with captures(lab) as start:
        yield start


def reached(lab: Lab) -> str:
    with lab.client.connect(ELSEWHERE_V4, 80, timeout_s=3) as sock:
        return sock.makefile().readline().strip()


# --- the guard ---------------------------------------------------------------------------------


def test_the_guarded_client_is_not_captured_and_others_are(
    lab: Lab, before: list[str], start: Start
) -> None:
    capture = start(before=before)
    assert capture.ask("guard") is True
    capture.apply(EVERYTHING)
    with lab.server.listen(ELSEWHERE_V4) as listener:
        port = listener.getsockname()[1]
        assert capture.ask("peers", ELSEWHERE_V4, port) == [[ELSEWHERE_V4, port]]
    assert reached(lab) == f"captured {ELSEWHERE_V4} 80"


def test_killed_with_its_helper_it_leaves_nothing(
    lab: Lab, before: list[str], start: Start
) -> None:
    capture = start(before=before)
    assert capture.ask("guard") is True
    capture.apply(EVERYTHING)
    assert cgroups(capture.session)
    kill([capture.helper_pid(), capture.process.pid])
    soon(lambda: not tables(lab) and not cgroups(capture.session))


def test_the_next_start_removes_what_no_sweeper_has_swept(
    lab: Lab, before: list[str], start: Start
) -> None:
    capture = start(before=before)
    assert capture.ask("guard") is True
    (sweeper,) = psutil.Process(capture.helper_pid()).children()
    kill([sweeper.pid, capture.helper_pid(), capture.process.pid])
    soon(lambda: not helpers(lab.client))
    assert cgroups(capture.session)
    start(before=before)
    assert not cgroups(capture.session)


def test_while_the_sweeper_stands_still_the_rules_go_with_the_helper(
    lab: Lab, before: list[str], start: Start
) -> None:
    capture = start(before=before)
    assert capture.ask("guard") is True
    assert capture.apply(EVERYTHING)[2] is True
    (sweeper,) = psutil.Process(capture.helper_pid()).children()
    sweeper.send_signal(signal.SIGSTOP)
    kill([capture.helper_pid()])
    soon(lambda: not tables(lab))
    sweeper.send_signal(signal.SIGCONT)
    soon(lambda: not cgroups(capture.session))


def test_undo_removes_the_rules_and_leaves_the_guard(
    lab: Lab, before: list[str], start: Start
) -> None:
    capture = start(before=before)
    assert capture.ask("guard") is True
    capture.apply(EVERYTHING)
    capture.ask("undo")
    assert not has_rules(lab)
    assert cgroups(capture.session)
    capture.apply(EVERYTHING)
    assert "socket cgroupv2" in lab.client.run(["nft", "list", "ruleset"]).stdout
    capture.ask("close")
    assert not cgroups(capture.session)


def test_a_group_that_was_delegated_to_the_user_holds_the_guard(lab: Lab, start: Start) -> None:
    uid = lab.account("ben").uid
    with own_group() as group:
        for path in (group, group / "cgroup.procs", group / "cgroup.subtree_control"):
            os.chown(path, uid, uid)
        as_ben = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"]
        capture = start(before=[*inside(group), *as_ben])
        assert capture.ask("guard") is True
        (guard,) = cgroups(capture.session)
        assert Path(guard).parent == group
        capture.apply(EVERYTHING)
        assert reached(lab) == f"captured {ELSEWHERE_V4} 80"
        capture.end()
        soon(lambda: not helpers(lab.client) and not cgroups(capture.session))


# --- a user who owns his control group ---------------------------------------------------------


@pytest.fixture
def delegated(lab: Lab) -> Iterator[Path]:
    """A control group that is ben's, with all that is in it: as he makes them below systemd's."""
    uid = lab.account("ben").uid
    with own_group() as group:
        for path in (group, *group.iterdir()):
            os.chown(path, uid, uid)
        yield group


def as_ben(lab: Lab, group: Path) -> list[str]:
    uid = lab.account("ben").uid
    return [*inside(group), "setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"]


def test_a_user_who_kills_his_whole_control_group_leaves_nothing(
    lab: Lab, delegated: Path, start: Start
) -> None:
    capture = start(before=as_ben(lab, delegated))
    assert capture.ask("guard") is True
    assert capture.apply(EVERYTHING)[2] is True
    lab.client.run(["sh", "-c", "echo 1 >$0/cgroup.kill", str(delegated)], user="ben")
    capture.process.wait()
    soon(lambda: not tables(lab) and not helpers(lab.client) and not cgroups(capture.session))


@pytest.mark.parametrize("guarded", [True, False])
def test_a_frozen_helper_does_not_keep_the_rules_of_a_dead_client(
    lab: Lab, delegated: Path, start: Start, guarded: bool
) -> None:
    capture = start("--impatient", before=inside(delegated))
    if guarded:  # a client of the user's own making need not ask for that
        assert capture.ask("guard") is True
    assert capture.apply(EVERYTHING)[2] is True
    lab.client.run(["sh", "-c", "echo 1 >$0/cgroup.freeze", str(delegated)], user="ben")
    try:
        soon(lambda: "frozen 1" in (delegated / "cgroup.events").read_text())
        capture.process.kill()
        soon(lambda: not tables(lab) and not cgroups(capture.session))
    finally:
        (delegated / "cgroup.freeze").write_text("0")


# --- the whole tunnel --------------------------------------------------------------------------


def two_addresses(lab: Lab) -> list[str]:
    """A command prefix: the ssh server is "gate", and has two addresses."""
    hosts = lab.folder / "two-addresses"
    hosts.write_text(f"{lab.server.v4} gate\n{ELSEWHERE_V4} gate\n")
    script = f'mount --bind {hosts} /etc/hosts && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def test_when_the_server_moves_to_its_other_address_ssh_is_not_captured(
    lab: Lab, before: list[str]
) -> None:
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["--dns", "-r", "gate", "0/0"], before=[*two_addresses(lab), *before])
    tunnel.wait_until_connected()
    lab.server.run(["nft", "-f", "-"], stdin=NO_FIRST_ADDRESS)
    try:
        kill(tunnel.pids("ssh"))
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    finally:
        lab.server.run(["nft", "delete", "table", "inet", "moved"])
        assert tunnel.stop() == 0
    assert remains.left() == []


def test_without_a_group_ssh_is_captured_once_at_most_when_its_server_moves(lab: Lab) -> None:
    weak = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    remains = Remains(lab)
    tunnel = Tunnel(lab, ["-v", "-r", "gate", "0/0"], before=[*two_addresses(lab), *weak])
    tunnel.wait_until_connected()
    assert "own traffic is told by the addresses" in tunnel.said
    lab.server.run(["nft", "-f", "-"], stdin=NO_FIRST_ADDRESS)
    try:
        kill(tunnel.pids("ssh"))
        tunnel.wait_until(lambda: "again after" in tunnel.said)
        assert f"ssh goes to {ELSEWHERE_V4} now" in tunnel.said
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    finally:
        lab.server.run(["nft", "delete", "table", "inet", "moved"])
        assert tunnel.stop() == 0
    assert remains.left() == []


def test_with_fail_open_the_guard_is_there_again_after_an_outage(
    lab: Lab, before: list[str]
) -> None:
    tunnel = Tunnel(lab, ["--fail", "open", "-r", "server", *OFFICE], before=before)
    tunnel.wait_until_connected()

    def guarded() -> bool:
        return "socket cgroupv2" in lab.client.run(["nft", "list", "ruleset"]).stdout

    assert guarded()
    kill(tunnel.pids("ssh"))
    tunnel.wait_until(lambda: "again after" in tunnel.said)
    tunnel.wait_until(guarded)
    assert tunnel.stop() == 0


# --- what is the host's ---------------------------------------------------------------------


@pytest.mark.parametrize("propagation", ["private", "shared"])
def test_a_disk_unmounted_while_it_runs_is_really_unmounted(
    lab: Lab, tmp_path: Path, propagation: str
) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(bytes(32 << 20))
    disk.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    script = f'mount --make-r{propagation} / && mount -o loop {image} {disk} && exec "$@"'
    tunnel = Tunnel(
        lab,
        ["-r", "server", *OFFICE],
        before=["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"],
    )
    try:
        tunnel.wait_until_connected()
        its_mounts = ["nsenter", f"--mount=/proc/{tunnel.process.pid}/ns/mnt"]
        leave = f"echo important >{disk}/note && umount {disk}"
        subprocess.run([*its_mounts, "sh", "-c", leave], check=True)
        features = subprocess.check_output(["dumpe2fs", "-h", image], stderr=subprocess.DEVNULL)
        assert b"needs_recovery" not in features
        note = subprocess.check_output(
            ["debugfs", "-R", "cat /note", image], stderr=subprocess.DEVNULL
        )
        assert note == b"important\n"
        assert "Hello" in fetch(lab.client, f"http://{lab.target.v4}/")
    finally:
        assert tunnel.stop() == 0


def test_helper_and_sweeper_have_no_mount_of_the_host_s_but_the_tun_device(
    lab: Lab, before: list[str], start: Start
) -> None:
    capture = start(before=before)
    assert capture.ask("guard") is True
    helper = capture.helper_pid()
    (sweeper,) = psutil.Process(helper).children()
    for pid in (helper, sweeper.pid):
        mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        assert [mount[1:3] for mount in mounts if mount[1] != "/dev/net/tun"] == [
            ["/", "tmpfs"],
            ["/sys/fs/cgroup", "cgroup2"],
        ]


def test_in_a_chroot_a_disk_unmounted_while_it_runs_is_really_unmounted(
    lab: Lab, tmp_path: Path, start: Start
) -> None:
    """A new root can't be made there, but the mounts of before go with the host's."""
    mounts = "mount --make-rshared / && mount --rbind / {0} && mount -t tmpfs tmpfs /mnt && "
    script = mounts.format(tmp_path) + 'exec chroot "$0" "$@"'
    before = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(tmp_path)]
    capture = start(before=before)
    assert capture.ask("guard") is True
    (helper,) = helpers(lab.client)
    assert " /mnt tmpfs" in Path(f"/proc/{capture.process.pid}/mounts").read_text()
    its_mounts = ["nsenter", f"--mount=/proc/{capture.process.pid}/ns/mnt"]
    subprocess.run([*its_mounts, "umount", "/mnt"], check=True)
    assert "/mnt tmpfs" not in Path(f"/proc/{helper}/mounts").read_text()


def test_the_options_of_the_host_s_control_groups_stay_what_they_were(
    start: Start,
) -> None:
    with another_option("memory_localevents"):
        assert start().ask("guard") is True
        assert "memory_localevents" in options_of_cgroup2()
