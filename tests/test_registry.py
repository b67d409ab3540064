"""Which ESPnet registries know us: all that can, none that cannot, and no harm done."""

import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import espnet_bimamba
from espnet_bimamba import registry
from tests.tiny_models import TINY

# Packages whose absence excuses a module of ESPnet from being walked.
OPTIONAL_PACKAGES = {
    "gradio": "ESPnet3's demo pages",
    "google": "protobuf, with which ESPnet3's recipes train a tokenizer",
}

PAIRS = [
    (host, attribute, name)
    for host, registries in registry.HOSTS.items()
    for attribute, table in registries.items()
    for name in table
]
IDS = ["-".join(pair) for pair in PAIRS]
ENCODER_PAIRS = [pair for pair in PAIRS if registry.HOSTS[pair[0]][pair[1]] is registry.ENCODERS]
# The base class of a registry -> what such a registry learns.
BASES = {
    "espnet2.asr.encoder.abs_encoder.AbsEncoder": registry.ENCODERS,
    "espnet2.enh.separator.abs_separator.AbsSeparator": registry.SEPARATORS,
    "espnet2.enh.encoder.abs_encoder.AbsEncoder": registry.SPECTRA,
    "espnet2.enh.decoder.abs_decoder.AbsDecoder": registry.SIGNALS,
    "espnet2.enh.loss.criterions.abs_loss.AbsEnhLoss": registry.CRITERIONS,
}


def _installed_modules() -> Iterator[str]:
    for package in ("espnet2.tasks", "espnet3"):
        spec = importlib.util.find_spec(package)
        root = Path(spec.submodule_search_locations[0])
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")])


def _missing_package(error: ImportError) -> str:
    # ESPnet3's demo pages say it in words: "gradio is required to build ...".
    name = error.name or str(error).partition(" is required")[0]
    return name.partition(".")[0]


@pytest.fixture(scope="module")
def registries_by_base() -> dict[str, dict[tuple[str, str], object]]:
    """Every registry of one of the bases that the installed ESPnet has."""
    from espnet2.train.class_choices import ClassChoices

    found: dict[str, dict[tuple[str, str], object]] = {base: {} for base in BASES}
    for name in _installed_modules():
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if _missing_package(error) not in OPTIONAL_PACKAGES:
                pytest.fail(f"{name} cannot be walked: {error}")
            continue
        for attribute, value in vars(module).items():
            if isinstance(value, ClassChoices) and value.base_type is not None:
                base = f"{value.base_type.__module__}.{value.base_type.__qualname__}"
                found.get(base, {})[name, attribute] = value
    return found


@pytest.mark.parametrize(("base", "table"), BASES.items(), ids=BASES)
def test_every_registry_of_espnet_is_in_one_of_the_tables(base, table, registries_by_base):
    registries = registries_by_base[base]
    assert registries
    hosts = {
        (host, name)
        for host, row in registry.HOSTS.items()
        for name, learnt in row.items()
        if learnt is table
    }
    exceptions = set(registry.EXCEPTIONS) if table is registry.ENCODERS else set()
    assert not hosts & exceptions
    known = hosts | exceptions
    known_objects = {id(registries[key]) for key in known & set(registries)}
    unknown = [key for key, value in registries.items() if id(value) not in known_objects]
    assert not unknown, f"in neither registry.HOSTS nor registry.EXCEPTIONS: {unknown}"
    assert known <= set(registries), f"not in ESPnet: {known - set(registries)}"


@pytest.mark.parametrize(("host", "attribute", "name"), PAIRS, ids=IDS)
def test_every_host_knows_every_name(host, attribute, name):
    classes = getattr(importlib.import_module(host), attribute).classes
    target = f"{classes[name].__module__}:{classes[name].__qualname__}"
    assert target == registry.HOSTS[host][attribute][name]


@pytest.mark.parametrize(
    ("host", "attribute"), registry.EXCEPTIONS, ids=["-".join(key) for key in registry.EXCEPTIONS]
)
def test_exceptions_know_none_of_our_names(host, attribute):
    classes = getattr(importlib.import_module(host), attribute).classes
    assert not set(classes) & set(registry.ENCODERS)


@pytest.fixture
def _without_torcheval(monkeypatch):
    """The classification model's metrics need torcheval; its encoder does not."""
    from espnet2.cls import espnet_model

    monkeypatch.setattr(espnet_model, "torcheval_import_error", None)
    monkeypatch.setattr(espnet_model.ESPnetClassificationModel, "setup_metrics_", lambda _: {})


