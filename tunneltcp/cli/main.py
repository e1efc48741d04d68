"""``tunneltcp``: the command line's group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunneltcp import __version__
from tunneltcp.cli.run import bind_option, folder_options, run_master, server_option
from tunneltcp.control.context import Role

__all__ = ["main"]

_FILE = click.Path(path_type=Path, readable=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tunneltcp")
def main() -> None:
    """Carry the visitors of public ports on a server to apps beside a client."""


@main.command("server")
@click.argument("file", required=False, type=_FILE)
@bind_option
@folder_options
def server_command(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run the server's side (config: FILE, or /etc/tunneltcp/INSTANCE.json)."""
    run_master(Role.SERVER, file, **options)


@main.command("client")
@click.argument("file", required=False, type=_FILE)
@server_option
@folder_options
def client_command(file: Path | None, **options: Any) -> None:  # noqa: ANN401 - click's
    """Run the client's side (config: FILE, or /etc/tunneltcp/INSTANCE.json)."""
    run_master(Role.CLIENT, file, **options)


@main.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each instance.")
@click.option("--instance", help="Only the instance of this name.")
@click.option("--run-dir", type=_FILE, help="The instance with this run folder.")
def status_command(as_json: bool, instance: str | None, run_dir: Path | None) -> None:
    """Show what runs: tunnels, links, visitors, processes."""
    from tunneltcp.cli.status import show_status

    show_status(as_json=as_json, instance=instance, run_dir=run_dir)
