"""What encoder tests share."""

import pytest
import torch

# At the first use of a device as a context torch keeps a list of the functions that make tensors.
# Let it hold the real ones, not those that a fixture has replaced by then.
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
