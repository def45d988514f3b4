"""`torchrun`, so that a run ends as a user would want it to: `scripts/tools/torchrun.py` runs this.

The exit code is that of the first process that failed, which has said why. Ranks that were killed
are named. SIGTERM, SIGINT and SIGUSR1 are passed on to the ranks, which save a checkpoint
(`signals`). The store listens where it was asked to, and a port that is taken is one line. Nothing
is left in the temporary folder. It leans on classes of torch's agent by the names under which
torch's modules look them up.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed.elastic.rendezvous.static_tcp_rendezvous as rendezvous
import torch.distributed.launcher.api as launcher_api
from torch.distributed import TCPStore
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import parse_args, run

from realsr_r1.core.cpu import cores
from realsr_r1.core.errors import EXIT_BAD_INPUT, EXIT_LOST, UserError
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.parents import LAUNCHER
from realsr_r1.core.presets import find_preset
from realsr_r1.core.schema import Json, Text
from realsr_r1.training.checkpoints import complete_checkpoints
from realsr_r1.training.signals import SECOND, STOPPING, exit_code

AUTO = "auto"  # as --master_port
TOGETHER = 2  # seconds; ranks that fail so soon after the first were not ended by the agent
WAITING = 2048  # connections that may wait for the store
OUTPUT = "--output_dir"


def suit_gpus() -> None:
    """Set what the ranks' libraries read when they start, on a machine with GPUs.

    The allocator grows its segments, since rollouts and losses ask for other sizes in turn and
    leave gaps. An optimizer on the CPU gets its share of the cores; torchrun gives it one. What the
    user has set stays.
    """
    count = torch.cuda.device_count()
    if count:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // count)))


class Agent(LocalElasticAgent):
    """torch's agent, known to its launcher; it starts no rank again where that can't help."""

    def __init__(self, launcher: Launcher, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.launcher = launcher

    def _start_workers(self, worker_group: Any) -> dict[int, Any]:
        started = super()._start_workers(worker_group)
        for number in STOPPING:  # torch has put its own handlers there
            signal.signal(number, self.launcher.pass_on)
        return started

    def _monitor_workers(self, worker_group: Any) -> Any:
        result = super()._monitor_workers(worker_group)
        codes = {failure.exitcode for failure in result.failures.values()}
        if self.launcher.received or codes & {EXIT_BAD_INPUT, *map(exit_code, STOPPING)}:
            self._remaining_restarts = 0
        return result

    def _restart_workers(self, worker_group: Any) -> None:
        self.launcher.say(f"a rank was lost: starting all again, {self._remaining_restarts} more times at "
                          "most")
        super()._restart_workers(worker_group)

    def pids(self) -> list[int]:
        """Return the processes of the ranks on this machine."""
        return list(self._pcontext.pids().values()) if self._pcontext else []


class Launcher:
    """One launch: its arguments, its agent, and the signal that it was sent.

    `argv`: torchrun's arguments, then a script and its own. `--master_port auto` takes a port that
    is free.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.arguments = parse_args(self._with_port(argv))
        self.arguments.log_dir = self.arguments.log_dir or os.devnull  # torch would leave a folder a run
        self.received, self._at = 0, 0.0
        self.agent: Agent | None = None

    def run(self) -> int:
        """Start the ranks and wait for them; returns the exit code."""
        os.environ[LAUNCHER] = str(os.getpid())
        suit_gpus()
        if _is_loopback(self.arguments.master_addr):  # gloo would listen on the network
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        launcher_api.LocalElasticAgent = self._agent
        rendezvous.TCPStore = _bound_store
        for number in STOPPING:
            signal.signal(number, self.pass_on)
        try:
            run(self.arguments)
        except ChildFailedError as error:
            return self._explained(error.failures)
        except SignalException as error:  # SIGHUP, SIGQUIT
            return 128 + error.sigval
        return exit_code(self.received) if self.received else 0

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Send a signal on to the ranks; a second Ctrl-C ends them."""
        now = time.monotonic()
        is_second = self.received and number == signal.SIGINT and now - self._at > SECOND
        if not self.received:
            self.received, self._at = number, now
        pids = self.agent.pids() if self.agent else []
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL if is_second else number)
            except ProcessLookupError:
                pass
        if not pids:
            self.say(f"ended by {signal.Signals(number).name} before a rank had started")
            sys.exit(exit_code(number))

    def _agent(self, **kwargs: Any) -> Agent:
        self.agent = Agent(self, **kwargs)
        return self.agent

    def _explained(self, failures: Mapping[int, ProcessFailure]) -> int:
        """Say of ranks that could not say it themselves why they ended; returns the exit code."""
        began = min(failure.timestamp for failure in failures.values())
        first = {rank: failure for rank, failure in failures.items() if failure.timestamp <= began + TOGETHER}
        killed = {rank: -failure.exitcode for rank, failure in first.items() if failure.exitcode < 0}
        if self.received:
            if len(killed) == len(failures):  # none could note the signal
                when = "at once" if signal.SIGKILL in killed.values() else "before it trained"
                self.say(f"the run was ended by {signal.Signals(self.received).name} {when}; "
                          f"{self._goes_on()}")
            return exit_code(self.received)
        if len(killed) < len(first):  # what the agent ended after another failure
            killed = {rank: number for rank, number in killed.items() if number != signal.SIGTERM}
        if killed:
            rank, number = min(killed.items(), key=lambda pair: (pair[1] == signal.SIGTERM, pair[0]))
            reason = {signal.SIGKILL: " (out of memory?)", signal.SIGTERM: ""}.get(number, " (a crash)")
            self.say(f"rank {rank} was killed by signal {number}{reason}; {self._goes_on()}")
            return 128 + number
        codes = [failure.exitcode for failure in first.values()
                 if failure.exitcode > 0 and failure.exitcode != EXIT_LOST]
        if not codes:
            self.say(f"the connection to a rank of another machine was lost; {self._goes_on()}")
        return codes[0] if codes else EXIT_LOST

    def _goes_on(self) -> str:
        output = _output_of(self.arguments.training_script_args)
        complete = complete_checkpoints(Path(output)) if output else {}
        return f"run the same command again to go on{f' from step {max(complete)}' if complete else ''}"

    def say(self, line: str) -> None:
        # Below a progress bar that a killed rank has left.
        print(f"\nrealsr-r1: error: {line}", file=sys.stderr, flush=True)

    @staticmethod
    def _with_port(argv: Sequence[str]) -> list[str]:
        argv, port = list(argv), None
        for place, word in enumerate(argv):
            flag, equals, value = word.partition("=")
            if flag not in ("--master_port", "--master-port"):
                continue
            value = value if equals else argv[place + 1]
            if value == AUTO:
                port = port or _free_port()
                argv[place if equals else place + 1] = f"{flag}={port}" if equals else str(port)
            elif not value.isdigit() or not 0 < int(value) < 2**16:
                raise UserError(f"MASTER_PORT {value} is no port: give a number from 1 to 65535, or {AUTO}")
            break
        if port and not {"--nnodes=1", "--nnodes=1:1"} & set(argv) and any(
                word.startswith("--nnodes") for word in argv):
            raise UserError(f"MASTER_PORT={AUTO} is for one machine; several must know the same number")
        return argv


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def _is_loopback(address: str) -> bool:
    return address in ("localhost", "::1") or address.startswith("127.")


def _bound_store(host: str, port: int, world_size: int | None = None, is_master: bool = False,
                 *args: Any, **kwargs: Any) -> TCPStore:
    """torch's `TCPStore`, which listens at `host` alone; torch's listens at every address.

    Raises `UserError` where the port is taken. A `host` that isn't an address of this machine (that
    of a service in front of it, say) is listened for at every address, with a line.
    """
    if not is_master:
        return TCPStore(host, port, world_size, is_master, *args, **kwargs)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(WAITING)
    except OSError as error:
        listener.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise UserError(f"port {port} of {host} can't be used ({error.strerror}): give another "
                            f"MASTER_PORT, or MASTER_PORT={AUTO} on one machine") from error
        print(f"{host} is not an address of this machine ({error.strerror}), so its port {port} is opened at "
              "every address", flush=True)
        return TCPStore(host, port, world_size, is_master, *args, **kwargs)
    return TCPStore(host, port, world_size, is_master, *args, master_listen_fd=listener.detach(),
                    **{**kwargs, "multi_tenant": False})


def _output_of(argv: Sequence[str]) -> str | None:
    """Return the run's folder that a script's arguments name, if they do."""
    values = {flag: value for flag, value in zip(argv, argv[1:], strict=False)}
    values |= {flag: value for flag, equals, value in (word.partition("=") for word in argv) if equals}
    if OUTPUT in values or "--config" not in values:
        return values.get(OUTPUT)
    try:
        recipe = find_preset("--config", values["--config"])
        return read_yaml(recipe, dict[Text, Json]).get("output_dir")
    except (UserError, AttributeError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Launch a script as several ranks."""
    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return Launcher(sys.argv[1:] if argv is None else argv).run()
