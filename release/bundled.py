"""What of other people's work stands in the page that is shipped: an SBOM, and their licences.

``python -m release.bundled`` writes both. The SBOM (CycloneDX 1.6) comes from package-lock.json
alone; the texts of the licences are those of the packages, which `npm ci` has put there.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any, Final

from otf_core import __version__

ROOT: Final = Path(__file__).resolve().parents[1]
WEB: Final = ROOT / "src/otf_core/dashboard/web"
SBOM: Final = ROOT / "release/page.cdx.json"
LICENCES: Final = ROOT / "THIRD_PARTY_LICENSES.txt"
CHANGED: Final = {"uplot": "vite.config.mjs leaves out what no chart of the page uses"}
HEAD: Final = """\
The dashboard's page, built and shipped with otf-lightning, contains the work of others.
"""


class LicenceError(Exception):
    """A package has no licence that can be passed on; the message names it."""


def packages(lock: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of the lock that the page is made of, by name; not those that only build or test it."""
    return {
        path.rpartition("node_modules/")[2]: row
        for path, row in sorted(lock["packages"].items())
        if path and not row.get("dev") and not row.get("devOptional")
    }


def sbom(lock: dict[str, Any]) -> dict[str, Any]:
    """CycloneDX; the same for the same lock.

    Raises:
        LicenceError: the lock names no licence of a package.
    """
    found = packages(lock)
    components = []
    for name, row in found.items():
        if "license" not in row:
            msg = f"package-lock.json names no licence of {name} {row['version']}"
            raise LicenceError(msg)
        algorithm, _, digest = row["integrity"].partition("-")
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": _ref(name, row),
            "name": name,
            "version": row["version"],
            "purl": _ref(name, row),
            "scope": "required",
            "licenses": [{"license": {"id": row["license"]}}],
            "hashes": [
                {
                    "alg": algorithm.upper().replace("SHA", "SHA-"),
                    "content": base64.b64decode(digest).hex(),
                }
            ],
        }
        if name in CHANGED:
            component["pedigree"] = {"notes": CHANGED[name]}
        components.append(component)
    page = {
        "type": "application",
        "bom-ref": "otf-page",
        "name": lock["name"],
        "version": __version__,
    }
    needs = [
        {"ref": "otf-page", "dependsOn": [_ref(name, row) for name, row in found.items()]},
        *({"ref": _ref(name, row)} for name, row in found.items()),
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": page},
        "components": components,
        "dependencies": needs,
    }


def _ref(name: str, row: dict[str, Any]) -> str:
    return f"pkg:npm/{name.replace('@', '%40')}@{row['version']}"


def licences(lock: dict[str, Any], modules: Path) -> str:
    """The notices that those licences ask to be passed on.

    Raises:
        LicenceError: a package has no file with its licence.
    """
    parts = [HEAD]
    for name, row in packages(lock).items():
        files = sorted(p for p in (modules / name).glob("LICEN[CS]E*") if p.is_file())
        if not files:
            msg = f"{modules / name} has no file LICENSE"
            raise LicenceError(msg)
        title = f"{name} {row['version']} ({row['license']})"
        changed = f"Changed: {CHANGED[name]}.\n\n" if name in CHANGED else ""
        parts.append(f"{title}\n{'-' * len(title)}\n\n{changed}{files[0].read_text().strip()}\n")
    return "\n\n".join(parts)


def read_lock() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((WEB / "package-lock.json").read_text())
    return found


def text_of(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def main() -> int:
    """Exit code 0: both are written."""
    lock = read_lock()
    try:
        written = {SBOM: text_of(sbom(lock)), LICENCES: licences(lock, WEB / "node_modules")}
    except LicenceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for path, text in written.items():
        path.write_text(text)
        sys.stderr.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
