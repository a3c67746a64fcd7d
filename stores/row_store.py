"""What every store does alike, over tables of rows: judge, write, read back. A store adds where its rows live."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from executus.stores.batch import Batch, Fence
from executus.stores.operations import Operation, Verdict
from executus.stores.records import RunStatus
from executus.stores.row_reader import RowReader
from executus.stores.rows import WritableRows


class RowStore(RowReader):
    """A CheckpointStore, see its docstrings, over `_view` and `_transaction`.

    Fences of running runs are held in memory: checking a save against the row instead costs 11 % of a commit.
    They are the writer's alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fences: dict[str, Fence] = {}

    @abc.abstractmethod
    def _transaction(self, operations: Sequence[Operation]) -> AbstractContextManager[WritableRows]:
        """The one write transaction: durable when left in peace, undone when left by an error."""

    def commit(self, operations: Sequence[Operation], flushing: Callable[[], None] | None = None) -> list[Verdict]:
        """See CheckpointStore."""
        self._check_usable()
        if not operations:
            return []
        batch: Batch | None = None
        try:
            with self._transaction(operations) as rows:
                batch = Batch(rows, self._fences)
                verdicts = batch.apply(operations)
                rows.write(batch.writes)
                if flushing is not None:
                    flushing()
        except BaseException:
            # Whether it happened is unknown: what the rows say is read again, before the next write to these runs.
            for run_id in batch.fences if batch else ():
                self._fences.pop(run_id, None)
            raise
        for run_id, fence in batch.fences.items():
            if fence is not None and fence.claim.status is RunStatus.RUNNING:
                self._fences[run_id] = fence
            else:
                self._fences.pop(run_id, None)
        return verdicts
