"""`python -m tests.simulation --seeds N --start S`, or `--seed S` to replay one with its log."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.simulation.invariants import Violation
from tests.simulation.stacks import Stacks
from tests.simulation.world import World


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, help="replay this one and print its log")
    parser.add_argument(
        "--keep-going", action="store_true", help="count failing seeds instead of stopping at the first"
    )
    options = parser.parse_args()
    logging.getLogger("executus").setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    seeds = [options.seed] if options.seed is not None else range(options.start, options.start + options.seeds)
    began_s, failed, turns, callbacks = time.perf_counter(), 0, 0, 0
    with Stacks() as stacks:
        for seed in seeds:
            world = World(seed, stacks)
            try:
                world.run()
            except Violation as violation:
                failed += 1
                if not options.keep_going:
                    print(violation)
                    return 1
                print(f"seed {seed}: {world.ledger.violations[0].splitlines()[0]}")
            if options.seed is not None:
                print(world.report())
            turns += world.scheduler.turns
            callbacks += world.ledger.callbacks
    took_s = time.perf_counter() - began_s
    print(
        f"{len(seeds)} seeds, {failed} failed, {took_s:.1f} s, {took_s / len(seeds) * 1000:.1f} ms, {turns // len(seeds)} turns and {callbacks // len(seeds)} callbacks a seed"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
