"""Tiny models run on one thread, whatever torch was given, and the setting is put back."""

import pytest
import torch
from torch import nn

from withstand.models.threads import operations, suited_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_operations_are_those_of_products_and_convolutions():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 36, 5))
    assert operations(net, torch.zeros(1, 3, 6, 6)) == 2 * (36 * 4 * 3 * 9 + 4 * 36 * 5)


@pytest.mark.parametrize(("width", "threads"), [(8, 1), (4096, 2)])
def test_threads_follow_the_size_and_come_back(two_threads, width, threads):
    net = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2))
    with suited_threads(net, torch.zeros(1, width)):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError), suited_threads(net, torch.zeros(1, width)):
        raise RuntimeError
    assert torch.get_num_threads() == 2
