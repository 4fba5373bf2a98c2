"""The list of the paper's claims, and of its figures, with the verdict of what was measured on each."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from deeper_layers.report import paper
from deeper_layers.report.claims import decisions, half_gone, healing_decisions
from deeper_layers.report.claims.deciding import of_paper
from deeper_layers.report.claims.verdicts import AGREES, DIFFERS, NOTHING, OPEN, UNMEASURED, Ruling, corrected, together
from deeper_layers.report.names import as_html
from deeper_layers.report.statistics.evidence import Evidence, by_model
from deeper_layers.report.statistics.topics import TOPICS
from deeper_layers.results.units import Unit

Rulings = Mapping[str, Mapping[str, list[Ruling]]]  # by claim, then by model
# never by colour alone
MARKS = {
    AGREES: ("agrees", "✓"), DIFFERS: ("differs", "✗"), OPEN: ("open", "?"), NOTHING: ("open", "○"),
    UNMEASURED: ("open", "–"),
}  # fmt: skip
COUNTED = {AGREES: "agree", DIFFERS: "differ", OPEN: OPEN, NOTHING: NOTHING, UNMEASURED: UNMEASURED}


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, in our words, its figures, and how it is decided for one model."""

    identifier: str
    title: str
    paper: str
    figures: tuple[str, ...]
    decide: Callable[[Evidence], list[Ruling]]


CLIFFS = ", ".join(
    f"{family} {low:.0%}" + (f" to {high:.0%}" if high > low else "") for family, (low, high) in paper.CLIFFS.items()
)

CLAIMS = [
    Claim(
        "plateau", "Accuracy stays, then falls at once",
        f"MMLU stays flat until {CLIFFS} of the layers are gone, then falls to chance.",
        ("1d", "2"), decisions.plateau,
    ),
    Claim(
        "plateau-healed", "So it does after healing", "The healed curves have the same flat part and the same fall.",
        ("1d", "2", "6"), healing_decisions.plateau_healed,
    ),
    Claim(
        "boolq", "BoolQ alike", "BoolQ stays flat and falls at about the same place.",
        ("1d", "6"), decisions.plateau_boolq,
    ),
    Claim(
        "boolq-healing", "Healing matters more for BoolQ", "Healing gives back more on BoolQ than on MMLU.",
        ("6",), healing_decisions.healing_matters,
    ),
    Claim(
        "healed-loss", "Healed loss grows slowly and straight",
        "After healing, the loss on C4 grows slowly and about linearly, straight through the cliff.",
        ("1d", "3"), healing_decisions.healed_loss,
    ),
    Claim(
        "unhealed-loss", "Unhealed loss jumps near the cliff", "Without healing, the loss jumps near the cliff.",
        ("1d", "3"), healing_decisions.unhealed_loss,
    ),
    Claim(
        "simple-unhealed", "The simple heuristic alone collapses",
        "Without healing, dropping the layers before the last one costs everything at once.",
        ("5",), decisions.simple_collapses,
    ),
    Claim(
        "simple-healed", "The simple heuristic, healed, nearly matches",
        "After healing, the simple heuristic does nearly as well as similarity-informed pruning.",
        ("5",), healing_decisions.simple_healed,
    ),
    Claim(
        "deep-blocks", "Deep blocks are the most alike",
        "The deepest blocks without the last layer are the most similar.", ("1c", "4"), decisions.deep_blocks,
    ),
    Claim(
        "last-layer", "The last layer is unlike the others",
        "Blocks with the last layer are near-maximally dissimilar.", ("1c", "4"), decisions.last_layer,
    ),
    Claim(
        "shot-order", "The order of examples does not matter", "Another order of the examples: no effect on MMLU.",
        ("7",), decisions.shot_order,
    ),
    Claim(
        "more-shots", "More examples help a little", "More examples in the prompt: MMLU marginally better.",
        ("7",), decisions.more_shots,
    ),
    Claim(
        "seeds", "The seed of healing does not matter", "Another seed of healing: no effect on MMLU.",
        ("8",), healing_decisions.seeds,
    ),
    Claim(
        "ranks", "Lower ranks: better MMLU, worse loss",
        "A lower rank of the adapters gives better MMLU and worse loss on C4.", ("9",), healing_decisions.ranks,
    ),
    Claim(
        "reasoning", "Reasoning falls early", "GSM8K has no plateau: it falls early.",
        ("GSM8K (ICLR appendix)",), decisions.reasoning,
    ),
]  # fmt: skip

