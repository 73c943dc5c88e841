"""The stages of a study, kept on disk by what they depend on: an interrupted study goes on.

Each stage is a folder `NAME-HASH` that appears whole or not at all. The hash is of everything that
decides its result, the code included; what another run finds there it reads instead of making it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from labelwise.fitting import available_cores
from labelwise.formatting import plain
from labelwise.io.files import canonical, from_json, read_arrays, write_arrays
from labelwise.io.staging import LOCK, MARK, locked, remove_partial, whole_folder
from labelwise.networks.cache import code_of
from labelwise.networks.network import Network, load
from labelwise.networks.plan import TrainingPlan
from labelwise.networks.train import train_networks
from labelwise.study.records import StageTime
from labelwise.types import InputError, Progress

Result = TypeVar("Result")
Networks = dict[str, Network]

_RECORD, _RESULT = "stage.json", "result.safetensors"
_CODE = ("labelwise.study.evaluation", "labelwise.study.scan", "labelwise.models")


class Stages:
    """The stages of one run; use `opened`.

    Args:
        folder: where they are kept; it exists.
        progress: called as the work goes on.
        labels: folder in which labels made by fitting are kept.
    """

    def __init__(self, folder: Path, progress: Progress, labels: Path) -> None:
        self.folder, self.progress = folder, progress
        self.labels = labels
        self.stage_times: list[StageTime] = []
        self._stopped = threading.Event()

    def networks(self, stage: str, plans: Sequence[tuple[TrainingPlan, Sequence[str]]]) -> Networks:
        """The networks that some plans train, by the names of their labels; side by side.

        A plan with few networks leaves cores idle, so several are trained at once. What is
        interrupted goes on from its last epoch. One that fails ends the others.

        Args:
            stage: what to call it.
            plans: the plans, and one name for each label.
        """
        keys = [_hash([plan.fingerprint]) for plan, _ in plans]

        def each(index: int) -> tuple[Networks, float, bool]:
            plan, names = plans[index]
            checkpoint = self.folder / f".training-{keys[index]}"

            def make() -> Networks:
                trained = train_networks(
                    plan,
                    cache=self.labels,
                    checkpoint=checkpoint,
                    resume=True,
                    progress=self._heard(stage),
                )
                return dict(zip(names, trained, strict=True))

            def read(folder: Path) -> Networks:
                return {name: _network(folder / f"{i:02}.safetensors") for i, name in numbered}

            numbered = list(enumerate(names))
            return self._on_disk("plan", keys[index], make, _write_networks, read)

        self.progress(stage, 0, 1, "")
        begin = time.perf_counter()
        with ThreadPoolExecutor(available_cores()) as pool:
            running = [pool.submit(each, index) for index in range(len(plans))]
            try:
                wait(running, return_when=FIRST_EXCEPTION)
                for plan in running:
                    if plan.done() and (error := plan.exception()):
                        raise error
            except BaseException:
                self._stopped.set()  # or the pool would wait for the last epoch
                for plan in running:
                    plan.cancel()
                raise
            found = [plan.result() for plan in running]
        kept = all(whole for _, _, whole in found)
        took = sum(seconds for _, seconds, _ in found) if kept else time.perf_counter() - begin
        self.stage_times.append(StageTime(stage, took, kept))
        return {name: network for networks, _, _ in found for name, network in networks.items()}

    def dataset(
        self,
        stage: str,
        content: Mapping[str, Any],
        make: Callable[[], xr.Dataset],
        *,
        again: bool = False,
    ) -> xr.Dataset:
        """A Dataset, in float32, from all that decides it.

        Args:
            stage: what to call it.
            content: what its values depend on besides the code, as JSON data.
            make: makes it.
            again: whether this run has it among its stages already.
        """
        key = _hash([canonical(content, stage), code_of(*_CODE)])
        if not again:
            self.progress(stage, 0, 1, "")
        result, seconds, kept = self._on_disk(stage, key, make, _write_dataset, _read_dataset)
        if not again:
            self.stage_times.append(StageTime(stage, seconds, kept))
        return result

    def _on_disk(
        self,
        what: str,
        key: str,
        make: Callable[[], Result],
        write: Callable[[Result, Path], None],
        read: Callable[[Path], Result],
    ) -> tuple[Result, float, bool]:
        """What is in a folder, made and written first if it is not there whole.

        Returns:
            The result, the seconds that making it took, and whether it was there.
        """
        slug = "-".join("".join(c if c.isalnum() else " " for c in what.lower()).split())
        place = self.folder / f"{slug}-{key}"
        # damaged, or of something else: make it again
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            said = from_json((place / _RECORD).read_text(encoding="utf-8"), place)
            if said["key"] == key and said["files"] == _digests(place):
                return read(place), float(said["seconds"]), True
        begin = time.perf_counter()
        result = make()
        seconds = time.perf_counter() - begin
        with whole_folder(place) as partial:
            write(result, partial)
            record = {"what": what, "seconds": seconds, "key": key, "files": _digests(partial)}
            (partial / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        return read(place), seconds, False  # what a run that finds it has: the same bytes

    def _heard(self, stage: str) -> Progress:
        """What a plan tells, under the name of the stage, until one of several has failed."""

        def tell(what: str, done: int, total: int, words: str) -> None:
            if self._stopped.is_set():
                raise InterruptedError("another training of this stage failed")
            self.progress(f"{stage}: {what}", done, total, words)

        return tell


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a stage, by name."""
    files = sorted(path for path in folder.iterdir() if path.name not in (_RECORD, MARK))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _write_networks(networks: Networks, folder: Path) -> None:
    for index, network in enumerate(networks.values()):
        network.save(folder / f"{index:02}.safetensors")


