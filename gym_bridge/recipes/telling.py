"""A recipe as text: what it is, and what it would do."""

from gym_bridge.evaluation.telling import aligned
from gym_bridge.recipes.catalogue import Recipe
from gym_bridge.recipes.notes import missing_files, notes_of
from gym_bridge.recipes.planning import Plan, Stage
from gym_bridge.recipes.running import shown_stage

MANY = "the following are repeated, up to {} times, while held-out tasks gain"


def description(recipe: Recipe) -> str:
    """What step.toml says, for a terminal."""
    manifest, step = recipe.manifest, recipe.manifest.step
    parts = [f"{step.id}: {step.name}\n\n{step.description}"]
    parts += [f"also called {', '.join(step.aliases)}"] if step.aliases else []
    parts += [_table("Configs", [(name, recipe.about(name)) for name in recipe.configs])]
    consumed = [(one.parameter, one.type, ("required: " if one.required else "") + one.description) for one in manifest.consumes]
    parts += [_table("Takes", consumed)] if consumed else []
    parts += [_table("Gives, below output", [(one.path, one.type, one.description) for one in manifest.produces])]
    parts += [_table("Parameters", [(one.name, one.description) for one in manifest.parameters])]
    parts += [_table("When", [(one.when, one.then) for one in manifest.strategies])] if manifest.strategies else []
    parts += [_table("Known errors", [(one.name, one.recovery) for one in manifest.errors])] if manifest.errors else []
    following = [(f"recipe run {one.step} {_hands(one.hands)}", one.when) for one in manifest.next]
    parts += [_table("Next", following)] if following else []
    return "\n\n".join(parts)


def commands(planned: Plan) -> str:
    """The command lines of a run, as a script, under what it is told with."""
    lines = [f"# note: {one}" for one in (*notes_of(planned), *missing_files(planned))]
    lines += _lines(planned.stages)
    rounds = planned.settings.rounds
    if rounds is not None:
        lines += [f"# {MANY.format(rounds.at_most)}; here as in the first round"]
        lines += _lines(planned.first_round())
    return "\n".join(lines)


def _lines(stages: tuple[Stage, ...]) -> list[str]:
    return [line for one in stages for line in (f"# {one.name}", shown_stage(one))]


def _table(title: str, rows: list[tuple[str, ...]]) -> str:
    return f"{title}\n" + "\n".join(f"  {line}" for line in aligned(rows).splitlines())


def _hands(hands: dict[str, str]) -> str:
    return " ".join(f"{parameter}=OUTPUT/{path}" for parameter, path in hands.items())
