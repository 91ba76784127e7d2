"""The report of a transform as a page to read: what happened, what is worth knowing, pictures, numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gym_bridge.io.charts import Bars, number_text
from gym_bridge.io.html_report import Charts, Notes, Section, Share, Table, Tiles, render_sections
from gym_bridge.transforms.distributions import Distribution, Histogram, Measure
from gym_bridge.transforms.reasons import meaning_of

if TYPE_CHECKING:
    from gym_bridge.transforms.report import TransformReport
    from gym_bridge.transforms.statistics import PairStatistics, RewardKind, Statistics

MAX_TOOLS = 20
"""Tools that the page lists; the JSON has them all."""
LEGEND = ("with a reward", "in the output")
ALGORITHMS = {
    "sft": "SFT",
    "dpo": "DPO",
    "reward_model": "reward model",
    "grpo": "GRPO, tasks with signal",
    "online": "online training, all tasks",
}


def report_page(report: TransformReport) -> str:
    """The whole page as text, to be written as UTF-8."""
    statistics = report.statistics
    sections: list[Section] = [Tiles(_tiles(report)), Notes("Worth knowing", list(_findings(report))), _fates(report)]
    if statistics is None:
        return render_sections("Rollouts to a dataset", "", sections)
    sections += [_feeds(statistics), Charts(list(_charts(statistics))), _numbers(statistics), _tasks(statistics)]
    if statistics.tools:
        sections.append(_tools(statistics))
    return render_sections(f"Rollouts to {statistics.to}", ", ".join(statistics.inputs), sections)


def _tiles(report: TransformReport) -> list[tuple[str, str]]:
    tiles = [("rollouts read", number_text(report.rows_in)), ("rollouts used", number_text(report.rows_used))]
    if report.num_validation_rows is None:
        tiles.append(("rows written", number_text(report.rows_out)))
    else:
        tiles.append(("rows to train on", number_text(report.rows_out - report.num_validation_rows)))
        tiles.append(("rows for validation", number_text(report.num_validation_rows)))
    if (statistics := report.statistics) is not None:
        tiles.append(("tasks", number_text(statistics.tasks.num_tasks)))
        tiles += [("mean reward read", _mean(statistics.rewards.scored)), ("mean reward used", _mean(statistics.rewards.used))]
    return tiles


def _fates(report: TransformReport) -> Table:
    """Where the rollouts went, the commonest reason first."""
    fates = [("used", report.rows_used, "It is in the output.")]
    by_number = sorted(report.dropped.items(), key=lambda drop: (-drop[1], drop[0]))
    fates += [(f"dropped: {reason}", count, meaning_of(reason)) for reason, count in by_number]
    total = max(1, report.rows_in)
    rows = [(name, count, Share(count / total), meaning) for name, count, meaning in fates]
    return Table("Where the rollouts went", ("fate", "rollouts", "share", "meaning"), rows)


def _feeds(statistics: Statistics) -> Table:
    rows = [
        (
            ALGORITHMS[feed.algorithm],
            feed.num_rows,
            feed.why_none or f"{feed.counted[0].upper()}{feed.counted[1:]}.",
            _flags(feed.formats),
        )
        for feed in statistics.feeds
    ]
    header = ("to train", "rows", "what counts, or why there is none", "written by")
    return Table("What these rollouts can feed, before any filter", header, rows)


def _flags(formats: list[str]) -> str:
    return ", ".join(f"--to {one}" for one in formats)


def _findings(report: TransformReport) -> Iterator[str]:
    """Sentences for what a reader should not miss."""
    if report.min_reward is not None:
        yield f"--min-reward {report.min_reward:g} is in force; --min-reward none lifts it."
    if report.num_joined_prompts:
        yield f"{number_text(report.num_joined_prompts)} prompts of several messages were joined by blank lines into one text."
    if report.spooled:
        yield f"Copied to a temporary file first: {', '.join(report.spooled)}."
    statistics = report.statistics
    if statistics is None:
        return
    if statistics.reward_kind is not None:
        yield _reward_sentence(statistics.reward_kind, statistics.rewards)
    tasks, duplicates = statistics.tasks, statistics.duplicates
    if flat := tasks.num_without_signal:
        once = f", {number_text(tasks.num_tried_once)} of them tried only once" if tasks.num_tried_once else ""
        yield f"{_of(flat, tasks.num_tasks)} tasks have no signal: all their rollouts have one reward{once}."
    if duplicates.num_repeated:
        yield (
            f"{_of(duplicates.num_repeated, duplicates.num_compared)} rollouts repeat an earlier one; "
            f"of those in the output, {number_text(duplicates.num_repeated_in_output)} do."
        )
    if statistics.pairs is not None:
        yield _length_sentence(statistics.pairs)
    if (split := statistics.split) is not None:
        prompts = "" if split.num_shared_prompts is None else f" and {number_text(split.num_shared_prompts)} prompts"
        yield (
            f"Train has {number_text(split.num_train_tasks)} tasks and validation {number_text(split.num_validation_tasks)}; "
            f"{number_text(split.num_shared_tasks)} tasks{prompts} stand in both."
        )


def _reward_sentence(kind: RewardKind, rewards: Measure) -> str:
    match kind.looks, rewards.scored:
        case "multi-metric", _:
            return f"The reward is multi-metric: {', '.join(kind.components)}."
        case "constant", Distribution(min=low):
            return f"Every reward is {number_text(low)}: nothing tells rollouts apart."
        case "binary", Distribution(min=low, max=high):
            return f"The reward looks binary: {number_text(low)} or {number_text(high)}."
    return f"The reward looks continuous: {number_text(kind.num_levels)} different values."


def _length_sentence(pairs: PairStatistics) -> str:
    share, low, high = pairs.chosen_longer_share, pairs.chosen_longer_low, pairs.chosen_longer_high
    if share is None or low is None or high is None:
        return "Chosen and rejected answers are equally long in every pair."
    verdict = "no length bias is seen"
    if low > 0.5 or high < 0.5:
        verdict = f"a model may learn that {'longer' if low > 0.5 else 'shorter'} is better"
    return (
        f"The chosen answer is the longer one in {_percent(share)} of the pairs whose lengths differ "
        f"(95 % interval {_percent(low)} to {_percent(high)}): {verdict}."
    )


def _charts(statistics: Statistics) -> Iterator[Bars]:
    measures = (
        ("Rewards", "reward", statistics.rewards),
        ("Turns", "model calls", statistics.turns),
        ("Tool calls", "tool calls", statistics.tool_calls),
        ("Prompt length", "characters", statistics.prompt_chars),
        ("Answer length", "characters", statistics.answer_chars),
    )
    for title, x_label, one in measures:
        if one.histogram is not None:
            yield _bars(title, x_label, "rollouts", one.histogram, one.scored)
    tasks, pairs = statistics.tasks, statistics.pairs
    if tasks.mean_rewards is not None:
        caption = f"{_of(tasks.num_without_signal, tasks.num_tasks)} tasks have no signal."
        yield _bars("Mean reward of a task", "mean reward", "tasks", tasks.mean_rewards, caption=caption)
    if pairs is not None:
        yield _bars("Margins of pairs", "reward gap", "pairs", pairs.margin_histogram, pairs.margins)


def _bars(
    title: str, x_label: str, y_label: str, counts: Histogram, spread: Distribution | None = None, *, caption: str = ""
) -> Bars:
    return Bars(
        title=title,
        x_label=x_label,
        y_label=y_label,
        edges=counts.edges,
        counts=counts.scored,
        part=counts.used,
        legend=LEGEND,
        whole=counts.whole,
        headline="" if spread is None else f"median {number_text(spread.median)}",
        caption=caption if spread is None else _caption(spread),
    )


def _caption(spread: Distribution) -> str:
    low, high, least, most = map(number_text, (spread.lower_quartile, spread.upper_quartile, spread.min, spread.max))
    return f"The middle half lies between {low} and {high}, all between {least} and {most}."


def _numbers(statistics: Statistics) -> Table:
    measures = (
        ("reward", statistics.rewards),
        ("turns", statistics.turns),
        ("tool calls", statistics.tool_calls),
        ("prompt, characters", statistics.prompt_chars),
        ("answer, characters", statistics.answer_chars),
    )
    lines = [(name, told, spread) for name, one in measures for told, spread in zip(LEGEND, (one.scored, one.used), strict=True)]
    if statistics.pairs is not None:
        lines.append(("margin", "of pairs", statistics.pairs.margins))
    lines.append(("rollouts a task", LEGEND[0], statistics.tasks.attempts))
    rows = [(name, told, *_cells(spread)) for name, told, spread in lines]
    header = ("what", "of rollouts", "count", "mean", "lowest", "lower quartile", "median", "upper quartile", "highest")
    return Table("In numbers", header, rows)


def _cells(spread: Distribution | None) -> tuple[float | None, ...]:
    if spread is None:
        return (0, *[None] * 6)
    return (spread.count, spread.mean, spread.min, spread.lower_quartile, spread.median, spread.upper_quartile, spread.max)


def _tasks(statistics: Statistics) -> Table:
    tasks = statistics.tasks
    kinds = (
        ("always solved", tasks.num_always_solved, "Every rollout has a reward of 1 or more."),
        ("sometimes solved", tasks.num_sometimes_solved, "Some do."),
        ("never solved", tasks.num_never_solved, "None does."),
        ("without signal", tasks.num_without_signal, "All rollouts have one reward; counted above as well."),
    )
    rows = [(name, count, Share(count / max(1, tasks.num_tasks)), meaning) for name, count, meaning in kinds]
    return Table("Tasks", ("tasks", "number", "share", "meaning"), rows)


def _tools(statistics: Statistics) -> Table:
    rows = [
        (name, count, Share(count / max(1, statistics.num_scored))) for name, count in list(statistics.tools.items())[:MAX_TOOLS]
    ]
    rest = len(statistics.tools) - len(rows)
    title = f"Tools, the commonest {MAX_TOOLS} of {len(statistics.tools)}" if rest else "Tools"
    return Table(title, ("tool", "rollouts that called it", "share of those with a reward"), rows)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _mean(spread: Distribution | None) -> str:
    return "–" if spread is None else f"{spread.mean:,.3g}"


def _of(part: int, whole: int) -> str:
    return f"{number_text(part)} of {number_text(whole)}"
