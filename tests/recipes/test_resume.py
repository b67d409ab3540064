"""A training that is killed and started again ends where an undisturbed one ends."""

import re
import signal

import pytest
import torch

from tests.recipes.training import finish, losses, parameters, start, train, write_config

pytestmark = pytest.mark.recipe


@pytest.fixture
def config(overfitted, tmp_path):
    # With dropout: the random numbers after the restart must be the same ones, too.
    conf = {"output_size": 64, "linear_units": 128, "num_blocks": 2, "dropout_rate": 0.1}
    return write_config(
        overfitted,
        tmp_path / "config.yaml",
        encoder_conf=conf,
        max_epoch=3,
        num_iters_per_epoch=20,
        log_interval=5,
    )


def kill_in_epoch(process, epoch):
    """Kills ``process`` with SIGKILL once it has done some updates of ``epoch``."""
    for line in process.stdout:
        if re.search(rf"\b{epoch}epoch:train:6-10batch", line):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL


def test_killed_in_mid_epoch_ends_at_the_same_loss(overfitted, config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(overfitted, config, whole)

    kill_in_epoch(start(overfitted, config, killed), epoch=2)
    assert losses(killed) == losses(whole)[:1], "it should have died in its second epoch"
    resumed = finish(start(overfitted, config, killed))

    assert "The training was resumed" in resumed
    assert len(losses(whole)) == 3
    torch.testing.assert_close(losses(killed), losses(whole), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(parameters(killed), parameters(whole), rtol=1e-5, atol=1e-6)
