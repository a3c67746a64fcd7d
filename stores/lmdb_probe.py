"""Run as a script in a short-lived process: walk a store's file and open it. Exit 0 says that it can be opened.

Arguments: the folder in which the engine's package lies, the store's folder, and `open`, `walk` or `ends`, which also
looks at the end of each value: the walk looks at the first page of one that has several. Imports nothing of executus.
"""

from __future__ import annotations

import sys


def main(engine_folder: str, store_folder: str, how: str) -> int:
    """Say "checking", print what is wrong, one line each, and return 3 where there is something: see store_files.py."""
    sys.path.append(engine_folder)
    import lmdb  # noqa: PLC0415 - found only now

    print("checking", flush=True)  # noqa: T201 - the parent reads it
    try:
        problems = walked(store_folder) if how != "open" else []
        if not problems:
            env = lmdb.open(store_folder, readonly=True, lock=False, create=False, max_dbs=64)
            _read_everything(env, ends=how == "ends")
    except lmdb.Error as error:
        problems = [str(error)]
    for problem in problems[:20]:
        print(problem)  # noqa: T201 - the parent reads it
    return 3 if problems else 0


def walked(store_folder: str) -> list[str]:
    """What is wrong with the pages of the file that are in use, as bytes, without the engine."""
    from lmdb.verify import VerifyError, verify  # noqa: PLC0415  # pyright: ignore[reportUnknownVariableType]

    try:
        problems: list[str] = verify(store_folder)  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return [str(error)]
    return problems


def _read_everything(env: object, *, ends: bool) -> None:
    """Touch every key of every table, or the end of every value: what makes the engine fall over, does so here."""
    import lmdb  # noqa: PLC0415

    assert isinstance(env, lmdb.Environment)
    with env.begin(buffers=True) as txn:
        for name in [bytes(name) for name in txn.cursor().iternext(values=False)]:
            try:
                table = env.open_db(name, txn=txn, create=False)
            except lmdb.IncompatibleError:
                continue  # A plain row: another program's file, which is not damaged by that.
            if ends:
                for value in txn.cursor(table).iternext(keys=False):
                    bytes(value[-1:])
            else:
                for _ in txn.cursor(table).iternext(values=False):
                    pass


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
