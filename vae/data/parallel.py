"""Work on several threads whose results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def in_order(
    work: Callable[[In], Out], inputs: Iterable[In], workers: int, stop: Callable[[], None] = lambda: None
) -> Iterator[Out]:
    """The result for each input. At most two results per worker are in memory.

    Threads, since Pillow and NumPy release Python's lock.

    stop: called when no more results are needed, be it after an error or Ctrl-C; what runs then should end soon.
    """
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting: deque[Future[Out]] = deque()
            for one in inputs:
                waiting.append(pool.submit(work, one))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
