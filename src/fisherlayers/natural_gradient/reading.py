"""What a forward pass reads of a local Fisher layer, W and the bias beside it, in as few steps as there can be.

A layer reads its weight, then its bias: one product, one node of the graph, gives both W' S and d - W' · shift.
On small layers a pass through Python costs more than the product itself, and decides the step time.
"""

import weakref
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor

from fisherlayers.natural_gradient.coordinates import mixed
from fisherlayers.natural_gradient.products import Factors, multiply, multiply_and_shift, shifted_factors
from fisherlayers.natural_gradient.readers import original
from fisherlayers.root import DenseRoot, LowRankRoot, Root

if TYPE_CHECKING:
    from fisherlayers.natural_gradient.parametrization import FisherWeight

__all__ = ["Reading"]


class _Seen(NamedTuple):
    """A tensor as it was, to recognise it."""

    tensor: weakref.ref[Tensor]
    version: int
    with_grad: bool

    @staticmethod
    def of(tensor: Tensor) -> "_Seen":
        return _Seen(weakref.ref(tensor), tensor._version, torch.is_grad_enabled())

    def is_of(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.version == tensor._version and self.with_grad == torch.is_grad_enabled()


class _Latest(NamedTuple):
    """Weight and bias that were read last; the shifted bias hangs on W and lives as long as that does."""

    weight: _Seen
    bias: _Seen
    plain: weakref.ref[Tensor]


class Reading:
    """What is remembered between a read of the weight and the next of the bias, and from step to step.

    Copies and pickles of it are blank.
    """

    __slots__ = ("_factors", "_keeps", "_kept", "_key", "_latest", "_sources")

    def __init__(self) -> None:
        self.forget()
        self.keep(False)

    def __deepcopy__(self, memo: object) -> "Reading":
        return Reading()

    def __reduce__(self) -> tuple[type["Reading"], tuple[()]]:
        return Reading, ()

    def forget(self) -> None:
        """Forget all that depends on buffers: they are others from now on."""
        self._factors: Factors | None = None
        self._sources: tuple[Tensor, ...] = ()
        self._key: tuple[int, ...] = ()
        self._latest: _Latest | None = None

    def keep(self, on: bool) -> None:
        """Keep W from now on, or forget it: between two writes it is computed once.

        Args:
            on: Whether to keep it.
        """
        self._keeps = on
        self._kept: tuple[_Seen, Tensor] | None = None

    def weight(self, fisher: "FisherWeight", weight: Tensor) -> Tensor:
        """Return W = T W' S.

        Args:
            fisher: Whose reading this is.
            weight: W', as the module holds it.

        Returns:
            W, of the same shape and dtype.
        """
        if not self._keeps or torch.compiler.is_compiling():
            return self._plain(fisher, weight)
        if self._kept is None or not self._kept[0].is_of(weight):
            self._kept = _Seen.of(weight), self._plain(fisher, weight)
        return self._kept[1]

    def shifted_bias(self, weight: Tensor, bias: Tensor) -> Tensor | None:
        """Return d - W' · shift, if it came with the latest read of the weight.

        Args:
            weight: W', as the module holds it.
            bias: d, as the module holds it.

        Returns:
            (out,), or None.
        """
        latest = self._latest
        if latest is None:
            return None
        if not self._keeps:
            self._latest = None
        plain = latest.plain()
        if plain is None or not (latest.weight.is_of(weight) and latest.bias.is_of(bias)):
            return None
        return cast("Tensor", plain.shifted_bias)  # type: ignore[attr-defined]

    def _plain(self, fisher: "FisherWeight", weight: Tensor) -> Tensor:
        rows = fisher.layout.rows(weight)
        bias, factors = self._together(fisher, rows)
        if bias is None or factors is None:
            product = multiply(fisher.root, rows.to(fisher.mean.dtype), factors)
            return fisher.layout.tensor(mixed(fisher.output, product), weight.shape).to(weight.dtype)
        product, shifted = multiply_and_shift(rows, bias, factors)
        plain = fisher.layout.tensor(mixed(fisher.output, product), weight.shape)
        plain.shifted_bias = shifted  # type: ignore[attr-defined]
        self._latest = _Latest(_Seen.of(weight), _Seen.of(bias), weakref.ref(plain))
        return plain

    def _together(self, fisher: "FisherWeight", rows: Tensor) -> tuple[Tensor | None, Factors | None]:
        # The one bias beside the weight, if one product gives W and that bias; and the factors, if that makes sense.
        reader = fisher.readers[0]
        bias = None if reader.bias is None or reader.part is not None else original(reader.host, reader.bias)
        shift = cast("Tensor", fisher._buffers["shift"])
        root = fisher.root
        if rows.ndim != 2 or torch.compiler.is_compiling() or _transformed():
            return None, None
        if not (isinstance(root, DenseRoot) or (isinstance(root, LowRankRoot) and rows.device.type == "cpu")):
            return None, None
        alike = bias is not None and rows.dtype == shift.dtype == bias.dtype
        return bias if alike and len(fisher.readers) == 1 else None, self.factors(root, shift)

    def factors(self, root: Root, shift: Tensor) -> Factors:
        """Return what products with a root and its shift are made of; they are kept while both stay as they are.

        Args:
            root: S, dense or of low rank.
            shift: μ S, (D,).

        Returns:
            The factors.
        """
        assert isinstance(root, DenseRoot | LowRankRoot)
        sources = (*cast("dict[str, Tensor]", root._buffers).values(), shift)
        # The versions count writes in place: by a refresh, or by load_state_dict.
        key = tuple([number for tensor in sources for number in (id(tensor), tensor._version)])
        if self._factors is None or self._key != key:
            # Made while validating in inference mode, they must serve the next training step as well.
            with torch.inference_mode(mode=False), torch.no_grad():
                self._factors, self._sources, self._key = shifted_factors(root, shift), sources, key
        return self._factors


def _transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None
