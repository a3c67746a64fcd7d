"""The proofs of the promises, as programs: `python -m tests.harness NAME --count N --seed S [--json]`.

Each is a module of this package with a function `run(count, seed) -> Report` and stands in `programs.PROGRAMS`. A
smaller part of each runs with pytest.
"""
