"""What several processes share. That they train as one does is in test_cli.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


WAITING = """
import time
from datetime import timedelta
import torch
from torch import distributed
import train.distributed as ours

begin = distributed.init_process_group
distributed.init_process_group = lambda backend: begin(backend, timeout=timedelta(seconds=1))
ours.usable_cores = lambda: 3
with ours.joined(cuda=False) as world:
    before = torch.get_num_threads()
    with world.in_turn():
        if world.first:
            assert (before, torch.get_num_threads()) == (1, 3)
            time.sleep(2.5)  # longer than the others' own group would wait
    assert torch.get_num_threads() == before
    assert world.share({"x": float(world.rank)}) == {"x": 0.0}
"""


def test_the_first_process_computes_on_all_cores_and_the_others_wait(tmp_path: Path) -> None:
    """As torchrun starts them: with OMP_NUM_THREADS=1, and a group that gives up soon."""
    (tmp_path / "waiting.py").write_text(WAITING)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "waiting.py")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
