"""Tables of models: all of them, the versions of one, how a version was judged."""

from collections.abc import Sequence
from html import escape

from dashboard import formats
from dashboard.tables import chip, small, table
from experiment_service.reporting import (
    Figure,
    GateCheck,
    Judgement,
    ModelReport,
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


def models_table(models: Sequence[ModelReport]) -> str:
    """List the models; each name leads to its versions."""
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
                chip("Nothing", "failed")
                if model.live is None
                else chip(f"Version {model.live}", "ahead"),
                escape(_serving(model).recommender),
                formats.count(len(model.versions)),
                formats.moment(_serving(model).data_to),
                _asked_by(model),
            )
            for model in models
        ],
        caption="All models",
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
