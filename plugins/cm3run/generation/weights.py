"""The weights of a model that was opened for generation: those that generation reads, and those of training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakSet

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder


class GenerationWeights:
    """A decoder with the weights that generation reads, and the same decoder with those of training, which are loaded
    when something computes losses or trains.

    Args:
        decoder: for generation alone.
        load: returns the decoder with training's weights, on the same device.
        stored: reads training's weights one after the other: names, in order, and values.
    """

    def __init__(
        self,
        decoder: Decoder,
        load: Callable[[], Decoder],
        stored: Callable[[], Iterator[tuple[str, Tensor]]],
    ) -> None:
        self.context_length = decoder.context_length
        self._decoder: Decoder | None = decoder
        self._load, self._stored, self._lock = load, stored, Lock()
        self._generates = False
        #: The decoder with training's weights, and their version when they were loaded.
        self._whole: tuple[Decoder, int] | None = None

    @property
    def whole(self) -> Decoder:
        """The decoder with training's weights. They replace the others if nothing was generated yet; else both stay."""
        with self._lock:
            if self._whole is None:
                if not self._generates:
                    self._decoder = None
                # a likelihood asks within inference mode, whose tensors could not be trained later
                with torch.inference_mode(False):
                    loaded = self._load()
                self._whole = loaded, version_of(loaded)
            return self._whole[0]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """See `named_weights`."""
        return self._stored() if self._whole is None else named_weights(self._whole[0])

    def for_engine(self) -> tuple[Decoder, int]:
        """The decoder that generates, and a number that changes with its weights. Once training's weights have changed,
        it has those."""
        with self._lock:
            if self._whole is not None:
                whole, before = self._whole
                now = version_of(whole)
                if now != before:
                    self._decoder = None
                if self._decoder is None:
                    return whole, now
            assert self._decoder is not None
            self._generates = True
            return self._decoder, -1


#: The memory of weights that nothing but generation reads.
_own: WeakSet[torch.UntypedStorage] = WeakSet()


def keep_for_generation(weight: Tensor) -> None:
    """Declare that nothing but generation reads a weight, so that it may share memory with others."""
    _own.add(weight.untyped_storage())


def only_generates(weight: Tensor) -> bool:
    """Whether nothing but generation reads a weight."""
    return weight.untyped_storage() in _own


def joined(weights: Sequence[Tensor]) -> Tensor:
    """The weights [outputs, inputs], outputs concatenated. Weights that nothing but generation reads become parts of the
    result, so that they are in memory once."""
    if len(weights) == 1:
        return weights[0].detach()
    own = all(map(only_generates, weights))
    if own and _are_parts(weights):  # of what another engine joined
        first, rows, inputs = weights[0].detach(), sum(map(len, weights)), weights[0].shape[1]
        return first.as_strided((rows, inputs), (inputs, 1), first.storage_offset())
    together = torch.cat([weight.detach() for weight in weights])
    if own:
        keep_for_generation(together)
        for weight, part in zip(
            weights, together.split([len(one) for one in weights]), strict=True
        ):
            weight.data = part
    return together


def _are_parts(weights: Sequence[Tensor]) -> bool:
    """Whether matrices lie one behind the other in the same memory."""
    storage, place = weights[0].untyped_storage(), weights[0].storage_offset()
    for weight in weights:
        if weight.untyped_storage() is not storage or weight.storage_offset() != place:
            return False
        place += weight.numel()
    return all(weight.is_contiguous() for weight in weights)


def version_of(decoder: Decoder) -> int:
    """A number that changes when the decoder's weights do."""
    return sum(parameter._version for parameter in decoder.module.parameters())


def named_weights(decoder: Decoder | GenerationWeights) -> Iterator[tuple[str, Tensor]]:
    """Training's weights, in the order of their names; read one after the other if they are not loaded."""
    if isinstance(decoder, GenerationWeights):
        return decoder.named()
    return iter(sorted(decoder.module.state_dict().items()))


def sha256_of(decoder: Decoder | GenerationWeights) -> str:
    """Hash of training's weights, wherever they are stored."""
    digest = hashlib.sha256()
    for name, tensor in named_weights(decoder):
        digest.update(name.encode())
        data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(data.tobytes())
    return digest.hexdigest()


def whole_of(decoder: Decoder | GenerationWeights) -> Decoder:
    """The decoder with training's weights."""
    return decoder.whole if isinstance(decoder, GenerationWeights) else decoder