def _network(path: Path) -> Network:
    network = load(path)
    if network.is_blend:
        raise InputError(f"{path}: expected a single network")
    return network


def _write_dataset(made: xr.Dataset, folder: Path) -> None:
    """Numbers as arrays; what is said in words, and what the numbers are, in the header."""
    arrays, words = {}, {}
    for name, values in made.variables.items():
        if np.issubdtype(values.dtype, np.number):
            single = np.issubdtype(values.dtype, np.floating) and name not in made.coords
            arrays[str(name)] = values.values.astype(np.float32 if single else values.dtype)
        else:
            words[str(name)] = values.values.tolist()
    said = {
        "words": words,
        "dims": {str(name): list(values.dims) for name, values in made.variables.items()},
        "coords": [str(name) for name in made.coords],
        "attrs": plain(made.attrs),
        "attrs_of": {str(name): plain(values.attrs) for name, values in made.variables.items()},
    }
    write_arrays(folder / _RESULT, arrays, said)


def _read_dataset(folder: Path) -> xr.Dataset:
    arrays, said = read_arrays(folder / _RESULT)
    known = {**said["words"], **arrays}
    variables = {
        name: (dims, known[name], said["attrs_of"][name]) for name, dims in said["dims"].items()
    }
    coords = {name: variables.pop(name) for name in said["coords"]}
    return xr.Dataset(variables, coords, said["attrs"])


@contextmanager
def opened(folder: Path, progress: Progress) -> Iterator[Stages]:
    """The stages kept in a folder, which one run at a time may use.

    Args:
        folder: of the stages; made if missing.
        progress: called as the work goes on.

    Raises:
        FileExistsError: if another run is using it.
        OSError: if it cannot be made.
    """
    labels = folder / "labels"
    labels.mkdir(parents=True, exist_ok=True)
    refusal = "another study is running there; wait for it, or choose another folder"
    with locked(folder / LOCK, f"{folder.parent}: {refusal}"):
        remove_partial(folder)
        yield Stages(folder, progress, labels)


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
