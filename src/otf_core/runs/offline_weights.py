"""``python -m otf_core.runs.offline_weights``: weights of a run that no process trains.

For ``otf export weights --dir``; a process of its own, since the command line never loads torch.
Reads what is asked as JSON from stdin, and says on stdout what was written, or why it was not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from otf_core.errors import CommandError, ErrorCode
from otf_core.runs.exports import SAFETENSORS, write_weights
from otf_core.runs.out_files import OutFiles
from otf_core.state.run_folder import complete_checkpoints, goes_on_from, record_of
from otf_core.state.weights_file import open_weights


def write(folder: Path, checkpoint: str | None, out_path: str | None) -> dict[str, Any]:
    """Write them as ``Exports.weights`` does; weights in parts on ranks are put together.

    Args:
        folder: of the run.
        checkpoint: its id; None: the one from which the run goes on.

    Raises:
        CommandError: there is none, or it cannot be written.
    """
    record, kept = record_of(folder), complete_checkpoints(folder)
    found = next((each for each in kept if each[0].id == checkpoint), None)
    if checkpoint is None and record is not None:
        found = goes_on_from(folder, record)
    if found is None:
        names = [manifest.id for manifest, _ in reversed(kept)][:20]
        detail = f"{folder.name} has no checkpoint {(checkpoint or '')[:120]!r}; it has {names}."
        raise CommandError(ErrorCode.NOT_FOUND, detail, field="checkpoint", allowed=names)
    manifest, path = found
    name = f"{manifest.run_id}-{manifest.id}"
    out = OutFiles(lambda: folder).file(out_path, name=name, ending=SAFETENSORS)
    with (
        open_weights(Path(path), expected=manifest, field="checkpoint") as weights,
        out.write() as file,
    ):
        said = write_weights(file, weights, manifest, lambda: False)
    of = {"run_id": manifest.run_id, "checkpoint": manifest.id, "step": manifest.step}
    return {**of, "out_path": str(out.path), "bytes": out.bytes, **said}


def main() -> None:
    """See the module."""
    asked = json.load(sys.stdin)
    try:
        found = {"data": write(Path(asked["folder"]), asked["checkpoint"], asked["out_path"])}
    except CommandError as error:
        found = {"error": error.to_wire()}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
