"""What a plan is told with: nothing of it is wrong, but its user may have meant something else."""

from pathlib import Path

from gym_bridge.errors import ConfigError
from gym_bridge.hub import names_nothing
from gym_bridge.recipes.planning import Plan, is_brought
from gym_bridge.recipes.reading import missing_of

FILES = ("tasks_jsonl", "rollouts_jsonl", "preference_jsonl", "blend_jsonl")
"""Types of what is a file, and no model that may have a name."""
MODELS = ("checkpoint_hf", "reward_model_hf")
COLD = (
    "no {name}= was given: this starts from {value}, as it was published. A policy that was warmed up, such as the one that "
    "`gym-bridge recipe run sft` leaves, learns faster, and learns where this one never earns anything"
)
BORROWED = (
    "{name} is yours, and the held-out tasks are made and verified by {server}, the server of the config; server= names the one "
    "that made yours, and heldout_tasks= a file"
)


def notes_of(planned: Plan) -> tuple[str, ...]:
    """A policy that nobody has trained, and held-out tasks that are unlike what the user brings."""
    found = [] if planned.cold is None else [COLD.format(name=planned.cold, value=getattr(planned.settings, planned.cold))]
    theirs = [name for name in brought_files(planned) if name != "heldout_tasks"]
    making = [one.command.argv[1] for one in planned.stages if one.name == "heldout_tasks" and one.command.argv[:1] == ("tasks",)]
    if theirs and making and not is_brought("server", planned.brought):
        found.append(BORROWED.format(name=theirs[0], server=making[0]))
    return tuple(found)


def brought_files(planned: Plan) -> dict[str, str]:
    """The files that the user names, by parameter."""
    named = [one.parameter for one in planned.recipe.manifest.consumes if one.type in FILES]
    return {name: getattr(planned.settings, name) for name in named if is_brought(name, planned.brought)}


def missing_files(planned: Plan) -> tuple[str, ...]:
    """What is to be said of files and models that are named, are not there, and that no stage makes."""
    stages = (*planned.stages, *planned.first_round())
    made = {leaf for stage in stages for leaf in stage.command.leaves}
    values = {one.name: getattr(planned.settings, one.name) for one in planned.recipe.manifest.parameters}
    parameters = {value: name for name, value in reversed(values.items()) if isinstance(value, str)}
    models = [values[one.parameter] for one in planned.recipe.manifest.consumes if one.type in MODELS]
    read = {path: "" for path in brought_files(planned).values() if "://" not in path and not Path(path).exists()}
    read |= {name: "" for name in models if isinstance(name, str) and names_nothing(name)}
    for stage in stages:
        for path in missing_of(stage.command):
            if not Path(path).absolute().is_relative_to(planned.output.absolute()):  # what stages hand on is looked at in planning
                read.setdefault(path, stage.name)
    told = {
        path: f"{parameters[path]}={path}" if path in parameters else f"stages.{stage} reads {path}" for path, stage in read.items()
    }
    return tuple(f"{one}: no such file or model" for path, one in told.items() if not made & {Path(path), *Path(path).parents})


def check_brought(planned: Plan) -> None:
    """Raises ConfigError for a file or model that is not there, before stages that do not read it take their time."""
    if told := missing_files(planned):
        raise ConfigError(told[0])
