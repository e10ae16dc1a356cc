"""`zerotir weights`: what a run's weight log holds, how far its followers are behind, and one version as a checkpoint."""

import argparse
import asyncio
import shutil
import sys
from functools import partial
from pathlib import Path

from bus.address import BusAddress
from bus.connection import Bus, open_bus
from bus.messages import Manifest, WeightVersion
from bus.presence import who_is_alive
from configs.bus import BusConfig
from configs.loading import load_config
from launch.past_run import folder_alone, weights_of
from launch.view_commands import view
from runtime.model_files import model_tensors
from runtime.models import model_folder
from runtime.terminal import printable
from weights.codec import WeightsError, WeightState
from weights.follower import WeightFollower
from weights.log import newest, read_manifests


def start(arguments: argparse.Namespace) -> int:
    """Prints the log of a run, or writes one version (`newest` or such as `0.12`) to a folder; returns the exit status."""
    return view(partial(_show, arguments.run, arguments.export))


async def _show(run: Path, export: tuple[str, str] | None) -> None:
    if folder := folder_alone(run / "bus.json"):
        if export is not None:
            raise WeightsError(weights_of(folder))
        sys.stdout.write(weights_of(folder) + "\n")
        return
    address = BusAddress.read(run / "bus.json").for_role("observer")
    async with open_bus(address, BusConfig(timeout_s=30), "weights") as bus:
        await bus.require_streams()
        head, _ = await newest(bus)
        manifests = [manifest for _, manifest in await read_manifests(bus, 1, head)]
        if not manifests:
            raise WeightsError(f"run {address.run} has published no weights yet")
        if export is None:
            await _list(bus, manifests)
        else:
            await _export(bus, manifests[-1], run, *export)


async def _list(bus: Bus, manifests: list[Manifest]) -> None:
    write = sys.stdout.write
    write(f"{'version':<10} {'kind':<9} {'MiB':>9} {'of full':>9} {'age':>8}  checksum\n")
    now = bus.clock.now()
    for manifest in manifests:
        kind = manifest.kind if manifest.chunks or manifest.location else "takeover"
        ratio = f"1/{manifest.nbytes / manifest.wire_bytes:.0f}" if manifest.wire_bytes else "-"
        where = f"  {printable(manifest.location)}" if manifest.location else ""
        write(
            f"{manifest.version!s:<10} {kind:<9} {manifest.wire_bytes / 2**20:9.2f} {ratio:>9} "
            f"{now - manifest.published_at:6.0f} s  {manifest.checksum[:16]}{where}\n"
        )
    head = manifests[-1]
    stream = (await bus.js.stream_info(bus.names.stream("WEIGHTS"))).state
    write(f"{len(manifests)} manifests, {stream.bytes / 2**20:.1f} MiB on the bus; newest {head.version}\n")
    for presence in await who_is_alive(bus):
        if presence.role in ("actor", "evaluator"):
            held = presence.version or "-"
            behind = f"{head.version.n - WeightVersion.parse(held).n} behind" if presence.version else "no weights yet"
            write(f"  {presence.id:<18} holds {held:<10} {behind}\n")


async def _export(bus: Bus, head: Manifest, run: Path, version: str, folder: str) -> None:
    try:
        wanted = head.version if version == "newest" else WeightVersion.parse(version)
    except ValueError:
        raise WeightsError(f"no version {version!r}: give `newest` or one that `zerotir weights` lists") from None
    config = load_config(str(run / "config.yaml"), [])
    follower = WeightFollower(bus, config.weights.snapshot_location)
    await follower.reach(wanted)
    assert follower.state is not None
    await asyncio.to_thread(_write_checkpoint, follower.state, config.model.path, Path(folder))
    sys.stdout.write(f"weights {wanted} are in {folder}\n")


def _write_checkpoint(state: WeightState, model: str, folder: Path) -> None:
    """Writes a Hugging Face checkpoint: the base model's configuration and tokenizer, with these weights.

    Raises ModelError where they are not the weights of that model.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    base = model_folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    for path in base.iterdir():
        if (
            path.is_file()
            and path.suffix not in (".safetensors", ".bin", ".gguf")
            and "safetensors.index" not in path.name
        ):
            shutil.copy2(path, folder / path.name)
    image = torch.from_numpy(state.image)
    tensors = {
        entry.name: image[entry.offset : entry.offset + entry.nbytes]
        .view(getattr(torch, entry.dtype))
        .reshape(entry.shape)
        for entry in state.layout.tensors
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(folder)
    model_tensors(folder)