# the paper's figures and the page that shows ours
FIGURES = {
    "1c": "01-similarity", "1d": "03-healing", "2": "07-models", "3": "07-models", "4": "01-similarity",
    "5": "03-healing", "6": "07-models", "7": "11-shots", "8": "05-ablations", "9": "05-ablations",
    "GSM8K (ICLR appendix)": "04-reasoning",
}  # fmt: skip


def ruled(units: Iterable[Unit]) -> Rulings:
    """For each claim the rulings on each model, first the one of which most can be said.

    Without any unit, each claim is not measured on "no model".
    """
    models = by_model(units) or {"no model": Evidence([])}
    found = {name: {claim.identifier: claim.decide(evidence) for claim in CLAIMS} for name, evidence in models.items()}

    def decided(name):
        return sum(verdict_of(rulings) in (AGREES, DIFFERS) for rulings in found[name].values())

    order = sorted(found, key=decided, reverse=True)
    return {claim.identifier: _corrected({name: found[name][claim.identifier] for name in order}) for claim in CLAIMS}


def _corrected(of_claim: dict[str, list[Ruling]]) -> dict[str, list[Ruling]]:
    """The rulings of a claim after Holm's correction for all its tasks and models."""
    every = iter(corrected(ruling for rulings in of_claim.values() for ruling in rulings))
    return {name: [next(every) for _ in rulings] for name, rulings in of_claim.items()}


def verdict_of(rulings: list[Ruling]) -> str:
    """The verdict on a claim: by what the paper measured, whatever other tasks say."""
    return together(ruling for ruling in rulings if ruling.of_paper)


def healed_on(rulings: list[Ruling]) -> int:
    """Tokens on which the healed models were trained that decide a claim; 0 where no such models do."""
    decided = verdict_of(rulings) in (AGREES, DIFFERS)
    return max((ruling.tokens for ruling in rulings if ruling.of_paper), default=0) if decided else 0


# ---- for readers ---------------------------------------------------------------------------------------------


