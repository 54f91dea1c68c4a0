"""Whatever lanes do, every stream ends as its programs meant it, byte for byte.

One seed is one network with its programs; see simulation.py. To run just one seed:

    SSHUNT_SIM_SEED=1234 ./dev test tests/sim/test_sessions_in_a_bad_network.py
"""

import os
import random

import pytest

from tests.sim.simulation import Simulation

#: What every run of the tests tries, and what ``-m deep`` tries.
SEEDS = range(60)
DEEP_SEEDS = range(1000, 4000)


def chosen(seeds: range) -> list[int]:
    wanted = os.environ.get("SSHUNT_SIM_SEED")
    if wanted:
        return [int(wanted)]
    others = os.environ.get("SSHUNT_FUZZ_SEED")  # ./dev fuzz
    return random.Random(others).sample(range(10**9), len(seeds)) if others else list(seeds)


def run(seed: int) -> None:
    # pytest shows this with a failure.
    print(f"to run just this seed: SSHUNT_SIM_SEED={seed} ./dev test {os.path.relpath(__file__)}")
    simulation = Simulation(seed)
    simulation.run()
    simulation.check_outcome()


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", chosen(SEEDS))
def test_every_stream_ends_as_planned(seed: int) -> None:
    run(seed)


@pytest.mark.deep
@pytest.mark.parametrize("seed", chosen(DEEP_SEEDS))
def test_every_stream_ends_as_planned_under_many_more_seeds(seed: int) -> None:
    run(seed)
