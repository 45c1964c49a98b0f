"""Taking old versions of an artefact away, so that a removal that is killed can be finished, and nobody finds half of a version.

The manifest goes first: without one nobody finds the version. A copy of it stays until all files are gone, and says which these were.
Who has found the version before loses its files.
"""

from __future__ import annotations

import contextlib
import posixpath
from typing import TYPE_CHECKING

from rayjobs.errors import PublishConflictError, StorageError
from rayjobs.storage.artefacts import MANIFEST, parsed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rayjobs.storage.artefacts import Artefact
    from rayjobs.storage.stores import Store

REMOVED = "removed.json"
"""The copy of the manifest of a version that is being removed, in its folder."""


def remove(artefact: Artefact, versions: Iterable[str]) -> None:
    """Remove versions, and finish removals that were killed: of the files beside the versions those go that no finished one names.

    Only while nobody makes one of them again: its files, or those that it shares, may be taken for the old ones.

    Raises:
        NotFoundError: there is no such version.
        DamagedError: the manifest of one, or of one that stays, cannot be read.
        PublishConflictError: one is current, and stays; others may be removed.
    """
    for version in versions:
        _hide(artefact, version)
    _finish_all(artefact)


def _hide(artefact: Artefact, version: str) -> None:
    store, folder = artefact.store, artefact.at(version).prefix
    manifest = store.read(folder + MANIFEST)
    store.write(folder + REMOVED, manifest)
    if version != artefact.leads_to():
        store.delete(folder + MANIFEST)
    if version == artefact.leads_to():  # before, or made so meanwhile
        store.write(folder + MANIFEST, manifest)
        store.delete(folder + REMOVED)
        raise PublishConflictError(f"{store.address(folder)} is current; run the command again")


def _finish_all(artefact: Artefact) -> None:
    """Finish removals that were begun. Raises `DamagedError` where a manifest cannot be read, so that nobody knows what stays."""
    begun = artefact.having(REMOVED)
    if not begun:
        return
    finished = [artefact.at(name) for name in artefact.finished()]
    staying = {entry.key(version.prefix) for version in finished for entry in version.files}
    for name in begun:
        _finish(artefact, name, staying, again=any(version.version == name for version in finished))


def _finish(artefact: Artefact, version: str, staying: set[str], *, again: bool) -> None:
    """Remove the files of a hidden version; where it was published `again`, they are its own."""
    store, folder = artefact.store, f"{artefact.prefix}{version}/"
    if not again:
        said = parsed(store, folder, store.read(folder + REMOVED))
        listed = {key for key in store.list(folder) if key != folder + REMOVED}
        named = {entry.key(folder) for entry in said.files} if said else set()
        going = sorted((listed | named) - staying)
        for key in going:
            store.delete(key)
        _tidy(store, {posixpath.dirname(key) for key in going} - {folder.rstrip("/")})
    store.delete(folder + REMOVED)
    _tidy(store, {folder})


def _tidy(store: Store, folders: Iterable[str]) -> None:
    """Remove empty folders, and parts of uploads, for which not every role may look."""
    with contextlib.suppress(StorageError):
        for folder in sorted(folders, reverse=True):
            store.sweep(folder)
