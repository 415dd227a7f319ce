"""examples/operations: every option, path and metric that the files name exists."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cm3apps.cli.commands import CommandParser
from cm3serve import command
from toy_server import served

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "examples" / "operations"


def parsed(arguments: list[str]) -> Namespace:
    """Arguments as `cm3 serve` reads them; wrong ones raise."""
    parser = CommandParser(prog="cm3 serve", add_help=False, allow_abbrev=False)
    command.configure(parser)
    return parser.parse_args(arguments)


def loaded(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def entry_point() -> list[str]:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    words: list[str] = yaml.safe_load(found[1])
    return words


def test_the_unit_starts_the_server_with_known_options() -> None:
    text = (FOLDER / "cm3-serve.service").read_text(encoding="utf-8")
    found = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)
    assert found is not None
    program, serve, *arguments = shlex.split(found[1])
    assert (Path(program).name, serve) == ("cm3", "serve")
    args = parsed(arguments)
    assert (args.host, str(args.token_file)) == ("127.0.0.1", "%d/token")
    assert f"TimeoutStopSec={args.drain + 10}" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_is_one(tmp_path: Path) -> None:
    """With a program that is here, since a missing one is an error."""
    text = (FOLDER / "cm3-serve.service").read_text(encoding="utf-8")
    unit = tmp_path / "cm3-serve.service"
    unit.write_text(text.replace("/opt/cm3leon/bin/cm3", "/bin/true"), encoding="utf-8")
    told = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert unit.name not in told.stderr, told.stderr


def test_the_container_starts_the_server_with_known_options() -> None:
    program, serve, *first = entry_point()
    assert (program, serve) == ("cm3", "serve")
    services = loaded("compose.yaml")["services"]
    args = parsed([*first, *services["cm3"]["command"]])
    assert (args.host, str(args.token_file)) == ("0.0.0.0", "/run/secrets/token")
    assert services["cm3"]["stop_grace_period"] == f"{args.drain + 10}s"
    build = services["cm3"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_what_the_containers_share_is_declared() -> None:
    whole = loaded("compose.yaml")
    for name, service in whole["services"].items():
        assert {*service.get("secrets", ())} <= {*whole["secrets"]}, name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./") and source != "./models":  # the user's own
                assert (FOLDER / source).is_file(), volume
            elif not source.startswith("."):
                assert source in whole["volumes"]


def test_alerts_are_about_metrics_that_exist() -> None:
    expressions = [
        rule["expr"] for group in loaded("alerts.yml")["groups"] for rule in group["rules"]
    ]
    named = {name for one in expressions for name in re.findall(r"\bcm3_\w+", one)}
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named |= set(re.findall(r"`(cm3_\w+)`", page))
    with served() as server:
        server.post(prompt="red")
        server.post(path="/v1/nothing")
        text = _metrics(server)
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    for name in named:
        assert name in families or name.removesuffix("_bucket") in families, name
    [scraped] = loaded("prometheus.yml")["scrape_configs"]
    assert scraped["job_name"] == "cm3"
    assert 'up{job="cm3"} == 0' in expressions


def _metrics(server: Any) -> str:
    import httpx

    text: str = httpx.get(f"{server.url}/metrics").text
    return text
