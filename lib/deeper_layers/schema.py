"""Types of the fields that files on disk hold, strictly checked by pydantic: results, adapters, lineage."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from deeper_layers.presets import HealingConfig

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
# the name of a cut, as `Cut.name` writes it
LAYER_LIST = r"(layers|attention|mlp)( \d{1,5})+"
CutName = Annotated[str, Field(pattern=rf"^(\d{{1,5}},\d{{1,5}}|{LAYER_LIST}(; {LAYER_LIST})*)$")]
# of a healing
Settings = Annotated[dict, AfterValidator(lambda settings: HealingConfig(**settings) and settings)]


class StrictModel(BaseModel):
    """Values are not converted, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ModelKey(StrictModel):
    name: Name
    weights: str  # the hash of the weights, or their commit on a hub


def describe_error(error: ValidationError) -> str:
    """The first error of a schema in words: where, what, and the value found."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}, found {str(first['input'])[:60]!r}"
