"""What several processes share. That they train as one does is in test_cli.py."""

from __future__ import annotations

import torch
from torch import nn

from train.distributed import SyncedBatchNorm


def test_a_synchronised_batch_norm_keeps_parameters_and_statistics() -> None:
    norm = nn.BatchNorm1d(3, eps=0.1, momentum=0.2)
    norm(torch.randn(9, 3))
    synced = SyncedBatchNorm.of(norm)
    assert synced.weight is norm.weight
    assert (synced.eps, synced.momentum) == (0.1, 0.2)
    assert synced.state_dict().keys() == norm.state_dict().keys()
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in synced.state_dict().items())
    x = torch.randn(4, 3)
    assert torch.equal(synced.eval()(x), norm.eval()(x))
