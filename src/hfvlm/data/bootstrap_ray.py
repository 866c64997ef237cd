"""The shards of a bootstrap made by the workers of a Ray cluster, with Ray Data."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hfvlm.data.bootstrap import bootstrap
from hfvlm.data.shards import Counts


def check_ray() -> None:
    """Refuses early.

    Raises:
        ImportError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ImportError("the engine ray needs Ray Data: `pip install 'ray[data]'`, or use --engine local")


def bootstrap_with_ray(
    load: Callable[[], tuple[Any, Any, Any]],
    shards: Sequence[int],
    workers: int = 1,
    gpus: float = 0,
    on_error: Callable[[str], None] | None = None,
) -> Iterator[tuple[int, Counts]]:
    """`bootstrap` by workers that take the shards as they come; the input and the folder must be seen by all of them.

    Args:
        load: gives a worker the rows, the folder and the models, as `bootstrap` takes them.
        shards: which.
        workers: how many, each with models of its own.
        gpus: of a worker; a fraction shares one.
        on_error: is told of each image that cannot be read, which is left out.

    Raises:
        ImportError: Ray is not installed.
        Exception: a worker's error, as Ray wraps it.
    """
    check_ray()
    import ray.data

    class Worker:
        def __init__(self):
            self.loaded = load()

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            errors: list[str] = []
            [(shard, counts)] = bootstrap(*self.loaded, shards=[int(row["shard"])], on_error=errors.append)
            return {"shard": shard, "counts": vars(counts), "errors": "\n".join(errors)}

    table = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    pool = ray.data.ActorPoolStrategy(size=workers)
    for row in table.map(Worker, compute=pool, num_gpus=gpus).iter_rows():
        if on_error is not None:
            for error in filter(None, row["errors"].split("\n")):
                on_error(error)
        yield row["shard"], Counts(**row["counts"])
