"""The recipe: the full description of one merged model, in mergekit's fields and with mergekit's meaning.

Whether its merge method exists, and which parameters that takes, is for `evomerge.merging` to say.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)

from evomerge.recipes.references import as_text, check_reference, overrides

DType: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]


class _Part(BaseModel):
    """A part of a recipe: immutable, and without fields that we do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


ModelName: TypeAlias = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1),
    AfterValidator(check_reference),
    BeforeValidator(as_text),
]
SWITCHES = {
    **dict.fromkeys(("yes", "on", "true", "y", "t"), True),
    **dict.fromkeys(("no", "off", "false", "n", "f"), False),
}


def _scalar(value: bool | int | float | str) -> bool | int | float | str:
    """Read a quoted number as a number and ``yes`` as a switch, as mergekit does; refuse what is no finite number."""
    if isinstance(value, str):
        if value.lower() in SWITCHES:
            return SWITCHES[value.lower()]
        try:
            value = float(value)
        except ValueError:
            return value
    if not math.isfinite(value):
        raise ValueError("a parameter must be a finite number")
    return value


Scalar: TypeAlias = Annotated[bool | int | float | str, AfterValidator(_scalar)]
Gradient: TypeAlias = tuple[Scalar, ...]


def _shape(value: Any) -> str | None:
    """Tell which of the three ways of writing a parameter ``value`` is."""
    if isinstance(value, (bool, int, float, str)):
        return "scalar"
    if isinstance(value, Sequence) and value:
        if all(isinstance(item, (bool, int, float, str)) for item in value):
            return "gradient"
        if all(isinstance(item, (Mapping, FilteredValue)) for item in value):
            return "filtered"
    return None


def _shape_of_value(value: Any) -> str | None:
    shape = _shape(value)
    return None if shape == "filtered" else shape


class FilteredValue(_Part):
    """A value for the tensors whose name contains ``filter``; without a filter, for all that remain."""

    filter: str | None = None
    value: Annotated[
        Annotated[Scalar, Tag("scalar")] | Annotated[Gradient, Tag("gradient")],
        Discriminator(
            _shape_of_value,
            custom_error_type="value",
            custom_error_message="a value is a number or a list of numbers (a gradient over the layers)",
        ),
    ]

    @field_validator("filter")
    @classmethod
    def _all_tensors(cls, text: str | None) -> str | None:
        return None if text in ("*", "") else text


ParameterSetting: TypeAlias = Annotated[
    Annotated[Scalar, Tag("scalar")]
    | Annotated[Gradient, Tag("gradient")]
    | Annotated[tuple[FilteredValue, ...], Tag("filtered")],
    Discriminator(
        _shape,
        custom_error_type="parameter",
        custom_error_message=(
            "a parameter is a number, a list of numbers (a gradient over the layers) or a list of {filter, value}"
        ),
    ),
    BeforeValidator(lambda value: (value,) if isinstance(value, Mapping) else value),
]
Parameters: TypeAlias = Annotated[
    dict[str, ParameterSetting], BeforeValidator(lambda value: {} if value is None else value)
]


class ModelInput(_Part):
    """One model that takes part with all its layers."""

    model: ModelName
    parameters: Parameters = {}


class SliceInput(_Part):
    """The layers [start, end) of one model, as a source of an output slice."""

    model: ModelName
    layer_range: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    parameters: Parameters = {}

    @field_validator("layer_range")
    @classmethod
    def _rising(cls, layers: tuple[int, int]) -> tuple[int, int]:
        if layers[0] >= layers[1]:
            raise ValueError(f"layer_range {list(layers)} holds no layer; the end is not included")
        return layers


class OutputSlice(_Part):
    """A run of output layers, merged from equally long runs of layers of its sources."""

    sources: Annotated[tuple[SliceInput, ...], Field(min_length=1)]
    base_model: ModelName | None = None
    residual_weight: FiniteFloat | None = None
    input_scale: FiniteFloat | None = None
    parameters: Parameters = {}

    @field_validator("input_scale")
    @classmethod
    def _not_zero(cls, scale: float | None) -> float | None:
        if scale == 0:
            raise ValueError("an input_scale of 0 would erase what the layers before have computed; use another number")
        return None if scale == 1 else scale

    @model_validator(mode="after")
    def _equal_lengths(self) -> OutputSlice:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in self.sources}
        if len(lengths) > 1:
            raise ValueError(f"sources of one slice must have equally many layers, not {sorted(lengths)}")
        _refuse_repeats([source.model for source in self.sources], "slice")
        return self

    @property
    def num_layers(self) -> int:
        """Number of output layers."""
        start, end = self.sources[0].layer_range
        return end - start


