"""Server, client, three apps and three tunnels on one machine; started by scripts/demo.

The two masters are started with the commands a user would type, and watched with
``tunneltcp status --json``. Whatever ends this program ends them.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import psutil
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from demo_apps import ServeOne, echo, greeter, pages, start
from demo_masters import DemoFailed, Master
from demo_table import HOST, Row, row, table
from demo_visits import VisitFailed, visit_echo, visit_greeter, visit_pages
from tunneltcp.config.tokens import new_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

FIRST_PORT = 60001
MAX_PORT = 65535

READY_SECONDS = 20.0
"""From the start of the masters until all links are up; a second or two is usual."""

CHECK_SECONDS = 60.0
"""All of --check, without the stop."""

REFRESH_SECONDS = 1.0
"""Between two looks at the status."""

STOP_SECONDS = 12.0
"""From TERM until a master must be gone; its visitors have 5 s of that to finish."""

LOG_LINES = 12
"""Of each log file, when something went wrong."""

console = Console(highlight=False)


@dataclass(frozen=True, slots=True)
class App:
    """Something to reach through a tunnel."""

    name: str
    what: str
    serve: ServeOne
    visit: Callable[[int], Awaitable[str]]
    hint: str
    """A command that visits it."""


APPS = (
    App("pages", "web pages", pages, visit_pages, "curl http://{host}:{port}/"),
    App("echo", "sends back what you type", echo, visit_echo, "nc {host} {port}"),
    App("almanac", "speaks first", greeter, visit_greeter, "nc {host} {port}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """An app, where it listens, and the public port it is to be reached at."""

    app: App
    target_port: int
    port: int


class Demo:
    """Everything that runs, from the first app to the last worker."""

    def __init__(self, folder: Path, tunnels: Sequence[Tunnel]) -> None:
        self._tunnels = tunnels
        token = folder / "token"
        token.touch(0o600)
        token.write_text(f"{new_token()}\n")
        config = folder / "tunnels.json"
        config.write_bytes(
            orjson.dumps(
                [{"local_port": t.target_port, "remote_port": t.port} for t in tunnels],
                option=orjson.OPT_INDENT_2,
            )
        )
        self._server = Master("server", folder, "--config", str(config))
        self._client = Master("client", folder, "--config", str(config), "--server", HOST)
        console.print("[bold]Started, as you would[/]")
        for master in (self._server, self._client):
            console.print(f"  {master.command}", soft_wrap=True, markup=False)

    async def rows(self) -> list[Row]:
        """Ask both masters."""
        server, client = await asyncio.gather(self._server.status(), self._client.status())
        return [
            row(tunnel, server.get(tunnel.port), client.get(tunnel.port))
            for tunnel in self._tunnels
        ]

    async def until_up(self) -> None:
        """Wait for all links.

        Raises:
            DemoFailed: If one is still down at the deadline.
        """
        rows: list[Row] = []
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not rows or not all(one.is_up for one in rows):
                    await asyncio.sleep(0.1)
                    rows = await self.rows()
        except TimeoutError:
            seen = "\n".join(f"  {one}" for one in rows)
            raise DemoFailed(f"not all up after {READY_SECONDS:.0f} s:\n{seen}") from None

    async def show(self) -> None:
        """Tell what can be tried, then show what happens until cancelled."""
        console.print("\n[bold]Try, in another terminal[/]")
        for tunnel in self._tunnels:
            hint = tunnel.app.hint.format(host=HOST, port=tunnel.port)
            console.print(f"  {hint:<34} {tunnel.app.name}: {tunnel.app.what}", markup=False)
        status = shlex.join(arg for arg in self._server.status_command if arg != "--json")
        console.print(f"  {status}", soft_wrap=True, markup=False)
        console.print("  kill -9 PID (any worker below)     the master brings it back\n")
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(table(await self.rows(), console.width), refresh=True)
                    await asyncio.sleep(REFRESH_SECONDS)
        told: dict[int, str] = {}
        while True:
            for one in await self.rows():
                if told.get(one.tunnel.port) != str(one):
                    told[one.tunnel.port] = str(one)
                    console.print(str(one), soft_wrap=True, markup=False)
            await asyncio.sleep(REFRESH_SECONDS)

    async def check(self) -> bool:
        """Visit each tunnel and say what was seen."""
        console.print("\n[bold]Visits[/]")
        fine = True
        for tunnel in self._tunnels:
            try:
                seen, word = await tunnel.app.visit(tunnel.port), "[green]ok[/]   "
            except VisitFailed as failure:
                seen, word, fine = str(failure), "[red]WRONG[/]", False
            where = f"{tunnel.app.name} at {HOST}:{tunnel.port}"
            console.print(f"  {word} {where}: {escape(seen)}", soft_wrap=True)
        return fine

    def show_logs(self) -> None:
        """Print the end of each log file, for whoever has to find out what went wrong."""
        for master in (self._server, self._client):
            for path in sorted(master.log_dir.glob("*.log")):
                lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
                console.print(f"\n[bold]{master.role}, {path.name}[/]")
                console.print("\n".join(lines), soft_wrap=True, markup=False)

    def terminate(self) -> None:
        """Ask both masters to stop; twice means now."""
        self._client.terminate()
        self._server.terminate()

    async def stop(self) -> bool:
        """Stop both masters, and make sure that nothing of them is left."""
        family = self._server.family() + self._client.family()
        console.print("\nStopping; who is connected has 5 s (Ctrl-C: at once).")
        self.terminate()
        _, left = await asyncio.to_thread(psutil.wait_procs, family, STOP_SECONDS)
        for process in left:
            console.print(f"[red]WRONG[/] still there: {process}; killing it", soft_wrap=True)
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, left, STOP_SECONDS)
        if not left:
            console.print("Everything is stopped, nothing is left behind.")
        return not left


def choose_ports(stack: ExitStack, first: int, count: int) -> list[int]:
    """Reserve ports for the tunnels; say which were busy, and what stands in for them.

    Raises:
        DemoFailed: If there are not enough.
    """
    spare = (port for port in range(first + count, MAX_PORT + 1) if reserve(stack, port))
    chosen = []
    for port in range(first, first + count):
        free = port if reserve(stack, port) else next(spare, None)
        if free is None:
            raise DemoFailed(f"no port from {first} on is free")
        if free != port:
            console.print(f"[yellow]{port} is busy: {free} stands in for it[/]")
        chosen.append(free)
    return chosen


def reserve(stack: ExitStack, port: int) -> bool:
    """Return whether somebody can listen there; no outgoing connection is given it from now.

    Linux gives no connection a port that somebody has bound (ip(7): they come from the same
    range as ours), and with SO_REUSEADDR the server may bind it beside us.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((HOST, port))
    except OSError:
        probe.close()
        return False
    stack.enter_context(probe)
    return True


