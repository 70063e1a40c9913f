"""`fllmc doctor`: what this machine can do."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from fllmc import __version__
from fllmc.cli.exits import ENVIRONMENT, SUCCESS
from fllmc.cli.group import Command
from fllmc.cli.options import json_option

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "compile": ("click", "jinja2", "lark", "msgspec", "networkx", "numpy", "rich", "scipy"),
    "run": ("torch", "safetensors", "tokenizers"),
    "jax": ("jax",),
    "solver": ("ortools",),
}
PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
gloo, nccl = torch.distributed.is_gloo_available(), torch.distributed.is_nccl_available()
print(json.dumps({"gpus": gpus, "gloo": gloo, "nccl": nccl}))
"""
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_JOB_ID")


@click.command(cls=Command, name="doctor")
@json_option
def command(as_json: bool) -> int:
    """Say what this machine can do: packages, cores, memory, GPUs, launcher.

    Exits with 5 when compiling lacks a package; running may still lack torch.
    """
    from fllmc.cli.output import show, show_json

    facts = machine()
    if as_json:
        show_json("fllmc.doctor/1", facts)
    else:
        for line in lines(facts):
            show(line)
    return SUCCESS if not missing(facts, "compile") else ENVIRONMENT


def machine() -> dict[str, Any]:
    """All facts."""
    packages = {name: installed(name) for names in PACKAGES.values() for name in names}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "fllmc": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": pages,
        "packages": packages,
        "torch": torch_facts() if packages["torch"] else {},
        "launcher": {name: os.environ[name] for name in LAUNCHERS if name in os.environ},
    }


def installed(name: str) -> str:
    """The version of a package, empty if it is not there. Nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def torch_facts() -> dict[str, Any]:
    """What torch sees, asked in a process of its own; why it sees nothing where it fails."""
    import json

    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120
        )
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"gpus": [], "gloo": False, "nccl": False, "fault": str(error)[:200]}


def missing(facts: Mapping[str, Any], group: str) -> list[str]:
    """The packages of a group that are not installed."""
    return [name for name in PACKAGES[group] if not facts["packages"][name]]


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts for people."""
    from fllmc.ir.quantities import bytes_text

    memory = bytes_text(facts["memory_bytes"])
    head = f"fllmc {facts['fllmc']}   Python {facts['python']}   {facts['system']}"
    found = [f"{head}   {facts['cores']} CPU cores, {memory}"]
    for group, names in PACKAGES.items():
        lacking = missing(facts, group)
        state = "--" if lacking else "ok"
        shown = ", ".join(f"{name} {facts['packages'][name] or 'missing'}" for name in names)
        hint = f"   pip install 'fllmc[{group}]'" if lacking and group != "compile" else ""
        found.append(f"  {group:<8} {state}  {shown}{hint}")
    torch = facts["torch"]
    if torch:
        backends = [name for name in ("gloo", "nccl") if torch[name]]
        gpus = ", ".join(torch["gpus"]) or "none"
        found.append(f"  devices      GPUs: {gpus}; backends: {', '.join(backends) or 'none'}")
        if "fault" in torch:
            found.append(f"               torch does not start: {torch['fault']}")
    launcher = ", ".join(f"{k}={v}" for k, v in facts["launcher"].items())
    found.append(f"  launcher     {launcher or 'none: `fllmc run` starts the processes itself'}")
    abilities = ["check, format, compile for any target, inspect"]
    if not missing(facts, "run"):
        abilities.append("train on this machine")
    found.append(f"this machine can: {'; '.join(abilities)}")
    return found
