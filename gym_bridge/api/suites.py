"""Suites of evaluations: several policies on several sets of tasks, against a baseline."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gym_bridge.api.evaluating import compare, evaluate, summarize_file
from gym_bridge.errors import ConfigError
from gym_bridge.io.jsonl import written_aside
from gym_bridge.schemas.suite_settings import SuiteSettings

if TYPE_CHECKING:
    from gym_bridge.evaluation.drift import Drift
    from gym_bridge.evaluation.suite_report import SetReport, SuiteReport
    from gym_bridge.evaluation.summary import EvalSummary
    from gym_bridge.schemas.play_settings import EvalSettings


def evaluate_suite(settings: SuiteSettings, *, quiet: bool = True) -> "SuiteReport":
    """Play what was not played yet, set by set and policy by policy, and compare. `report.json` and `report.md` in the output tell.

    Raises ConfigError for wrong settings and a baseline that is not there, before anything is played; then as `evaluate` and
    `compare` do.
    """
    from gym_bridge.evaluation.suite_report import SuiteReport

    planned = settings.evaluations()
    _check_baseline(settings)
    summaries = {of: evaluate(one, ks=settings.ks or None, quiet=quiet) for of, one in planned.items()}
    drifts = _drifts(settings, planned)
    report = SuiteReport(
        sets={name: _report(settings, name, summaries, drifts) for name in settings.sets},
        baseline=settings.baseline,
        max_regression=settings.max_regression,
    )
    for name, text in (("report.json", report.model_dump_json(indent=2)), ("report.md", report.to_markdown() + "\n")):
        with written_aside(settings.output / name) as file:
            file.write(text.encode())
    return report


def _check_baseline(settings: SuiteSettings) -> None:
    baseline = settings.baseline
    if baseline is None or baseline in settings.policies:
        return
    for path in (settings.rollouts(baseline, one) for one in settings.sets):
        if not path.is_file():
            policies = ", ".join(settings.policies)
            raise ConfigError(f"baseline={baseline}: none of the policies ({policies}), and as a directory without {path}")


def _drifts(settings: SuiteSettings, planned: "Mapping[tuple[str, str], EvalSettings]") -> "dict[tuple[str, str], Drift]":
    """By policy and set, as `planned`; empty where nobody asked for them."""
    if not settings.measure_kl or settings.baseline is None:
        return {}
    from gym_bridge.api.measuring_drift import measure_drift

    pairs = [(policy, name) for name in settings.sets for policy in settings.compared]
    return {(policy, name): measure_drift(planned[policy, name], planned[settings.baseline, name]) for policy, name in pairs}


def _report(
    settings: SuiteSettings,
    name: str,
    summaries: "Mapping[tuple[str, str], EvalSummary]",
    drifts: "Mapping[tuple[str, str], Drift]",
) -> "SetReport":
    from gym_bridge.evaluation.suite_report import SetReport
    from gym_bridge.evaluation.summary import Paired

    ks, baseline = settings.ks or None, settings.baseline
    policies = {policy: summaries[policy, name] for policy in settings.policies}
    if baseline is None:
        return SetReport(policies=policies, against_baseline={})
    stored = settings.rollouts(baseline, name)
    if baseline not in policies:
        policies = {baseline: summarize_file(stored, ks=ks), **policies}
    against = {}
    for policy in settings.compared:
        found = compare(stored, settings.rollouts(policy, name), ks=ks)
        against[policy] = Paired(**{field: getattr(found, field) for field in Paired.model_fields})
    drift = {policy: drifts[policy, name] for policy in against if (policy, name) in drifts}
    return SetReport(policies=policies, against_baseline=against, drift=drift)
