"""Workers for the subjects of a cohort: this process, processes of this machine, or a cluster.

Dask distributes the tasks. A worker that ends takes only its task along, which another repeats;
after three such ends the task fails.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from labelwise.bids.cohort import Each
from labelwise.types import InputError

_SLURM_MEMORY = 4.0  # GB of a worker, if nothing is said
_GB = 1e9


@contextmanager
def workers(
    setup: Callable[[], None],
    jobs: int = 1,
    cluster: str | None = None,
    *,
    threads: int = 1,
    memory: float | None = None,
) -> Iterator[Each]:
    """Workers, to which functions are given with their arguments.

    Args:
        setup: called in the process of a worker before each task.
        jobs: how many workers.
        cluster: `"slurm"`, each worker a job of it; the address of a scheduler of Dask that runs,
            with its own workers; this machine if None.
        threads: cores of each worker.
        memory: GB of each worker, which is ended if it needs more; its share of this machine, or
            4 in a cluster, if None.

    Yields:
        A function that calls a function for each of some arguments, and yields the index and the
        result, or the exception, as they are done.

    Raises:
        InputError: if the library is not installed, or the cluster cannot be reached.
    """
    if jobs == 1 and cluster is None:
        yield lambda function, tasks: _one_by_one(setup, function, tasks)
        return
    with ExitStack() as stack:
        client = stack.enter_context(_client(stack, jobs, cluster, threads, memory))
        yield lambda function, tasks: _by_workers(client, setup, function, tasks)


def _one_by_one(setup, function, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    for index, task in enumerate(tasks):
        try:
            yield index, _called(setup, function, task)
        except Exception as error:
            yield index, error


def _by_workers(client, setup, function, tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = {
        client.submit(_called, setup, function, task, pure=False): index
        for index, task in enumerate(tasks)
    }
    for future in as_completed(futures):
        error = future.exception()
        if isinstance(error, KilledWorker):
            error = InputError(
                "its worker was ended several times, as happens when it needs more memory than it "
                "has; give --memory, or fewer --jobs"
            )
        index = futures.pop(future)
        yield index, future.result() if error is None else error


def _called(setup, function, task) -> Any:
    setup()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes are in the record
        return function(task)


def _client(stack: ExitStack, jobs: int, cluster: str | None, threads: int, memory: float | None):
    try:
        from distributed import Client, LocalCluster
        from distributed.system import MEMORY_LIMIT
    except ImportError as error:
        raise InputError(
            "--jobs and --cluster: need Dask, which pip install 'labelwise[cluster]' adds"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # of workers that end
    if cluster is None:
        made = LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,  # a task has its own threads
            memory_limit=MEMORY_LIMIT // jobs if memory is None else math.floor(memory * _GB),
            dashboard_address=None,  # pyright: ignore[reportArgumentType]
            silence_logs=logging.CRITICAL,
        )
        return Client(stack.enter_context(made))
    if cluster == "slurm":
        from dask_jobqueue.slurm import SLURMCluster

        made = SLURMCluster(
            n_workers=jobs,
            processes=1,
            cores=1,
            job_cpu=threads,
            memory=f"{memory or _SLURM_MEMORY:g}GB",
            scheduler_options={"dashboard_address": ":0"},  # any free port
        )
        return Client(stack.enter_context(made))
    try:
        return Client(cluster, timeout=30)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--cluster {cluster}: expected 'slurm', or the address of a Dask scheduler that runs, "
            f"such as tcp://10.0.0.1:8786 ({error})"
        ) from error
