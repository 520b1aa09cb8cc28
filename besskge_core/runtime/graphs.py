"""A function without arguments, captured once as a CUDA graph and replayed at each call."""

from __future__ import annotations

import logging
from typing import Callable, Generic, Optional, TypeVar

import torch

T = TypeVar("T")

#: Calls before the capture: kernels are compiled, libraries and the allocator's pools are set up.
N_WARM_UP = 3


class Replayed(Generic[T]):
    """Calls a function: the first times as it is, then as a graph, in one launch.

    What the function computes goes into the same tensors at each replay. Where it cannot be captured
    it is called as it is, which gives the same.

    Args:
        function: reads and writes tensors at fixed places; does not wait for the device.
        device: where it computes.

    Attributes:
        reason: why it is not captured; empty where it is, or will be.
    """

    def __init__(self, function: Callable[[], T], device: torch.device) -> None:
        self._function, self._device = function, device
        self._n_call = 0
        self._graph: Optional[torch.cuda.CUDAGraph] = None
        self._found: Optional[T] = None
        self._beside: Optional[torch.cuda.Stream] = None
        self.reason = "" if device.type == "cuda" else f"{device.type} has no graphs"

    @property
    def is_captured(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    def __call__(self) -> T:
        if self._graph is None and not self.reason:
            self._n_call += 1
            if self._n_call <= N_WARM_UP:
                return self._warm_up()
            self._capture()
        if self._graph is None:
            return self._function()
        self._graph.replay()
        assert self._found is not None
        return self._found

    def _warm_up(self) -> T:
        """A call on a stream that is not the default one, as captures are."""
        current = torch.cuda.current_stream(self._device)
        if self._beside is None:
            self._beside = torch.cuda.Stream(self._device)
        self._beside.wait_stream(current)
        with torch.cuda.stream(self._beside):
            found = self._function()
        current.wait_stream(self._beside)
        return found

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device), torch.cuda.graph(graph):
                self._found = self._function()
        except RuntimeError as error:
            first: BaseException = error  # of the errors that the end of the capture adds to
            while first.__context__ is not None:
                first = first.__context__
            self.reason = str(first).strip().split("\n")[0]
            torch.cuda.synchronize(self._device)
            logging.getLogger("besskge_core").warning(
                "a step cannot be captured in a CUDA graph and is launched anew each time: %s",
                self.reason,
            )
        else:
            self._graph = graph
