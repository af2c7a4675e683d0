"""A notebook's kernel that has done its imports before there is a notebook to run.

A kernel spends most of its time on imports that the process which runs the notebook has done
already. So that process forks a child while it is still young and has no threads; the child draws
a first chart, which takes longest, and waits to be told what to serve. Where processes cannot be
forked, `waiting` gives None, and the notebook gets a kernel of the usual kind.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from tbforensics.report_page.quick import without_slow_grammar

with without_slow_grammar():
    from jupyter_client.connect import KernelConnectionInfo
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning.local_provisioner import LocalProvisioner

# What a notebook of ours imports, and what a kernel is made of.
_IMPORTS = (
    *("tbforensics.case", "tbforensics.charts", "tbforensics.display"),
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell"),
)


def warm_up() -> None:
    """Import what a kernel needs; one that is forked afterwards has it."""
    with without_slow_grammar():
        for name in _IMPORTS:
            import_module(name)


def waiting() -> Kernel | None:
    """A kernel that waits, where there can be one; to be called before anything starts a thread."""
    if sys.platform != "linux":  # elsewhere libraries of the system do not outlive a fork
        return None
    warm_up()
    return Kernel()


class Kernel:
    """A child of this process, and never outliving it. To jupyter_client it is a `Popen`."""

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        reader, self._orders = os.pipe()
        fork = multiprocessing.get_context("fork")
        self._process = fork.Process(target=_wait, args=(reader, self._orders), daemon=True)
        self._process.start()
        self.pid = self._process.pid
        os.close(reader)

    def serve(self, arguments: Sequence[str], cwd: str, environment: Mapping[str, str]) -> None:
        """Be the kernel that a command line with these arguments would start."""
        # By the id of its parent a kernel knows whether it was left alone. It looks for that in
        # its environment when it is imported, which was before this.
        parent = str(os.getpid())
        arguments = [*arguments, f"--IPKernelApp.parent_handle={parent}"]
        environment = {**environment, "JPY_PARENT_PID": parent}
        order = {"arguments": arguments, "cwd": cwd, "environment": environment}
        try:
            with os.fdopen(self._orders, "w") as orders:
                json.dump(order, orders)
        except BrokenPipeError:
            pass  # it was killed while it waited, and `poll` will say so

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid and self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _wait(reader: int, writer: int) -> None:
    os.close(writer)  # or the end of the other process would not be the end of its orders
    os.setsid()  # Ctrl-C is for the other process; it stops this one when it must
    _draw()
    with os.fdopen(reader) as orders:
        text = orders.read()
    if not text:
        return
    order: dict[str, Any] = json.loads(text)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    import_module("ipykernel.kernelapp").IPKernelApp.launch_instance(order["arguments"])


def _draw() -> None:
    """Set up pandas, and by a first chart the engine that draws; nobody sees this one."""
    import pandas as pd

    from tbforensics import charts
    from tbforensics.report_page.chart_json import mimebundle

    pd.set_option("display.max_columns", 20)  # as where pandas finds that it is in a kernel
    index = pd.date_range("2026-01-01", periods=2, freq="min", tz="UTC")
    mimebundle(charts.line(pd.Series([0.0, 1.0], index=index), unit="", title="").to_dict())


def manager_of(kernel: Kernel) -> type[AsyncKernelManager]:
    """What nbclient takes to start kernels with; it starts this one."""

    class Launch(LocalProvisioner):
        async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
            where = str(kwargs.get("cwd") or Path.cwd())
            kernel.serve(cmd[cmd.index("-f") :], where, kwargs["env"])
            self.process, self.pid, self.pgid = cast(Any, kernel), kernel.pid, kernel.pid
            return self.connection_info

    class Manager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.provisioner = Launch(
                parent=self, kernel_id="waiting", kernel_spec=self.kernel_spec
            )

    return Manager