class Module(_Part):
    """One of the parts that a model is built of (a text decoder, a vision tower, an encoder): its own models or slices.

    ``parameters`` stand between a slice's and the recipe's.
    """

    models: tuple[ModelInput, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _consistent(self) -> Module:
        if bool(self.models) == bool(self.slices):
            raise ValueError("a module has either models or slices, at least one of them")
        _refuse_repeats([entry.model for entry in self.models or ()], "module")
        if any(each.input_scale is not None for each in self.slices or ()):
            raise ValueError("slices of a module have no input_scale; paths are for models without modules")
        return self


class TokenFromModel(_Part):
    """A token's embedding taken from a token of one model."""

    kind: Literal["model_token"]
    model: ModelName
    token_id: int | None = None
    token: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> TokenFromModel:
        if (self.token_id is None) == (self.token is None):
            raise ValueError("give either token_id or token")
        return self


class ZeroToken(_Part):
    """A token whose embedding is zero."""

    kind: Literal["zero"]


class TokenEmbedding(_Part):
    """Where the embedding of one token comes from."""

    source: TokenFromModel | ZeroToken | ModelName | None = None
    force: bool = False


class TokenizerSettings(_Part):
    """The vocabulary of the merged model, and exceptions for single tokens."""

    source: ModelName = "union"
    tokens: dict[str, TokenEmbedding] | None = None
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


class Alignment(_Part):
    """Neurons of every model brought into the order of one of them before the merge."""

    method: Annotated[str, StringConstraints(min_length=1)]
    to: ModelName | None = None
    parameters: dict[str, Scalar] = {}


class ActivationRelaxation(_Part):
    """Merged weights drawn back towards the base where its activations are large (AIM)."""

    omega: Annotated[float, Field(ge=0.0, le=1.0)] = 0.4


class Outside(_Part):
    """What stands outside the layers (embeddings, final norm, head), merged from whole models."""

    merge_method: Annotated[str, StringConstraints(min_length=1)]
    base_model: ModelName | None = None
    models: Annotated[tuple[ModelInput, ...], Field(min_length=1)]
    parameters: Parameters = {}


def _kind_of_outside(value: Any) -> str:
    """Tell a merge from a model, which may be spelled out as a mapping too."""
    merge = isinstance(value, Outside) or (isinstance(value, Mapping) and {"merge_method", "models"} & value.keys())
    return "merge" if merge else "model"


WHOLE = "default"  # mergekit's name of the only module of a model that has no modules


def _dtype_name(value: Any) -> Any:
    return value.removeprefix("torch.") if isinstance(value, str) else value


class Recipe(_Part):
    """One merged model: its method, its parents, and the numbers that say how they are combined.

    Ours, and unknown to mergekit, are ``seed`` (of methods that drop weights at random), ``align`` (of models that do
    not come from one base), ``statistics`` (a folder that `evomerge statistics` made, for methods that need data),
    ``aim``, and of layer routing ``outside`` (the model, or the merge, that gives what stands outside the layers) and
    the slices' ``input_scale`` (what the hidden states are multiplied by on entering each of their layers).
    """

    merge_method: Annotated[str, StringConstraints(min_length=1)]
    base_model: ModelName | None = None
    models: tuple[ModelInput, ...] | None = None
    slices: tuple[OutputSlice, ...] | None = None
    modules: dict[str, Module] | None = None
    parameters: Parameters = {}
    dtype: Annotated[DType, BeforeValidator(_dtype_name)] | None = None
    out_dtype: Annotated[DType, BeforeValidator(_dtype_name)] | None = None
    tokenizer_source: ModelName | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
    override_architecture: dict[ModelName, str] = {}
    seed: Annotated[int, Field(ge=0)] | None = None
    align: Alignment | None = None
    statistics: str | None = None
    aim: ActivationRelaxation | None = None
    outside: (
        Annotated[
            Annotated[Outside, Tag("merge")] | Annotated[ModelName, Tag("model")], Discriminator(_kind_of_outside)
        ]
        | None
    ) = None

    @model_validator(mode="before")
    @classmethod
    def _architectures(cls, data: Any) -> Any:
        """Gather the architectures that models spelled out as mappings are given."""
        if isinstance(data, Mapping) and (found := overrides(data)):
            return {**data, "override_architecture": {**(data.get("override_architecture") or {}), **found}}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (bool(self.models), bool(self.slices), bool(self.modules)).count(True) != 1:
            raise ValueError("a recipe has either models or slices (or modules), at least one of them")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either tokenizer or tokenizer_source")
        _refuse_repeats([entry.model for entry in self.models or ()], "recipe")
        if self.outside is not None and not self.slices:
            raise ValueError("outside is for recipes with slices; models merge what is outside the layers as well")
        for index, each in enumerate(self.slices or ()):
            if each.input_scale is not None and (self.merge_method != "passthrough" or len(each.sources) > 1):
                raise ValueError(f"slices[{index}]: only passthrough slices of one model have an input_scale")
            if each.input_scale is not None and (self.parameters or each.parameters or each.sources[0].parameters):
                raise ValueError(f"slices[{index}]: an input_scale is for layers as they are; leave out parameters")
        if set(self.modules or ()) == {WHOLE}:
            # A model of one module: the same recipe as without `modules`, and the same hash.
            self.__dict__.update(as_plain(self, WHOLE).__dict__)
        return self

    def parts(self) -> Iterator[tuple[str, Recipe | Module]]:
        """Yield (beginning of its key paths, what has models or slices): the recipe itself, or each of its modules."""
        if self.modules:
            yield from ((f"modules.{name}.", module) for name, module in self.modules.items())
        else:
            yield "", self

    def parents(self) -> tuple[str, ...]:
        """Return every model reference, in order of first appearance, base models that are no input last.

        Models of ``outside`` come first: configuration and tokenizer belong to embeddings and head.
        """
        parts = [part for _, part in self.parts()]
        slices = [each for part in parts for each in part.slices or ()]
        outer = self.outer
        inputs = list(outer.parents()) if outer is not None else []
        inputs += [entry.model for part in parts for entry in part.models or ()]
        inputs += [source.model for each in slices for source in each.sources]
        bases = [each.base_model for each in slices] + [self.base_model]
        return tuple(dict.fromkeys(inputs + [base for base in bases if base is not None]))

    @property
    def outer(self) -> Recipe | None:
        """The recipe of what stands outside the layers, where ``outside`` gives one."""
        if self.outside is None:
            return None
        if isinstance(self.outside, str):
            fields: dict[str, Any] = {"merge_method": "passthrough", "models": (ModelInput(model=self.outside),)}
        else:
            fields = {name: getattr(self.outside, name) for name in Outside.model_fields}
        update = {"outside": None, "slices": None, "base_model": None, "parameters": {}, **fields}
        return self.model_copy(update=update)

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of what the recipe says, whatever its key order and written-out defaults."""
        content = json.dumps(_canonical(self.model_dump(exclude_defaults=True)), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def __copy__(self) -> Recipe:
        """Return a copy for `model_copy` to update: its hash may then be another."""
        copied = super().__copy__()
        copied.__dict__.pop("hash", None)
        return copied

    def __hash__(self) -> int:
        return int(self.hash, 16)


def as_plain(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of one of the modules: its models or slices, its parameters before the recipe's."""
    module = (recipe.modules or {})[name]
    parameters = dict(recipe.parameters)
    for parameter, setting in module.parameters.items():
        parameters[parameter] = _before(setting, recipe.parameters.get(parameter))
    fields = {"models": module.models, "slices": module.slices, "modules": None, "parameters": parameters}
    return recipe.model_copy(update=fields)


def _before(first: ParameterSetting, then: ParameterSetting | None) -> ParameterSetting:
    """Return the setting that says what ``first`` says, and ``then`` for tensors of which that says nothing."""
    filtered = _filtered(first)
    return (
        first
        if then is None or filtered is None
        else (*filtered, *(_filtered(then) or (FilteredValue.model_construct(value=then),)))
    )


def _filtered(setting: Any) -> tuple[FilteredValue, ...] | None:
    """Return the setting if it is a list of filtered values, else None."""
    return setting if isinstance(setting, tuple) and isinstance(setting[0], FilteredValue) else None


def _refuse_repeats(models: Sequence[str], place: str) -> None:
    repeated = sorted({model for model in models if models.count(model) > 1})
    if repeated:
        raise ValueError(f"{', '.join(map(repr, repeated))} is listed twice in one {place}")


def _canonical(value: Any) -> Any:
    """Give equal numbers (``1``, ``1.0``, ``True``) one form."""
    if isinstance(value, float):  # first, as most values are
        return int(value) if value.is_integer() else value
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _canonical(inner) for key, inner in value.items()}
    return int(value) if isinstance(value, bool) else value
