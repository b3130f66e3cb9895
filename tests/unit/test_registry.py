from __future__ import annotations

from dataclasses import FrozenInstanceError, is_dataclass
from typing import Any

import pytest

from uellm_cli.deployer import PLACEMENTS
from uellm_cli.engines import ENGINES
from uellm_cli.errors import UsageError
from uellm_cli.profiler.lengths import LENGTH_PREDICTORS
from uellm_cli.registry import Registry
from uellm_cli.scheduler import SCHEDULERS

REGISTRIES: list[Registry[Any]] = [SCHEDULERS, LENGTH_PREDICTORS, PLACEMENTS, ENGINES]
VARIANTS = [(registry, name) for registry in REGISTRIES for name in registry.names()]


@pytest.mark.parametrize(("registry", "name"), VARIANTS, ids=[name for _, name in VARIANTS])
def test_every_variant_is_a_frozen_dataclass_that_needs_no_option(
    registry: Registry[Any], name: str
) -> None:
    variant = registry.build(name)
    assert is_dataclass(variant)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        setattr(variant, "anything", 1)  # noqa: B010 - mypy knows better than to let us


@pytest.mark.parametrize(("registry", "name"), VARIANTS, ids=[name for _, name in VARIANTS])
def test_every_variant_names_its_options_when_it_is_given_another(
    registry: Registry[Any], name: str
) -> None:
    with pytest.raises(UsageError, match=f"{name}.*no option 'nonsense'"):
        registry.build(name, {"nonsense": "1"})


@pytest.mark.parametrize("registry", REGISTRIES, ids=[r.kind for r in REGISTRIES])
def test_an_unknown_name_is_answered_with_the_known_ones(registry: Registry[Any]) -> None:
    with pytest.raises(UsageError) as error:
        registry.variant("nonsense")
    assert registry.kind in str(error.value)
    for name in registry.names():
        assert name in str(error.value)


def test_options_given_as_text_take_their_field_s_type() -> None:
    assert SCHEDULERS.build("odbs", {"w2": "4"}) == SCHEDULERS.build("odbs", {"w2": 4.0})
    with pytest.raises(UsageError, match=r"slo-odbs.*threshold"):
        SCHEDULERS.build("slo-odbs", {"threshold": "wide"})
