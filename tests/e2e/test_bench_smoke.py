"""The benchmarks run and write what they promise to write. What they measure here means nothing."""

import json
import os
from pathlib import Path

import pytest

from bench import conns, lan, report

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def written(tmp_path: Path) -> dict[str, dict[str, dict[str, float]]]:
    (path,) = tmp_path.glob("*.json")
    document: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text())
    assert {"benchmark", "when", "machine", "options", "medians", "rounds"} <= set(document)
    return document


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)


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
