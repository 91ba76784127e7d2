"""Serves real NeMo Gym servers, their agents and a head in one process, without Ray. Run by the Python of NeMo Gym's venv.

    python serve.py --model-url http://127.0.0.1:8000/v1 example_multi_step blackjack office=http://127.0.0.1:9000

A name with an address is a resources server that runs elsewhere: NeMo Gym's SimpleAgent drives it. Prints one line of JSON when
all of them answer: the head's URL, and by name those of the resources servers and their agents.
"""

import argparse
import asyncio
import importlib
import inspect
import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("WANDB_MODE", "disabled")

MODEL = "policy_model"
HERE = {"host": "127.0.0.1", "entrypoint": "app.py"}


def free_ports(count):
    """Ports that nobody listens on; all are held until the last one is found."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def server_class(name):
    """The server that NAME's app.py defines, and the fields that its YAML sets."""
    import yaml
    from nemo_gym.base_resources_server import BaseResourcesServer

    module = importlib.import_module(f"resources_servers.{name}.app")
    defined = [cls for _, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__]
    found = max((cls for cls in defined if issubclass(cls, BaseResourcesServer)), key=lambda cls: len(cls.__mro__))
    for path in sorted((Path(module.__file__).parent / "configs").glob("*.yaml")):
        for instance in (yaml.safe_load(path.read_text()) or {}).values():
            fields = (instance.get("resources_servers") or {}).get(name) if isinstance(instance, dict) else None
            if fields:
                return found, {key: value for key, value in fields.items() if key not in ("entrypoint", "host", "port")}
    return found, {"domain": "agent"}


def agent_class(resources):
    """The agent that plays a resources server's rollouts, its config class and its folder; None is a server elsewhere."""
    from resources_servers.gymnasium import GymnasiumServer
    from responses_api_agents.gymnasium_agent.app import GymnasiumAgent, GymnasiumAgentConfig
    from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig

    if resources is not None and issubclass(resources, GymnasiumServer):
        return GymnasiumAgent, GymnasiumAgentConfig, "gymnasium_agent"
    return SimpleAgent, SimpleAgentConfig, "simple_agent"


def layout(names, ports, model_url):
    """NeMo Gym's merged configuration: who is served where."""
    model = urlsplit(model_url)
    config = {
        "head_server": {"host": "127.0.0.1", "port": ports[0]},
        MODEL: {"responses_api_models": {"model": {**HERE, "host": model.hostname, "port": model.port}}},
    }
    for index, (name, elsewhere) in enumerate(names.items()):
        resources, fields = server_class(name) if elsewhere is None else (None, {"domain": "agent"})
        folder = agent_class(resources)[2]
        port = ports[1 + 2 * index] if elsewhere is None else urlsplit(elsewhere).port
        config[name] = {"resources_servers": {name: {**fields, **HERE, "port": port}}}
        driven = {"resources_server": {"type": "resources_servers", "name": name}}
        driven |= {"model_server": {"type": "responses_api_models", "name": MODEL}, "max_steps": 10}
        config[f"{name}_agent"] = {"responses_api_agents": {folder: {**HERE, **driven, "port": ports[2 + 2 * index]}}}
    return config


def applications(names, config):
    """The servers' applications with their ports, the head's first."""
    from fastapi import FastAPI
    from nemo_gym.config_types import BaseServerConfig
    from nemo_gym.server_utils import GlobalAIOHTTPAsyncClientConfig, ServerClient, set_global_aiohttp_client
    from omegaconf import OmegaConf

    whole = OmegaConf.create(config)
    set_global_aiohttp_client(GlobalAIOHTTPAsyncClientConfig())
    client = ServerClient(head_server_config=BaseServerConfig(**config["head_server"]), global_config_dict=whole)
    head = FastAPI()
    head.get("/global_config_dict_yaml")(lambda: OmegaConf.to_yaml(whole))
    found = [(head, config["head_server"]["port"])]
    for name, elsewhere in names.items():
        resources = server_class(name)[0] if elsewhere is None else None
        agent, agent_config, folder = agent_class(resources)
        fields = config[name]["resources_servers"][name]
        served = resources and resources(
            config=resources.model_fields["config"].annotation(**fields, name=name), server_client=client
        )
        playing = config[f"{name}_agent"]["responses_api_agents"][folder]
        player = agent(config=agent_config(**playing, name=f"{name}_agent"), server_client=client)
        for owner, port in ((served, fields["port"]), (player, playing["port"])):
            if owner is None:
                continue
            app = owner.setup_webserver()
            owner.setup_exception_middleware(app)
            found.append((app, port))
    return found


def address(servers):
    """Where the one server of an instance answers."""
    (fields,) = servers.values()
    return f"http://127.0.0.1:{fields['port']}"


async def serve(names, model_url):
    """Serve until the process is told to end."""
    import uvicorn

    config = layout(names, free_ports(1 + 2 * len(names)), model_url)
    servers = []
    for app, port in applications(names, config):
        servers.append(uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")))
    running = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.started for server in servers):
        if any(task.done() for task in running):
            raise SystemExit("a server ended before all of them answered")
        await asyncio.sleep(0.05)
    told = {
        "head": f"http://127.0.0.1:{config['head_server']['port']}",
        "resources": {name: address(config[name]["resources_servers"]) for name in names},
        "agents": {name: address(config[f"{name}_agent"]["responses_api_agents"]) for name in names},
    }
    print(json.dumps(told), flush=True)
    await asyncio.gather(*running)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--model-url", required=True)
    arguments = parser.parse_args()
    given = [name.partition("=") for name in arguments.names]
    asyncio.run(serve({name: url or None for name, _, url in given}, arguments.model_url))
