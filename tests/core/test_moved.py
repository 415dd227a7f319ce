"""Public modules under their earlier names, and packages that export lazily."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

#: Every public name that moved, as plugins written before import it.
EARLIER = {
    "cm3core.aio": ["AsyncEngine", "AsyncModel"],
    "cm3core.infill": ["TOKENS_PER_SPAN", "loss_weights", "move_spans", "unmask"],
    "cm3core.kinds": ["KINDS", "Kind"],
    "cm3core.likelihood": ["Likelihood", "LogProbability"],
    "cm3core.results": [
        "Choice",
        "GeneratedImage",
        "GeneratedText",
        "ImageReady",
        "InfilledImage",
        "RetrievedDocument",
        "Scored",
    ],
    "cm3core.sampling": ["plan_columns"],
    "cm3core.train": ["TrainingInterrupted", "train"],
    "cm3core.bank": ["MemoryBank", "Manifest"],
    "cm3core.bank.shard": ["BankDocument"],
    "cm3core.checkpoint": ["export_model"],
    "cm3core.generation": ["Likelihood", "Policy"],
    "cm3core.model": ["Model", "load", "GeneratedImage"],
    "cm3core.testing": ["Contract"],
    "cm3core.testing.sampler": ["SamplerContract"],
    "cm3core.testing.strategies": ["texts", "documents"],
    "cm3core.testing.vocabularies": ["make_vocabulary"],
    "cm3kits.vocabularies": ["make_vocabulary"],
    "cm3core.training": ["TrainingInterrupted", "train"],
    "cm3core.interfaces.model_parts": ["ModelParts"],
    "cm3core.interfaces.stateful_sampler": ["StatefulSampler"],
    "cm3core.sequence.fill": ["fill"],
    "cm3core.devices": ["choose_device"],
    "cm3core.npy": ["load_array"],
    "cm3core.recipe.memory": ["training_memory"],
    "cm3core.sequence.packing": ["Packer"],
    "cm3core.trust": ["guard"],
    "cm3core.trust.guard": ["guard"],
    "cm3core.interfaces.benchmark": ["DecodeProvider", "TorchProvider"],
    "cm3plugins.benchmarks.registry": [
        "BenchmarkRegistry",
        "Case",
        "Op",
        "Provider",
        "Verdict",
        "Where",
    ],
}


@pytest.mark.parametrize("module", EARLIER)
def test_earlier_names_are_the_same_objects_and_warn(module: str) -> None:
    sys.modules.pop(module, None)
    with pytest.warns(
        FutureWarning, match=rf"^{module} is now (cm3\w+[\w.]*); import its names from there$"
    ) as told:
        earlier = importlib.import_module(module)
    target = importlib.import_module(str(told[-1].message).split(" is now ")[1].split(";")[0])
    for name in EARLIER[module]:
        assert getattr(earlier, name) is getattr(target, name)


def test_the_warning_names_the_line_that_imports() -> None:
    script = "import warnings\nwarnings.simplefilter('error')\nfrom cm3core.sampling import plan_columns\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cm3core.sampling is now cm3run.generation; import its names from there" in done.stderr


def test_a_name_that_never_was_is_no_module() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"cm3core\.smapling"):
        importlib.import_module("cm3core.smapling")


@pytest.mark.parametrize(
    "package",
    [
        "cm3run.generation",
        "cm3run.model",
        "cm3core.plugins",
        "cm3core.recipe",
        "cm3core.sequence",
        "cm3run.training",
    ],
)
def test_packages_export_what_they_list(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(
        AttributeError, match=rf"module '{package}' has no attribute 'no_such_name'"
    ):
        module.no_such_name  # noqa: B018  # the access is what is tested
