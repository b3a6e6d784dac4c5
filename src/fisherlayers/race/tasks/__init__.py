"""Tasks of a race. A new one is a function that returns a `Task`, and one line in `TASKS`."""

from collections.abc import Callable
from functools import partial

from fisherlayers.race.tasks.image_tasks import (
    MNIST_SHAPES,
    cifar10,
    digits,
    fashion_mnist,
    mnist,
    mnist_autoencoder,
)
from fisherlayers.race.tasks.task import Examples, Task
from fisherlayers.race.tasks.text_tasks import penn_treebank, shakespeare

__all__ = ["TASKS", "Examples", "Task", "load_task"]

TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    **{name: partial(mnist, name) for name in MNIST_SHAPES},
    "fashion-mnist": fashion_mnist,
    "autoencoder": mnist_autoencoder,
    "cifar10": cifar10,
    "ptb": penn_treebank,
    "shakespeare": shakespeare,
}


def load_task(name: str) -> Task:
    """Return the task of that name.

    Args:
        name: a key of `TASKS`.

    Returns:
        The task with its data in memory.

    Raises:
        ValueError: no such task.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {sorted(TASKS)}; got {name!r}")
    return TASKS[name]()
