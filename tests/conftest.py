"""Settings of the whole suite."""

import os

import torch


def pytest_configure(config):
    """One thread for each of several test processes: threads that wait for each other's cores cost many times more."""
    if hasattr(config, "workerinput"):
        os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
        torch.set_num_threads(1)
