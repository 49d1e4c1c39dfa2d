"""A clamp in a plain loop over two processes does what it does in one."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import grokscape as gs

STEPS = 5


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def batch(rank):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(64, 8, generator=generator), torch.randint(3, (64,), generator=generator)


def train(network, batches, clamp):
    """Steps on the mean over the batches of loss plus penalty; whether the clamp ever pushed."""
    optimizer, pushed = torch.optim.SGD(network.parameters(), lr=0.1), False
    for step in range(STEPS):
        losses = []
        for inputs, labels in batches:
            with gs.Probe(network) as probe:
                loss = F.cross_entropy(network(inputs), labels)
                penalty = clamp(probe.snapshot(labels), step=step)
            pushed |= bool(penalty > 0)
            losses.append(loss + penalty)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return pushed


def parameters(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def clamp():
    return gs.Clamp("relative_flatness", at_least=50.0, strength=0.1)


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network = DistributedDataParallel(model())
    assert train(network, [batch(rank)], clamp())
    mine = parameters(network)
    both = [torch.zeros_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(*both)
    alone = model()
    train(alone, [batch(0), batch(1)], clamp())
    torch.testing.assert_close(mine, parameters(alone))
    assert not torch.allclose(mine, parameters(model()))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)
