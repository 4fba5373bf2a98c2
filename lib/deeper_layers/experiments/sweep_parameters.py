"""The parameters of the command's sweep: those of notebook 02, any rule, a cut of any shape, and an engine."""

from typing import ClassVar

from pydantic import Field

from deeper_layers.cuts import Cut
from deeper_layers.errors import InputError
from deeper_layers.evaluation.engines import ENGINES, check_installed
from deeper_layers.experiments.common_parameters import check_one_of
from deeper_layers.experiments.parameter_texts import layer_list
from deeper_layers.experiments.parameters import QuestionAnsweringParameters
from deeper_layers.rules.choosing import DROPPING

GIVEN = "given"  # what the rule of a cut is called that was typed layer by layer


class SweepParameters(QuestionAnsweringParameters):
    """Parameters of `deeper-layers sweep` and `plan`."""

    notebook: ClassVar[str] = ""
    choosable: ClassVar[tuple[str, ...]] = DROPPING
    rules: str = Field("similarity, simple", description=f"who chooses what is dropped: {', '.join(DROPPING)}")
    layers: str | None = Field(None, description='layers to drop, like "3, 7-9", instead of rules and sizes')
    attention: str | None = Field(None, description="layers that lose their attention, in the same way")
    mlp: str | None = Field(None, description="layers that lose their MLP, in the same way")
    engine: str | None = Field(None, description=f"what writes answers: none (ours), or {', '.join(ENGINES)}")

    def check(self) -> None:
        super().check()
        fields = type(self).model_fields
        chosen = [name for name in ("rules", "sizes") if getattr(self, name) != fields[name].default]
        if self.given_cut is not None and chosen:
            raise InputError(
                f"{chosen[0]} is {getattr(self, chosen[0])!r} beside a cut that is given layer by layer: leave one of "
                "them out"
            )
        check_one_of("engine", self.engine, (None, *ENGINES))
        if self.engine and self.measure:
            check_installed(self.engine)

    @property
    def given_cut(self) -> Cut | None:
        """The cut that was given layer by layer; None where rules choose."""
        return cut_of_lists(self.layers, self.attention, self.mlp)


def cut_of_lists(layers: str | None, attention: str | None, mlp: str | None) -> Cut | None:
    """The cut of lists like "3, 7-9"; None where there is none. Raises InputError for what is no such list."""
    lists = {"layers": layers, "attention": attention, "mlp": mlp}
    found = {name: layer_list(name, text) for name, text in lists.items() if text is not None}
    return Cut.of(**found) if found else None


def check_given(cut: Cut, layers: int) -> None:
    """Raise InputError for a cut that does not fit a model of so many layers, in the words of the lists."""
    for name, indices in (("layers", cut.dropped), ("attention", cut.attention), ("mlp", cut.mlp)):
        if indices and indices[-1] >= layers:
            raise InputError(
                f"{name} is a list up to {indices[-1]}; expected layers 0 to {layers - 1}: the model has {layers}"
            )
    cut.check(layers)
