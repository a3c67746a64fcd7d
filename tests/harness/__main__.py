"""`python -m tests.harness NAME --count N --seed S [--json]`: exits with 1 where a promise was broken."""

from __future__ import annotations

import argparse
import sys

import msgspec

from tests.harness.programs import PROGRAMS, load


def main() -> int:
    listed = "\n".join(
        f"  {name:<14}{program.question} Usual count: {program.count}." for name, program in PROGRAMS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m tests.harness",
        description=f"Proofs of the promises.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=PROGRAMS, metavar="NAME")
    parser.add_argument("--count", type=int, help="how many trials; the more the longer")
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same trials")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    wanted = parser.parse_args()
    count = PROGRAMS[wanted.name].count if wanted.count is None else wanted.count
    report = load(wanted.name)(count, wanted.seed)
    print(msgspec.json.encode(report).decode() if wanted.json else report.text())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
