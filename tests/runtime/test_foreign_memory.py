"""Imports and exports stream: memory is that of the largest file and little more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from fllmc.frontend import load
from fllmc.runtime.foreign.reading import entries

SIZES = {
    "dims.embed": "512",
    "dims.heads": "8",
    "dims.kv_heads": "8",
    "dims.ffn": "1024",
    "dims.layers": "8",
    "dims.vocab": "2000",
}
SHARD = 25_000_000
MOST = 1.3

SCRIPT = """
import json, shutil, sys
from pathlib import Path
import torch
from fllmc.frontend import load
from fllmc.runtime.checkpoint.load import open_checkpoint
from fllmc.runtime.foreign.exporting import export
from fllmc.runtime.foreign.folder import open_folder
from fllmc.runtime.foreign.importing import import_folder

torch.set_num_threads(1)
folder, sizes, shard = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
mapping = load("tiny_llama", sizes)[0].foreign

def figure(name):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) * 1024

def grown(what):
    Path("/proc/self/clear_refs").write_text("5")
    before = figure("VmRSS")
    what()
    return figure("VmHWM") - before

def out():
    with open_checkpoint(folder / "ours" / "step-00000000", hashes=False) as ours:
        export(mapping, ours, folder / "back", None, shard_bytes=shard)

theirs = open_folder(folder / "theirs")
# Once before, so that code and what it keeps for itself are not counted.
import_folder(mapping, theirs, folder / "ours")
out()
shutil.rmtree(folder / "ours"), shutil.rmtree(folder / "back")
print(json.dumps([grown(lambda: import_folder(mapping, theirs, folder / "ours")), grown(out)]))
"""


def test_memory_is_that_of_the_largest_file(tmp_path: Path) -> None:
    spec, _, _ = load("tiny_llama", SIZES)
    assert spec is not None and spec.foreign is not None
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    files: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    largest = total = size = 0
    listed = list(entries(spec.foreign))
    for number, entry in enumerate(listed, 1):
        held[entry.names[0]] = torch.randn(entry.shape)
        size += held[entry.names[0]].nbytes
        if size > SHARD - 5_000_000 or number == len(listed):
            file = f"model-{len(set(files.values()))}.safetensors"
            save_file(held, theirs / file)
            files |= dict.fromkeys(held, file)
            largest, total, size, held = max(largest, size), total + size, 0, {}
    index = {"weight_map": files}
    (theirs / "model.safetensors.index.json").write_text(json.dumps(index))
    arguments = [str(tmp_path), json.dumps(SIZES), str(SHARD)]
    run = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert total > 3 * largest
    assert max(found) <= MOST * largest, (found, largest)
