"""`python -m benchmarks NAME`: see each file for its question."""

from __future__ import annotations

import argparse
import sys

from benchmarks import agents, messaging, passivated, runs, transcripts

BENCHMARKS = {
    "agents": agents.main,
    "messaging": messaging.main,
    "passivated": passivated.main,
    "runs": runs.main,
    "transcripts": transcripts.main,
}


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="which question to ask")
    parser.add_argument("--rounds", type=int, default=5, help="how often; medians are reported (default 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long a measurement lasts (default 4)")
    parser.add_argument("--folder", help="where to put the stores: the disk to measure (default: the temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    return BENCHMARKS[options.name](options)


if __name__ == "__main__":
    sys.exit(main())
