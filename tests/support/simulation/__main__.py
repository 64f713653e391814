"""`make sim`: simulate many seeds, or replay one."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import sys
import time
from collections import Counter

from simulation.run import Simulation
from simulation.scenario import random_scenario
from simulation.shrink import describe


def _quiet() -> None:
    logging.getLogger("cleave").setLevel(logging.CRITICAL)


def _try(seed: int) -> tuple[int, Counter[str] | None]:
    try:
        return seed, Simulation(random_scenario(seed)).run().counts
    except Exception:
        return seed, None


def main() -> int:
    """Exit code 1 where a seed fails."""
    parser = argparse.ArgumentParser(prog="make sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, help="the first one; default: random")
    parser.add_argument("--seed", type=int, help="this one only, with its traceback")
    arguments = parser.parse_args()
    _quiet()
    if arguments.seed is not None:
        text = describe(arguments.seed)
        sys.stdout.write(f"{text or f'seed {arguments.seed} is fine'}\n")
        return int(text is not None)
    first = arguments.first
    if first is None:
        first = random.SystemRandom().randrange(10**6, 10**9)
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    failed = []
    with multiprocessing.Pool(initializer=_quiet) as pool:
        for seed, found in pool.imap_unordered(_try, range(first, first + arguments.seeds), 50):
            if found is None:
                failed.append(seed)
            else:
                counts += found
    for seed in failed[:3]:
        sys.stdout.write(f"{describe(seed)}\n\n")
    sys.stdout.write(
        f"seeds {first} to {first + arguments.seeds - 1}, {time.perf_counter() - began:.1f} s, "
        f"{len(failed)} failed {sorted(failed)[:20]}\n"
    )
    for name, count in sorted(counts.items()):
        sys.stdout.write(f"  {count:>10,} {name}\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