def summary_table(rulings: Rulings) -> str:
    """HTML: each claim with its verdict on each model, and below it that of tasks which the paper did not ask."""
    rows = []
    for claim in CLAIMS:
        cells = [f'<th scope="row"><a href="#claim-{claim.identifier}">{as_html(claim.title)}</a></th>']
        for found in rulings[claim.identifier].values():
            others = [ruling for ruling in found if not ruling.of_paper]
            beside = f"<br>other tasks: {_counted(others)}" if others else ""
            healed = f"<br>healed on {of_paper(tokens)}" if (tokens := healed_on(found)) else ""
            cells.append(f"<td>{_badge(verdict_of(found))}{healed}{beside}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _table("The paper's claims", ["Claim", *_models(rulings)], rows)


def details(rulings: Rulings) -> str:
    """HTML: each claim in the paper's sense, and for each model the numbers that decide, with their intervals."""
    parts = []
    for claim in CLAIMS:
        figures = as_html(" and ".join(claim.figures))
        parts.append(f'<h3 id="claim-{claim.identifier}">{as_html(claim.title)}</h3>')
        parts.append(f"<p>The paper ({figures}): {as_html(claim.paper)}</p>")
        for model, found in rulings[claim.identifier].items():
            items = "".join(map(_ruling, found))
            summary = f"<summary><strong>{as_html(model)}</strong>: {_badge(verdict_of(found))}</summary>"
            parts.append(f"<details>{summary}<ul>{items}</ul></details>")
    return f'<div class="claims">{"".join(parts)}</div>'


def figure_table(rulings: Rulings) -> str:
    """HTML: each figure of the paper, the page that shows ours, and the verdicts on what the paper reads from it."""
    rows = []
    for figure, page in FIGURES.items():
        claims = [claim for claim in CLAIMS if figure in claim.figures]
        for number, claim in enumerate(claims):
            span = f' rowspan="{len(claims)}"'
            cells = [] if number else [f'<th scope="row"{span}>{as_html(figure)}</th>']
            cells += [f"<td>{as_html(claim.paper)}</td>"]
            cells += [f"<td>{_badge(verdict_of(found))}{'*' * bool(healed_on(found))}</td>"
                      for found in rulings[claim.identifier].values()]  # fmt: skip
            cells += [] if number else [f'<td{span}><a href="{page}.html">{page}</a></td>']
            rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["Figure", "What the paper reads from it", *_models(rulings), "Page"]
    lead = f"*: of models healed on {_little(rulings)}." if _little(rulings) else ""
    return _table("The paper's figures", heads, rows, lead)


def result(rulings: Rulings) -> str:
    """HTML: where half of each model's accuracy above guessing is gone, and how many claims hold of it."""
    models = _models(rulings)
    cliffs: dict[tuple[str, str], list[str]] = {}
    for half in half_gone.halves(rulings):
        cliffs.setdefault((half.topic, half.model), []).append(half.shown)
    rows = [
        _row(topic, ["; ".join(cliffs.get((topic, model)) or [_no_half(rulings, topic, model)]) for model in models])
        for topic in TOPICS
    ]
    found = [[verdict_of(rulings[claim.identifier][model]) for claim in CLAIMS] for model in models]
    counts = [", ".join(_count(verdicts, verdict) for verdict in COUNTED) for verdicts in found]
    for place, model in enumerate(models):
        little = [healed_on(of_claim) for of_claim in (rulings[claim.identifier][model] for claim in CLAIMS)]
        if any(little):
            counts[place] += (
                f"; {sum(map(bool, little))} of these verdicts are of models healed on {of_paper(max(little))}"
            )
    rows.append(_row(f"the paper's {len(CLAIMS)} claims", counts))
    lead = (
        "The share of its layers at which a model has first lost half of its accuracy above guessing, in the answer "
        "format of each task (95% intervals), without healing; where its accuracy rises again, where half is gone for "
        f"good, too. The paper's models keep theirs until {CLIFFS}. –: not measured, or, of a task that the paper did "
        "not ask, the whole model is not surely better than guessing."
    )
    return _table("Where half is gone", ["Half is gone at", *models], rows, lead, "result")


def _no_half(rulings: Rulings, topic: str, model: str) -> str:
    """Why it is not told where half is gone: the whole model may have nothing to lose, or too few items say whether."""
    of_topic = (found for claim in half_gone.CLAIMS for found in rulings[claim][model] if found.topic == topic)
    verdict = next((found.verdict for found in of_topic if found.obstacle), UNMEASURED)
    return "–" if verdict == UNMEASURED else f"{MARKS[verdict][1]} {verdict}"


def _little(rulings: Rulings) -> str:
    """On how much text the healed models were trained of which verdicts are, in words; "" where there are none."""
    tokens = sorted({healed_on(found) for of_claim in rulings.values() for found in of_claim.values()} - {0})
    if not tokens:
        return ""
    least, most = of_paper(tokens[0]), of_paper(tokens[-1])
    return most if least == most else f"{least.partition(' ')[0]} to {most}"


def _models(rulings: Rulings) -> list[str]:
    return list(next(iter(rulings.values())))


def _ruling(ruling: Ruling) -> str:
    beside = "" if ruling.of_paper else " (not asked in the paper)"
    numbers = "".join(f"<li>{as_html(str(finding))}</li>" for finding in ruling.findings)
    reason = as_html(f"{ruling.verdict}; {ruling.reason}.")
    return f"<li>{as_html(ruling.about)}{beside}: {reason}{f'<ul>{numbers}</ul>' if numbers else ''}</li>"


def _counted(rulings: list[Ruling]) -> str:
    found = [ruling.verdict for ruling in rulings]
    return ", ".join(_count(found, verdict) for verdict in COUNTED if verdict in found)


def _row(head: str, texts: list[str]) -> str:
    cells = "".join(f"<td>{as_html(text)}</td>" for text in texts)
    return f'<tr><th scope="row">{as_html(head)}</th>{cells}</tr>'


def _count(found: list[str], verdict: str) -> str:
    number = found.count(verdict)
    return f"{number} {verdict if number == 1 else COUNTED[verdict]}"


def _badge(verdict: str) -> str:
    name, mark = MARKS[verdict]
    return f'<span class="verdict {name}"><span aria-hidden="true">{mark}</span> {as_html(verdict)}</span>'


def _table(caption: str, heads: list[str], rows: list[str], lead: str = "", identifier: str = "") -> str:
    head = "".join(f'<th scope="col">{as_html(name)}</th>' for name in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    marked = f' id="{identifier}"' if identifier else ""
    before = f"<p>{as_html(lead)}</p>" if lead else ""
    return f'<div class="claims scrolls"{marked} role="region" aria-label="{as_html(caption)}">{before}{table}</div>'
