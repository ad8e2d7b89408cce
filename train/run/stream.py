"""Rows that are read while training."""

from collections.abc import Callable, Iterable, Iterator

from torch.utils.data import IterableDataset, get_worker_info

from ...data.labels import Row


class StreamedRows(IterableDataset):
    """Rows from a function that starts the stream anew each time; a resumed run reads past what it has trained on.

    No row is longer than `longest`, where that is given. `batch` is how many rows all processes take together in a micro-step. With worker
    processes the batches go round among them, as the loader collects them: the rows come once and in the same order with any number of
    workers. Each of them reads the whole stream.
    """

    def __init__(self, start: Callable[[], Iterable[Row]], batch: int = 1, longest: int | None = None):
        self.start, self.batch, self.longest = start, batch, longest

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        if worker is None:
            return iter(self.start())
        return (row for i, row in enumerate(self.start()) if i // self.batch % worker.num_workers == worker.id)
