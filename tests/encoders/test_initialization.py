"""After every choice of ESPnet's ``init:`` the SSM parameters hold their own initialisation."""

import math

import pytest
import torch
import torch.nn.functional as F
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.initialize import INITIALIZATIONS, initialize
from torch import nn

from espnet_bimamba.layers.initialization import A_INITS
from espnet_bimamba.layers.mamba import SelectiveSSM
from tests.encoders.asr import asr_model, options_of, tiny_conf
from tests.encoders.zoo import every_encoder, every_mixer

CHOICES = [None, *INITIALIZATIONS]
every_choice = pytest.mark.parametrize("init", CHOICES, ids=str)
# Wide enough for the moments: 64 channels, 16 states, rank 2.
SIZES = {"output_size": 32, "d_state": 16}


def check_initialisation(model: nn.Module, A_init: str = "s4d_real_noise") -> None:
    directions = [module for module in model.modules() if isinstance(module, SelectiveSSM)]
    assert directions
    for ssm in directions:
        check_direction({k: p.detach().double() for k, p in ssm.named_parameters()}, A_init)


def check_direction(ssm: dict[str, torch.Tensor], A_init: str) -> None:
    assert torch.equal(ssm["D"], torch.ones(64).double())
    steps = F.softplus(ssm["dt_proj.bias"])
    assert steps.min() >= 0.001 * (1 - 1e-4)
    assert steps.max() <= 0.1 * (1 + 1e-4)
    # Log-uniform over two decades: its deviation is 2 / sqrt(12).
    assert steps.log10().std().item() == pytest.approx(0.577, rel=0.3)
    uniform = {"dt_proj.weight": 2**-0.5, "conv1d.weight": 0.5, "conv1d.bias": 0.5}
    for name, bound in uniform.items():
        assert ssm[name].abs().max() <= bound, name
        assert ssm[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.3), name
    A = torch.exp(ssm["A_log"])
    factor = A / torch.arange(1.0, 17)
    if A_init == "s4d_real":
        torch.testing.assert_close(factor, torch.ones_like(factor), rtol=1e-6, atol=0)
    elif A_init == "random":
        assert A.log().mean().abs() < 0.16
        assert A.log().std().item() == pytest.approx(1, rel=0.12)
    else:
        assert factor.min() >= 1e-3 * (1 - 1e-5)
        assert (factor**2).mean().item() == pytest.approx(1, rel=0.25)
        assert factor.mean().item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.12)


@every_encoder
@every_mixer
@every_choice
def test_through_espnets_task(name, mixer, init):
    torch.manual_seed(0)
    conf = tiny_conf(name, **SIZES, **mixer)
    model = asr_model(name, conf, init=init)
    check_initialisation(model.encoder)


@every_encoder
@pytest.mark.parametrize("A_init", A_INITS)
def test_the_choice_of_A_survives_xavier_uniform(name, A_init):
    torch.manual_seed(0)
    conf = tiny_conf(name, **SIZES, A_init=A_init)
    check_initialisation(asr_model(name, conf, init="xavier_uniform").encoder, A_init)


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_the_projections_are_left_to_espnet(init):
    """What ESPnet's ``init:`` gives a linear layer, ours get too."""
    torch.manual_seed(0)
    model = asr_model("conbimamba", tiny_conf("conbimamba", **SIZES), init=init)
    ssm = model.encoder.encoders[0].self_attn.mixer.forward_mamba
    expected = {
        "xavier_uniform": math.sqrt(2 / (32 + 128)),
        "xavier_normal": math.sqrt(2 / (32 + 128)),
        "kaiming_uniform": math.sqrt(2 / 32),
        "kaiming_normal": math.sqrt(2 / 32),
        "normal": 0.02,
    }
    deviation = ssm.in_proj.weight.std().item()
    assert deviation == pytest.approx(expected[init], rel=0.05)


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_the_check_fails_on_what_espnet_alone_would_leave(init, monkeypatch):
    torch.manual_seed(0)
    model = asr_model("conbimamba", tiny_conf("conbimamba", **SIZES))
    check_initialisation(model.encoder)
    monkeypatch.delattr(SelectiveSSM, "espnet_initialization_fn")
    initialize(model, init)
    with pytest.raises(AssertionError):
        check_initialisation(model.encoder)


@every_encoder
@every_choice
def test_through_espnet3s_task(name, init):
    from espnet3.systems.esp2_asr.task import ASRTask as Task3

    torch.manual_seed(0)
    model = Task3.build_model(options_of(name, tiny_conf(name, **SIZES), init=init))
    check_initialisation(model.encoder)


@every_encoder
@every_choice
def test_through_espnet3s_trainer(name, init, tmp_path, monkeypatch):
    """ESPnet3's trainer initialises the whole LightningModule when it is made."""
    pytest.importorskip("lightning", reason="ESPnet3 trains with Lightning")
    from espnet3.components.modeling.lightning_module import ESPnetLightningModule
    from espnet3.components.trainers import trainer
    from omegaconf import OmegaConf

    class WithoutData(ESPnetLightningModule):
        def __init__(self, model, config):
            nn.Module.__init__(self)
            self.model, self.config, self.is_espnet_sampler = model, config, False

    # ESPnet3 hands `init` on to Lightning, which knows no such option.
    monkeypatch.setattr(trainer.lightning, "Trainer", lambda **_: None)
    torch.manual_seed(0)
    model = asr_model(name, tiny_conf(name, **SIZES))
    projection = model.encoder.get_parameter("after_norm.weight").detach().fill_(2)
    trainer.ESPnet3LightningTrainer(
        model=WithoutData(model, OmegaConf.create({"dataloader": {"train": {}, "valid": {}}})),
        exp_dir=str(tmp_path),
        config=OmegaConf.create({"accelerator": "cpu", "log_every_n_steps": 1, "init": init}),
    )
    # The trainer did initialise: this norm was drawn anew.
    assert projection[0] == (2 if init is None else 1)
    check_initialisation(model.encoder)


@every_encoder
@every_mixer
def test_weight_decay_leaves_A_and_D_alone(name, mixer):
    """ESPnet's ``exclude_weight_decay: true``, through the task's own ``build_optimizers``."""
    args = options_of(
        name,
        tiny_conf(name, **mixer),
        optim="adamw",
        optim_conf={"lr": 0.1, "weight_decay": 0.5},
        exclude_weight_decay=True,
        exclude_weight_decay_conf={"bias_weight_decay": True, "normalization_weight_decay": True},
    )
    model = ASRTask.build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    own = dict(model.encoder.named_parameters())
    assert {decay[id(p)] for p in own.values()} == {0.0, 0.5}
    marked = (".A_log", ".D")
    for parameter, tensor in own.items():
        assert decay[id(tensor)] == (0.0 if parameter.endswith(marked) else 0.5), parameter
    # And in a step: without gradients, decay is all that moves a parameter.
    for tensor in model.parameters():
        tensor.grad = torch.zeros_like(tensor)
    before = {parameter: tensor.clone() for parameter, tensor in own.items()}
    optimizer.step()
    for parameter, tensor in own.items():
        expected = before[parameter] * (1 if parameter.endswith(marked) else 0.95)
        torch.testing.assert_close(tensor, expected)
