"""Tables of models: all of them, the versions of one, how a version was judged."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from dashboard import formats
from dashboard.tables import chip, small, table
from experiment_service.analysis.interval import Estimate, Interval
from experiment_service.analysis.shadow import ShadowClicks
from experiment_service.reporting import (
    ExampleList,
    Figure,
    GateCheck,
    Judgement,
    ModelReport,
    ShadowReport,
    VersionReport,
)

_TONES = {
    "live": "ahead",
    "rejected": "failed",
    "shadow": "warning",
    "candidate": "draft",
    "retired": "draft",
}
_NAMES = {
    "ndcg": "NDCG",
    "hit_rate": "Hit rate",
    "k": "Length of the lists (k)",
    "pairs": "Pairs to be found",
    "unknown_pairs": "Pairs left out, not in training",
    "units": "Units",
    "catalogue": "Items ranked",
}


def models_table(models: Sequence[ModelReport], now: datetime) -> str:
    """List the models, with the age of their data; each name leads to its versions."""
    return table(
        (
            "Model",
            "Serves",
            "Recommender",
            "Versions#",
            "Trained on data to",
            "Asked by",
        ),
        [
            (
                _link("models?model", model.name),
                _serves(model),
                escape(_serving(model).recommender),
                formats.count(len(model.versions)),
                formats.moment(_serving(model).data_to)
                + small(formats.ago(_serving(model).data_to, now)),
                _asked_by(model),
            )
            for model in models
        ],
        caption="All models",
    )


def _serves(model: ModelReport) -> str:
    live = (
        chip("Nothing", "failed")
        if model.live is None
        else chip(f"Version {model.live}", "ahead")
    )
    shadows = [each for each in model.versions if each.status == "shadow"]
    return live + "".join(
        "<br>" + chip(f"Version {each.version} in shadow", "warning")
        for each in shadows
    )


def _serving(model: ModelReport) -> VersionReport:
    """Return the version that serves, or the newest."""
    return next(
        (each for each in model.versions if each.version == model.live),
        model.versions[0],
    )


def _link(page: str, key: str) -> str:
    return f'<a href="{page}={escape(key)}" target="_self"><b>{escape(key)}</b></a>'


def _asked_by(model: ModelReport) -> str:
    uses = [
        f"{_link('experiment?experiment', use.experiment)} as "
        f"{escape(', '.join(use.variants))}"
        for use in model.uses
    ]
    if model.placements:
        uses.append(f"placements outside tests: {escape(', '.join(model.placements))}")
    return "<br>".join(uses) or "nobody"


def versions_table(model: ModelReport) -> str:
    """List the versions of a model, the newest first."""
    return table(
        ("Version#", "Status", "Recommender", "Trained", "Data", "Gate", "Decided"),
        [
            (
                f"<b>{each.version}</b>",
                chip(each.status.capitalize(), _TONES[each.status]),
                escape(each.recommender),
                formats.moment(each.created_at),
                "<br>to ".join(map(formats.moment, (each.data_from, each.data_to))),
                _gate(each.checks),
                _decided(each),
            )
            for each in model.versions
        ],
        caption=f"Versions of {model.name}, the newest first",
    )


def _gate(checks: Sequence[GateCheck]) -> str:
    if not checks:
        return formats.NOTHING
    failed = sum(not check.passed for check in checks)
    passed = f"{len(checks) - failed} of {len(checks)} passed"
    return chip(passed, "failed" if failed else "ok")


def _decided(version: VersionReport) -> str:
    if version.decided_at is None:
        return "not yet"
    return escape(version.reason or "") + small(
        f"{version.decided_by}, {formats.moment(version.decided_at)}"
    )


def checklist_table(checks: Sequence[GateCheck]) -> str:
    """Show each check of the gate with its value, bound and verdict."""
    ranked = sorted(checks, key=lambda check: check.passed)
    return table(
        ("Check", "Value#", "Must be", "Verdict"),
        [
            (
                escape(_capitalised(check.name)),
                _number(check.value),
                f"{check.rule} {_number(check.threshold)}",
                chip("Passed", "ok") if check.passed else chip("Failed", "failed"),
            )
            for check in ranked
        ],
        caption="The gate: a version serves only when every check passed",
    )


def shadow_table(shadow: ShadowReport) -> str:
    """Show how a shadow compares with what was shown, and what its rule demands."""
    compared = shadow.comparison
    slow = compared.milliseconds
    rows = [
        ("Answers", _count(compared.answers), "", _demand(shadow, "answers")),
        (
            "Items in both lists",
            _optional(compared.mean_overlap) + _range(compared.overlap),
            "",
            _demand(shadow, "overlap"),
        ),
        (
            "From own lists, no fallback",
            _optional(compared.coverage),
            _optional(compared.shown_coverage),
            _demand(shadow, "coverage"),
        ),
        (
            "Failed" + small(compared.error or ""),
            _optional(compared.errors),
            "",
            _demand(shadow, "errors"),
        ),
        (
            "Milliseconds to answer" + small("median; 95% and 99% are below"),
            f"{slow[0]:.2f}" + small(f"{slow[1]:.2f}; {slow[2]:.2f}")
            if slow
            else formats.NOTHING,
            "",
            _demand(shadow, "milliseconds"),
        ),
    ]
    return table(
        ("Beside the live version", "Shadow#", "Shown#", "Rule"),
        rows,
        caption=f"{_count(compared.units)} units, "
        f"{formats.moment(compared.first_at)} to {formats.moment(compared.last_at)}"
        if compared.answers
        else "No answers yet",
    )


def _demand(shadow: ShadowReport, name: str) -> str:
    if shadow.rule is None:
        return ""
    rule = shadow.rule
    return {
        "answers": f"decides at {_count(rule.answers)}",
        "overlap": _least(rule.overlap),
        "coverage": _least(rule.coverage),
        "errors": f"at most {formats.share(rule.errors, digits=2)}",
        "milliseconds": "any"
        if rule.milliseconds is None
        else f"95% below {rule.milliseconds:g}",
    }[name]


def _least(share: float) -> str:
    return f"at least {formats.share(share)}" if share else "any"


def clicks_table(clicks: ShadowClicks) -> str:
    """Show what logged clicks say about a shadow."""
    return table(
        ("Clicks on what was shown", "Value#"),
        [
            ("Exposures", _count(clicks.exposures)),
            ("Clicked places", _count(clicks.clicks)),
            ("Places where the shadow has another item", formats.share(clicks.changed)),
            (
                "Clicks that it keeps",
                _optional(
                    clicks.kept.estimate if isinstance(clicks.kept, Interval) else None
                )
                + _range(clicks.kept),
            ),
            (
                "Clicks per exposure that it gains at least",
                formats.difference(clicks.least_gain, "mean"),
            ),
            (
                "Clicks per other item and place to make up for that",
                formats.NOTHING
                if clicks.break_even is None
                else f"{clicks.break_even:.4f}",
            ),
            (
                "Clicks left out, at no known place",
                _count(clicks.unplaced),
            ),
        ],
        caption="If an item at a place gets the clicks it gets, whatever stands around",
    )


def _count(number: float) -> str:
    return formats.count(number)


def _optional(share: float | None) -> str:
    return formats.NOTHING if share is None else formats.share(share)


def _range(estimate: Estimate) -> str:
    if isinstance(estimate, Interval):
        return small(f"{formats.share(estimate.low)} to {formats.share(estimate.high)}")
    return small(estimate.reason)


_KINDS = {
    "own": "the list of this unit",
    "default": "the default list",
    "beside": "items beside this product",
    "none": "nothing to say",
}


def examples_table(model: str, examples: Sequence[ExampleList]) -> str:
    """Put lists side by side; an item says where the other list has it."""
    length = max(len(each.items) for each in examples)
    places = [
        {item.item_id: place for place, item in enumerate(each.items, start=1)}
        for each in examples
    ]
    return table(
        (
            "Place#",
            *(f"{model}/{each.version}: {_KINDS[each.kind]}" for each in examples),
        ),
        [
            (
                str(place),
                *(
                    _example(each, place, places[1 - index])
                    for index, each in enumerate(examples)
                ),
            )
            for place in range(1, length + 1)
        ],
        caption="As published, before filters of a request and the fallback",
    )


def _example(example: ExampleList, place: int, other: Mapping[str, int]) -> str:
    if place > len(example.items):
        return ""
    item = example.items[place - 1]
    found = other.get(item.item_id)
    mark = ""
    if found is None:
        mark = chip("only here", "warning")
    elif found != place:
        mark = f'<span class="es-aside">there at {found}</span>'
    named = escape(item.name) or escape(item.item_id)
    return f"{named} {mark}" + (small(item.item_id) if item.name else "")


def figures_table(judgements: Sequence[Judgement]) -> str:
    """Put the figures of each protocol side by side."""
    names = list(dict.fromkeys(f.name for each in judgements for f in each.figures))
    columns = [{f.name: f for f in each.figures} for each in judgements]
    return table(
        (
            "Figure",
            *(f"{_capitalised(each.title.replace('_', ' '))}#" for each in judgements),
        ),
        [
            (
                escape(_NAMES.get(name, _capitalised(name.replace("_", " ")))),
                *(_figure(column.get(name)) for column in columns),
            )
            for name in names
        ],
        caption="Offline evaluation; figures compare within a column only",
    )


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    limits = ""
    if figure.low is not None and figure.high is not None:
        limits = small(f"{_number(figure.low)} to {_number(figure.high)}")
    return _number(figure.value) + limits


def _number(value: float | None) -> str:
    if value is None:
        return formats.NOTHING
    return formats.count(value) if isinstance(value, int) else f"{value:.4g}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
