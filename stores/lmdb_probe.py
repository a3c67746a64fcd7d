"""Run as a script in a short-lived process: walk a store's file and open it. Exit 0 says that it can be opened.

Arguments: the folder in which the engine's package lies, the store's folder, and `open`, `walk` or `ends`, which also
looks where each value ends: the walk looks at the first page of one that has several. Imports nothing of executus.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

_HEADER_PAGES = 2
_PAGE_BYTES = (40, struct.Struct("=I"))
_ROOT = (128, struct.Struct("=Q"))
_TRANSACTION = (144, struct.Struct("=Q"))
"""Where a header page has them: the root is that of the table of tables."""
_PAGE = struct.Struct("=8x2xHH2x")
"""Of each page: flags, and where the places of its nodes end."""
_PLACE = struct.Struct("=H")
_NODE = struct.Struct("=HHHH")
"""Low and high half of the value's length or of a page's number, flags (or its highest bits), the key's length."""
_NUMBER = struct.Struct("=Q")
_ROOT_IN_TABLE = 40
_BRANCH, _OF_KEYS = 0x01, 0x20
_LONG, _TABLE = 0x01, 0x02
_NO_PAGE = (1 << 64) - 1


def main(engine_folder: str, store_folder: str, how: str) -> int:
    """Say "checking", print what is wrong, one line each, and return 3 where there is something: see store_files.py."""
    sys.path.append(engine_folder)
    import lmdb  # noqa: PLC0415 - found only now

    print("checking", flush=True)  # noqa: T201 - the parent reads it
    try:
        problems = walked(store_folder, ends=how == "ends") if how != "open" else []
        if not problems:
            _read_everything(lmdb.open(store_folder, readonly=True, lock=False, create=False, max_dbs=64))
    except lmdb.Error as error:
        problems = [str(error)]
    for problem in problems[:20]:
        print(problem)  # noqa: T201 - the parent reads it
    return 3 if problems else 0


def walked(store_folder: str, *, ends: bool) -> list[str]:
    """What is wrong with the pages of the file that are in use, as bytes, without the engine."""
    from lmdb.verify import VerifyError, verify  # noqa: PLC0415  # pyright: ignore[reportUnknownVariableType]

    try:
        problems: list[str] = verify(store_folder)  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return [str(error)]
    return problems or (_cut_values(store_folder) if ends else [])


def _cut_values(store_folder: str) -> list[str]:
    """Values that the file ends before. Nothing else may be wrong with its pages."""
    with (Path(store_folder) / "data.mdb").open("rb") as file:

        def read(place: int, form: struct.Struct) -> int:
            file.seek(place)
            number: int = form.unpack(file.read(form.size))[0]
            return number

        size_bytes = file.seek(0, 2)
        page_bytes = read(*_PAGE_BYTES)
        headers = [number * page_bytes for number in range(_HEADER_PAGES)]
        last = max(headers, key=lambda header: read(header + _TRANSACTION[0], _TRANSACTION[1]))
        pages, cut = [read(last + _ROOT[0], _ROOT[1])], list[str]()
        while pages:
            if (number := pages.pop()) == _NO_PAGE:
                continue
            file.seek(number * page_bytes)
            page = file.read(page_bytes)
            flags, places_end = _PAGE.unpack_from(page)
            for place in range(_PAGE.size, _PAGE.size if flags & _OF_KEYS else places_end, _PLACE.size):
                node = _PLACE.unpack_from(page, place)[0]
                low, high, kind, key_bytes = _NODE.unpack_from(page, node)
                value = node + _NODE.size + key_bytes
                if flags & _BRANCH:
                    pages.append(low | high << 16 | kind << 32)
                elif kind & _LONG:
                    first, length = _NUMBER.unpack_from(page, value)[0], low | high << 16
                    if first * page_bytes + _PAGE.size + length > size_bytes:
                        cut.append(f"the value of {length} bytes that begins in page {first} is cut off")
                elif kind & _TABLE:
                    pages.append(_NUMBER.unpack_from(page, value + _ROOT_IN_TABLE)[0])
        return cut


def _read_everything(env: object) -> None:
    """Touch every key of every table: what makes the engine fall over, does so here."""
    import lmdb  # noqa: PLC0415

    assert isinstance(env, lmdb.Environment)
    with env.begin() as txn:
        for name in [bytes(name) for name in txn.cursor().iternext(values=False)]:
            try:
                table = env.open_db(name, txn=txn, create=False)
            except lmdb.IncompatibleError:
                continue  # A plain row: another program's file, which is not damaged by that.
            for _ in txn.cursor(table).iternext(values=False):
                pass


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
