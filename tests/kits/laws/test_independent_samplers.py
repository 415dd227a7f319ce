"""Samplers written from their papers pass the kit at many settings, and Mirostat whose state is kept wrongly
fails at every target."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings

from cm3core.interfaces import Sampler
from cm3kits._findings import LawBroken
from cm3kits.sampler import SamplerContract
from plain_samplers import (
    WRONG_STATES,
    EtaConfig,
    MinPConfig,
    Mirostat1Config,
    Mirostat2Config,
    PlainConfig,
    TopKConfig,
    TypicalConfig,
    XTCConfig,
)

TAUS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
RIGHT = [
    PlainConfig(),
    PlainConfig(guidance=1.0),
    *[TopKConfig(k=k) for k in (1, 3, 50)],
    *[MinPConfig(share=share) for share in (0.02, 0.5)],
    *[TypicalConfig(mass=mass) for mass in (0.2, 0.95)],
    *[EtaConfig(epsilon=epsilon) for epsilon in (0.0005, 0.2)],
    XTCConfig(threshold=0.02),
    XTCConfig(threshold=0.3, probability=1.0),
    *[Mirostat1Config(tau=tau) for tau in TAUS],
    *[Mirostat2Config(tau=tau) for tau in TAUS],
    Mirostat2Config(tau=5.0, eta=1.0),
    Mirostat2Config(tau=0.2, eta=0.02),
]
#: Laws of all kinds of configs, which one setting of each class is enough for.
_OF_CONFIGS = ("another_process_agrees", "every_key_counts", "the_fingerprint_covers_every_key")


@pytest.fixture
def few_examples() -> Any:
    """As many examples as `cm3 plugin check`, without shrinking, the same every time."""
    settings.register_profile(
        "independent",
        deadline=None,
        max_examples=25,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    before = settings.default
    settings.load_profile("independent")
    yield
    settings.register_profile("before independent", before)
    settings.load_profile("before independent")


@pytest.mark.slow
@pytest.mark.parametrize("config", RIGHT, ids=str)
def test_a_right_one_passes(config: PlainConfig) -> None:
    contract = SamplerContract.for_config(config, max_examples=4)()
    seen = {type(one) for one in RIGHT[: RIGHT.index(config)]}
    for law in contract.laws():
        if law not in _OF_CONFIGS or type(config) not in seen:
            getattr(contract, f"test_{law}")()


@pytest.mark.slow
@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_wrong_state_fails_at_every_target(
    wrong: type[Any], tau: float, few_examples: None
) -> None:
    def make(self: object) -> Sampler:
        sampler: Sampler = wrong(Mirostat2Config(tau=tau))
        return sampler

    contract = type("TestWrong", (SamplerContract,), {"make": make})()
    with pytest.raises(LawBroken):
        run_laws(contract)


def run_laws(contract: Any) -> None:
    """Those of states."""
    for law in (
        "a_request_starts_afresh",
        "a_state_does_not_depend_on_its_place",
        "a_forked_request_continues_alike",
    ):
        getattr(contract, f"test_{law}")()
