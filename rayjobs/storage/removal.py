"""Taking old versions of an artefact away, so that a removal that is killed can be finished, and no reader meets half of a version.

The manifest goes first: without one nobody finds the version. A copy of it stays until all files are gone, and says which these were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayjobs.errors import PublishConflictError
from rayjobs.storage.artefacts import MANIFEST, parsed

if TYPE_CHECKING:
    from rayjobs.storage.artefacts import Artefact

_REMOVED = "removed.json"
"""The copy of the manifest of a version that is being removed, in its folder."""


def remove(artefact: Artefact, version: str) -> None:
    """Remove a version, and of the files that lie beside the versions those that no other finished version names.

    Only while nobody writes to the artefact: a version of that name, or a file that it shares, might be in the making.

    Raises:
        NotFoundError: there is no such version.
        PublishConflictError: it is the current one.
    """
    folder = f"{artefact.prefix}{version}/"
    if version == artefact.leads_to():
        raise PublishConflictError(f"{artefact.store.address(folder)} was made current; run the command again")
    artefact.store.write(folder + _REMOVED, artefact.store.read(folder + MANIFEST))
    artefact.store.delete(folder + MANIFEST)
    _finish(artefact, version)


def finish_removals(artefact: Artefact) -> list[str]:
    """Finish removals that were killed; return the names of the versions."""
    keys = artefact.store.list(artefact.prefix)
    begun = [key.removeprefix(artefact.prefix).removesuffix(f"/{_REMOVED}") for key in keys if key.endswith(f"/{_REMOVED}")]
    for version in begun:
        _finish(artefact, version)
    return begun


def _finish(artefact: Artefact, version: str) -> None:
    store, folder = artefact.store, f"{artefact.prefix}{version}/"
    said = parsed(store, folder, store.read(folder + _REMOVED))
    finished = artefact.finished()
    if version not in finished:  # else it was published again since, and its files are that version's
        staying = {entry.key(other.prefix) for other in map(artefact.at, finished) for entry in other.files}
        own = (key for key in store.list(folder) if key != folder + _REMOVED)
        for key in sorted({*own, *(entry.key(folder) for entry in (said.files if said else ()))} - staying):
            store.delete(key)
    store.delete(folder + _REMOVED)
    store.sweep(folder)
