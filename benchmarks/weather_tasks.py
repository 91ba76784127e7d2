"""Tasks of about 1.5 KB, of which rollouts of about 3 KB come."""

import json
from pathlib import Path
from typing import Any

SYSTEM = (
    "You are a helpful personal assistant that aims to be helpful and reduce any pain points the user has. You may call the tools "
    "that you are given; call them with arguments that the user's words support, one at a time, and wait for what they give before "
    "you go on. When you know enough, answer in one short sentence, in the language of the user, without any markup."
)
TOOL = {
    "type": "function",
    "name": "get_weather",
    "description": "Describes the weather that a city has now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city, as the user wrote it."}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def task(number: int) -> dict[str, Any]:
    """A row of the tasks file."""
    question = f"I am going out in San Francisco tonight with {number % 7 + 2} friends; what should we wear?"
    return {
        "responses_create_params": {
            "input": [{"role": "developer", "content": SYSTEM}, {"role": "user", "content": question}],
            "tools": [TOOL],
        },
        "uuid": f"weather-{number:08d}",
        "verifier_metadata": {"expected_city": "San Francisco", "expected_words": ["cold", "coat"], "difficulty": "easy"},
    }


def write_tasks(path: Path, *, num_tasks: int) -> Path:
    """Write the tasks file."""
    with path.open("w") as file:
        for number in range(num_tasks):
            file.write(json.dumps(task(number)) + "\n")
    return path
