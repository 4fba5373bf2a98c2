"""The report of `deeper-layers check`: one JSON file, which is no result. Whoever reads one checks that it agrees with
itself."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from deeper_layers.errors import InputError, first_line
from deeper_layers.files import read_json
from deeper_layers.schema import Count, ModelKey, Name, Number, StrictModel, describe_error
from deeper_layers_companion.results.schema import Provenance

VERSION = 1
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Trial(StrictModel):
    """One test on one device in one data type. `difference` is the largest from the plain loop; null where there is
    none: it was `untried`, or `failed`, for a reason in words."""

    trial: Name
    device: Name
    dtype: Name
    unit: Name
    difference: NotNegative | None = None
    stated: NotNegative
    seconds: Number | None = None
    pace: Count | None = None  # tokens a second
    memory_bytes: Count | None = None
    untried: str = ""
    failed: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether the numbers differ by no more than stated; None where it was not tried."""
        if self.untried:
            return None
        return not self.failed and self.difference is not None and self.difference <= self.stated


class CheckReport(StrictModel):
    """What `deeper-layers check` found on one machine."""

    check: Annotated[int, Field(ge=1, le=VERSION)]
    model: ModelKey
    layers: Annotated[int, Field(ge=1, le=100_000)]
    provenance: Provenance
    trials: Annotated[list[Trial], Field(min_length=1)]
    fit: Name

    @property
    def agrees(self) -> bool:
        """Whether all that was tried agrees."""
        return all(trial.agrees is not False for trial in self.trials)


def describe_fit(trials: list[Trial]) -> str:
    """One line: in which data types everything agrees on a device, and what else does not."""
    words = []
    for device, dtype in dict.fromkeys((trial.device, trial.dtype) for trial in trials):
        here = [trial for trial in trials if (trial.device, trial.dtype) == (device, dtype)]
        wrong = [trial.trial for trial in here if trial.agrees is False]
        untried = [trial.trial for trial in here if trial.agrees is None]
        right = len(here) - len(wrong) - len(untried)
        kept = "nothing"
        if right == len(here):
            kept = "everything"
        elif right:
            kept = f"all but {', '.join(wrong + untried)}"
        words.append(f"{kept} on {device} in {dtype}")
    return f"fit for {'; '.join(words)}"


def read_check_report(path: Path) -> CheckReport:
    """The report in a file. Raises InputError where it is none, or says in its last line what its trials do not say."""
    problem = f"{path} is no report of `deeper-layers check`"
    try:
        report = CheckReport.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{problem} ({describe_error(error)}): ask for it again") from error
    except ValueError as error:
        raise InputError(f"{problem} ({first_line(error)}): ask for it again") from error
    found = describe_fit(report.trials)
    if report.fit != found:
        raise InputError(
            f"{path} says {report.fit!r}, and its trials say {found!r}: ask for it again"
        )
    return report
