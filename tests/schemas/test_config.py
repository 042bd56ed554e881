"""The configuration itself: frozen, closed to unknown keys, the same after JSON."""

import json

import pytest
from pydantic import BaseModel, ValidationError

from schemas.config import RunConfig, Section
from schemas.config_text import parse_config

SECTIONS = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_sections_are_frozen(section: str) -> None:
    values = getattr(RunConfig(), section)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(values, next(iter(type(values).model_fields)), None)


def test_the_whole_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("section", sorted(SECTIONS))
def test_sections_are_closed_to_unknown_keys(section: str) -> None:
    with pytest.raises(ValidationError, match="nonsense"):
        RunConfig.model_validate({section: {"nonsense": 1}})


def test_a_configuration_survives_json() -> None:
    config = parse_config("seed = 3\n[problems]\nlevels = [1]\nid_field = 'uid'")
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_every_section_is_a_section() -> None:
    models = [f.annotation for f in RunConfig.model_fields.values()]
    nested = [m for m in models if isinstance(m, type) and issubclass(m, BaseModel)]
    assert len(nested) == len(SECTIONS) == 12