@pytest.fixture
def _one_thread():
    """Models as small as these lose more to threads than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_without_torcheval", "_one_thread")
@pytest.mark.parametrize(
    ("host", "attribute", "name"), ENCODER_PAIRS, ids=["-".join(pair) for pair in ENCODER_PAIRS]
)
def test_a_tiny_model_of_every_host_trains(host, attribute, name, tmp_path):
    tiny = TINY[host, attribute]
    torch.manual_seed(0)
    model = tiny.build(host, name, tmp_path).train()
    result = model(**tiny.batch())
    loss = result["loss"] if isinstance(result, dict) else result[0]
    assert torch.isfinite(loss), f"loss is {loss}"
    loss.backward()

    cls = getattr(importlib.import_module(host), attribute).classes[name]
    (encoder,) = (module for module in model.modules() if type(module) is cls)
    gradients = {key: parameter.grad for key, parameter in encoder.named_parameters()}
    states = [gradient for key, gradient in gradients.items() if key.endswith("A_log")]
    assert len(states) == 2, "one block of extbimamba has two state matrices"
    for gradient in states:
        assert gradient is not None
        assert gradient.abs().max() > 0
    for key, gradient in gradients.items():
        assert gradient is None or torch.isfinite(gradient).all(), f"gradient of {key}"


class Base:
    """Stands for AbsEncoder."""


class Ours(Base):
    """Stands for one of our encoders."""


class Theirs(Base):
    """Stands for an encoder that ESPnet ships."""


class Unrelated:
    """Not an encoder."""


@pytest.fixture
def host(monkeypatch) -> ModuleType:
    """A task module of a made-up ESPnet with an empty registry, and one encoder of ours."""
    module = ModuleType("espnet2.tasks.made_up")
    module.encoder_choices = SimpleNamespace(classes={}, base_type=Base)
    table = {"conbimamba": f"{__name__}:Ours"}
    monkeypatch.setitem(registry.HOSTS, module.__name__, {"encoder_choices": table})
    monkeypatch.setattr(registry, "_warned", set())
    # The folder this file is in may hold an installed copy besides the one under test.
    monkeypatch.setattr(registry, "_copies", lambda: ["/here/espnet_bimamba"])
    return module


def _warnings_of(module: ModuleType) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry.register(module)
    assert all(entry.category is RuntimeWarning for entry in caught)
    return [str(entry.message) for entry in caught]


def test_registers_without_a_word(host):
    assert _warnings_of(host) == []
    assert host.encoder_choices.classes == {"conbimamba": Ours}


def test_registering_again_changes_nothing(host):
    _warnings_of(host)
    assert _warnings_of(host) == []
    assert host.encoder_choices.classes == {"conbimamba": Ours}


def test_a_name_that_espnet_ships_stays_espnets(host):
    host.encoder_choices.classes["conbimamba"] = Theirs
    (message,) = _warnings_of(host)
    assert host.encoder_choices.classes == {"conbimamba": Theirs}
    assert "'conbimamba'" in message
    assert f"{__name__}.Theirs" in message
    assert "espnet2.tasks.made_up.encoder_choices" in message


@pytest.mark.parametrize("version", ["202607", "202511", "202607.post1", "202308"])
def test_an_espnet_too_old_is_told_both_versions(host, monkeypatch, version):
    monkeypatch.setattr("espnet2.__version__", version)
    (message,) = _warnings_of(host)
    assert host.encoder_choices.classes == {}
    assert f"espnet {version} is too old" in message
    assert "espnet >= 202609" in message


@pytest.mark.parametrize("version", ["202609", "202611", "202701.dev3", "0.0.0", "unknown"])
def test_an_espnet_new_enough_or_of_unknown_age_is_served(host, monkeypatch, version):
    monkeypatch.setattr("espnet2.__version__", version)
    assert _warnings_of(host) == []
    assert host.encoder_choices.classes == {"conbimamba": Ours}


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("espnet_bimamba.no_such_module:X", "ModuleNotFoundError: No module named"),
        (f"{__name__}:NoSuchClass", "AttributeError: module"),
        (f"{__name__}:Unrelated", "TypeError: .* is not a Base"),
    ],
    ids=["no-module", "no-class", "no-encoder"],
)
def test_a_failure_of_ours_is_one_warning(host, target, cause):
    registry.HOSTS[host.__name__]["encoder_choices"]["conbimamba"] = target
    (message,) = _warnings_of(host)

    assert re.search(cause, message)
    assert "ESPnet's own work as before" in message
    assert host.encoder_choices.classes == {}
    assert _warnings_of(host) == [], "the same cause is told once"


def test_a_registry_that_espnet_dropped_is_one_warning(host):
    del host.encoder_choices
    (message,) = _warnings_of(host)
    assert "AttributeError: module 'espnet2.tasks.made_up' has no attribute" in message


def test_two_copies_on_the_path_are_both_named(host, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(registry, "_warned", set())
    monkeypatch.setitem(
        registry.HOSTS, host.__name__, {"encoder_choices": {"conbimamba": f"{__name__}:Ours"}}
    )
    copy = tmp_path / "espnet_bimamba"
    copy.mkdir()
    (copy / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    (message,) = _warnings_of(host)
    used = Path(espnet_bimamba.__file__).parent
    assert f"{used} is used" in message
    assert str(copy) in message
    assert host.encoder_choices.classes == {"conbimamba": Ours}


def test_one_copy_reached_by_two_entries_is_one(monkeypatch):
    used = str(Path(espnet_bimamba.__file__).parent)
    root = str(Path(used).parent)
    monkeypatch.setattr(sys, "path", [root, f"{root}/tests/..", root])
    assert registry._copies() == [used]
