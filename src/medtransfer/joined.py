"""How Lightning trains with the processes of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning_fabric.plugins import ClusterEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from medtransfer.tasks.base import Task

if TYPE_CHECKING:
    from medtransfer.parallel import Group


class Joined(DDPStrategy):
    """Averages gradients over the processes of a group, also of what is thawed later."""

    def __init__(self, group: Group) -> None:
        super().__init__(
            cluster_environment=_Here(group),
            find_unused_parameters=True,  # a phase has no use for some, nor may a part have
        )
        self.group = group

    def _configure_launcher(self) -> None:
        """Start nothing: the processes are there."""

    def setup_distributed(self) -> None:
        """See `DDPStrategy.setup_distributed`."""
        self.set_world_ranks()
        self._process_group_backend = self._get_process_group_backend()
        self.group.join(self._process_group_backend, self.root_device)

    def _setup_model(self, model: torch.nn.Module) -> DistributedDataParallel:
        """Wrap the model; what is averaged is settled by what asks for gradients at this moment."""
        assert isinstance(model, Task)
        ever = model.strategy_.trainable(model)
        now = {name: value.requires_grad for name, value in model.named_parameters()}
        for name, value in model.named_parameters():
            value.requires_grad_(name in ever)
        wrapped = super()._setup_model(model)
        for name, value in model.named_parameters():
            value.requires_grad_(now[name])
        return wrapped

    def on_validation_start(self) -> None:
        """Give all ranks the buffers of rank 0, so that they decide alike.

        DDP does so before what it takes for the forward pass of a step, and not before others.
        """
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            if buffer.is_contiguous():  # others are views of something that does not change
                distributed.broadcast(buffer, 0)


class _Here(ClusterEnvironment):
    """Processes of this machine that were started by rank 0."""

    creates_processes_externally = True
    main_address = "localhost"
    main_port = 0  # they meet in a file

    def __init__(self, group: Group) -> None:
        self.group = group

    @staticmethod
    def detect() -> bool:
        """Say that this is never chosen by itself."""
        return False

    def world_size(self) -> int:
        """Return how many processes there are."""
        return self.group.size

    def set_world_size(self, size: int) -> None:
        """Leave it as it is."""

    def global_rank(self) -> int:
        """Return which process this is."""
        return self.group.rank

    def set_global_rank(self, rank: int) -> None:
        """Leave it as it is."""

    def local_rank(self) -> int:
        """Return which device of this machine it uses."""
        return self.group.rank

    def node_rank(self) -> int:
        """Return 0: there is one machine."""
        return 0