async def run(first_port: int, check: bool) -> bool:
    """Bring everything up, show or check it, and take it down again."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(await start(app.serve)) for app in APPS]
        reserved = stack.enter_context(ExitStack())
        ports = choose_ports(reserved, first_port, len(APPS))
        tunnels = [
            Tunnel(app=app, port=port, target_port=server.sockets[0].getsockname()[1])
            for app, port, server in zip(APPS, ports, servers, strict=True)
        ]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tunneltcp-demo-"))
        demo = Demo(Path(folder), tunnels)
        work = asyncio.create_task(use(demo, check))
        on_signals(work.cancel)
        try:
            fine = await work
        except asyncio.CancelledError:
            fine = not check
        except DemoFailed as failure:
            console.print(f"[red]WRONG[/] {escape(str(failure))}", soft_wrap=True)
            fine = False
        finally:
            on_signals(demo.terminate)
            stopped = await demo.stop()
        if not (fine and stopped):
            demo.show_logs()
        return fine and stopped


async def use(demo: Demo, check: bool) -> bool:
    """Wait until it is up; then visit all tunnels, or show them until cancelled.

    Raises:
        DemoFailed: If something did not come up or took too long.
    """
    if not check:
        await demo.until_up()
        await demo.show()
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await demo.until_up()
            return await demo.check()
    except TimeoutError:
        raise DemoFailed(f"not done after {CHECK_SECONDS:.0f} s") from None


def on_signals(action: Callable[[], object]) -> None:
    """From now on do this when asked to end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, action)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="visit each tunnel, then end")
    parser.add_argument(
        "--first-port",
        type=int,
        default=FIRST_PORT,
        metavar="PORT",
        help="default: %(default)s",
    )
    options = parser.parse_args()
    try:
        return 0 if asyncio.run(run(options.first_port, options.check)) else 1
    except DemoFailed as failure:
        console.print(f"[red]WRONG[/] {escape(str(failure))}", soft_wrap=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
