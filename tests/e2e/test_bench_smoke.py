"""The benchmarks run and write what they promise to write. What they measure here means nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench import behaviour, conns, lan, outlive, plot, report, wan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def written(tmp_path: Path) -> dict[str, Any]:
    (path,) = tmp_path.glob("*.json")
    document: dict[str, Any] = json.loads(path.read_text())
    assert {"benchmark", "when", "machine", "options", "medians", "rounds"} <= set(document)
    return document


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    monkeypatch.setattr(plot, "DOCS", tmp_path)


def test_the_lan_benchmark_runs(tmp_path: Path) -> None:
    assert lan.main(["--smoke"]) == 0
    medians = written(tmp_path)["medians"]
    for peer in ("sshunt", "ssh"):
        for case in ("up", "down", "down8"):
            assert medians[peer][f"{case}_gbit_s"] > 0
    for role in ("client", "agent", "ssh", "sshd"):
        assert f"down_{role}_cpu_s_per_gb" in medians["sshunt"]


def test_the_connections_benchmark_runs(tmp_path: Path) -> None:
    assert conns.main(["--smoke"]) == 0
    medians = written(tmp_path)["medians"]
    for peer in ("sshunt", "ssh"):
        assert medians[peer]["new_per_s"] > 0
        assert medians[peer]["idle_answered"] == medians[peer]["idle_held"] == 50
        assert medians[peer]["start_first_byte_s"] > 0
    assert "idle_client_kib_each" in medians["sshunt"]
    assert "stopped_down_agent_growth_mb" in medians["sshunt"]


def test_the_wan_benchmark_runs_and_draws(tmp_path: Path) -> None:
    assert wan.main(["--smoke", "--plot"]) == 0
    document = written(tmp_path)
    medians, timelines = (document[part]["fibre-down"] for part in ("medians", "timelines"))
    for peer in ("sshunt", "ssh"):
        assert medians[peer]["down_mbit_s"] > 0
        assert medians[peer]["loaded_echo_p95_ms"] >= medians[peer]["loaded_echo_p50_ms"] > 0
        assert set(timelines[peer]) == {"down_mbit_s", "echo_ms"}
    picture = (tmp_path / "wan-fibre-down.svg").read_text()
    assert "throughput, Mbit/s" in picture
    assert "sshunt" in picture


def test_the_behaviour_benchmark_runs(tmp_path: Path) -> None:
    assert behaviour.main(["--smoke"]) == 0
    medians = written(tmp_path)["medians"]
    for case in ("requests down", "requests up"):
        assert medians[case]["p99_ms"] >= medians[case]["p50_ms"] > 0


def test_the_soak_of_kills_runs(tmp_path: Path) -> None:
    assert outlive.main(["--smoke"]) == 0
    row = written(tmp_path)["medians"]
    assert row["kills"] >= 1
    assert row["failed"] == 0
