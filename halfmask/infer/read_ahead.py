"""Read a few things ahead of their use, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(read: Callable[[Key], Value], keys: Iterable[Key], workers: int) -> Iterator[Value]:
    """Give `read(key)` for each key in order, read by threads while the caller works.

    Image decoders release the interpreter lock, so threads are enough, and unlike processes they start at once,
    share everything, and work the same on every platform. At most 2 * workers results wait.

    Args:
        read: must be safe from several threads; an exception surfaces at its key's turn.
        keys: what to read.
        workers: threads; 0 reads in the caller's thread.

    >>> list(read_ahead(str.upper, "abc", workers=2))
    ['A', 'B', 'C']
    """
    if workers < 1:
        yield from map(read, keys)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Value]] = deque()
        try:
            for key in keys:
                pending.append(pool.submit(read, key))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
