"""Which module parametrizes a parameter: looked up at every step, so by identity alone, and holding on to nothing."""

import weakref
from typing import Generic, TypeVar

from torch import Tensor, nn

__all__ = ["Registry"]

Module = TypeVar("Module", bound=nn.Module)


class Registry(Generic[Module]):
    """Modules by the tensor that they belong to; an entry goes when either of the two is gone."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Module]]] = {}

    def get(self, tensor: Tensor) -> Module | None:
        """Return the module of a tensor.

        Args:
            tensor: Any tensor.

        Returns:
            The module, None if there is none.
        """
        entry = self._entries.get(id(tensor))
        return entry[1]() if entry is not None and entry[0]() is tensor else None

    def put(self, tensor: Tensor, module: Module) -> None:
        """Enter a tensor, or give it another module.

        Args:
            tensor: The tensor.
            module: Its module.
        """
        key = id(tensor)

        def forget(gone: weakref.ref[Tensor]) -> None:
            if (entry := self._entries.get(key)) is not None and entry[0] is gone:  # the number may be in use again
                del self._entries[key]

        self._entries[key] = weakref.ref(tensor, forget), weakref.ref(module)

    def remove(self, tensor: Tensor) -> None:
        """Take a tensor out; one that is not there is passed over.

        Args:
            tensor: The tensor.
        """
        if self.get(tensor) is not None:
            del self._entries[id(tensor)]
