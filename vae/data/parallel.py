"""Work on several threads whose results come in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_in_order(
    work: Callable[[In], Out], inputs: Iterable[In], workers: int, stop: Callable[[], None] = lambda: None
) -> Generator[Out, None, None]:
    """The result for each input, at most two per worker ahead. Close it (`contextlib.closing`) to end the threads.

    Threads, since Pillow and NumPy release Python's lock.

    stop: called when no more results are needed, also after an error or Ctrl-C; running work should then end soon.
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
