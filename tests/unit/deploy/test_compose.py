"""docker-compose.yml holds together: every command, variable, path and dependency it names is there."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from typer.main import get_command

from mailtide import settings
from mailtide.cli.main import app
from mailtide.local import jars
from mailtide.services.supervisor import SERVICES
from mailtide.services.worker import STAGES, stages
from schemas.config import Settings
from tests.paths import ROOT

ROOT = ROOT
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"].startswith("mailtide")}


def test_all_of_it_is_there() -> None:
    assert {"kafka", "mailpit", "prometheus", "grafana"} <= COMPOSE["services"].keys()
    assert all(service["build"] == "." for service in OURS.values())
    assert all("image" in service for service in COMPOSE["services"].values())
    commands = [service["command"] for service in OURS.values()]
    served = [stage for command in commands if command[0] == "worker" for stage in stages(command[-1])]
    assert sorted(served) == sorted(STAGES)
    assert {command[0] for command in SERVICES.values()} <= {command[0] for command in commands}


@pytest.mark.parametrize("name", OURS)
def test_commands_are_known(name: str) -> None:
    words = [*OURS[name].get("entrypoint", ["mailtide"])[1:], *OURS[name]["command"]]
    command: Any = get_command(app)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    context = command.make_context(command.name, [], resilient_parsing=True)
    _, left, _ = command.make_parser(context).parse_args(words)
    assert not left


@pytest.mark.parametrize("name", OURS)
def test_settings_are_known(name: str) -> None:
    environment = {key: str(value).replace("${MAILTIDE_CLOCK:-wall}", "wall") for key, value in OURS[name]["environment"].items()}
    found = settings.problems_and_settings(environment=environment)
    assert isinstance(found, Settings)
    assert found.kafka.bootstrap == "kafka:9092"
    assert found.smtp.url == "smtp://mailpit:1025?starttls=false"


def test_dependencies_volumes_and_files_exist() -> None:
    for service in COMPOSE["services"].values():
        for other in service.get("depends_on", {}):
            assert other in COMPOSE["services"]
            needs = service["depends_on"][other] if isinstance(service["depends_on"], dict) else {}
            if needs.get("condition") == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][other]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
        if "network_mode" in service:
            assert service["network_mode"].removeprefix("service:") in COMPOSE["services"]


def test_ports_are_published_on_this_machine_alone() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(published) == len(set(published))
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_prometheus_looks_where_services_listen() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    targets = {target for job in config["scrape_configs"] for group in job["static_configs"] for target in group["targets"]}
    serving = {name: service["environment"] for name, service in OURS.items() if service["command"][0] in ("worker", "train", "monitor")}
    ports = {name: "MAILTIDE_MONITOR_PORT" if name == "monitor" else "MAILTIDE_HEALTH_PORT" for name in serving}
    assert targets == {f"{name}:{environment[ports[name]]}" for name, environment in serving.items()}
    assert all(environment["MAILTIDE_LISTEN_HOST"] == "0.0.0.0" for environment in serving.values())
    assert all(f":{OURS[name]['environment'][port]}/health/ready" in OURS[name]["healthcheck"]["test"][-1] for name, port in ports.items())
    mounted = [volume.split(":")[0] for volume in COMPOSE["services"]["prometheus"]["volumes"]]
    assert all(f"./deploy/{rules}" in mounted for rules in config["rule_files"])


def test_the_image_holds_every_package() -> None:
    copied = {
        line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY") and len(line.split()) == 3
    }
    assert {"mailtide", "schemas", "models", "streams", "training", "monitoring"} <= copied


def test_the_broker_is_the_one_that_is_embedded() -> None:
    assert COMPOSE["services"]["kafka"]["image"] == "apache/kafka:" + jars.KAFKA.rsplit(":", 1)[1]
