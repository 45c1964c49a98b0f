"""Every failure that a user can act on, as one tree.

    RayjobsError
    ├─ ConfigError                 unknown key, wrong value, a run name used for another experiment   (exit 2)
    ├─ StorageError                a bucket, a key, a credential
    │  ├─ NotFoundError            nothing at that address
    │  ├─ DamagedError             an object that is not what its manifest says: altered, or cut short
    │  └─ PublishConflictError     another writer published first, or holds the lease
    ├─ ImageryError
    │  ├─ EmptySearchError         no scene fits source, area and dates
    │  ├─ BandError                a band that the imagery does not have
    │  ├─ LabelMapError            a label map that cannot serve the imagery
    │  ├─ RadiometryError          pixels contradict the declared scale or offset
    │  ├─ NoTilesError             every tile was refused; says by which rule
    │  ├─ TooManyFailuresError     more unreadable scenes or tiles than `max_bad_fraction` allows
    │  └─ UnreadableTileError      one tile cannot be read (the only one a bulk job may skip; counted, quarantined)
    ├─ TrainingError               a loss that is not finite, no tile with a neighbour
    ├─ CheckpointError             missing part, digest differs, incompatible bands
    ├─ RetrievalError
    │  ├─ FingerprintError         index, embeddings and encoder do not belong together
    │  ├─ UnknownTileError         a tile id that the index does not hold
    │  └─ IndexCorruptError        a segment does not match its manifest
    ├─ QueryError                  a request that cannot be answered as put
    │  ├─ PinnedVersionError       a request names an index version that is not held
    │  ├─ UploadError              an upload that is not an image the encoder can take
    │  └─ UploadTooLargeError      bytes or pixels above the limit
    ├─ LabelError                  a taxonomy or a label event that cannot be
    │  ├─ UnknownTaxonomyError     a taxonomy that the workspace does not hold
    │  └─ LabelLostError           somebody else labelled the tile first
    ├─ ClusterError                Ray cannot be started on this machine, or its processes die
    ├─ ServiceError                a service that cannot be started or reached, or that failed
    └─ DemoError                   a step of the demo

A message says what happened, to which item, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class RayjobsError(Exception):
    """Base of all failures that a user can act on; the message is fit to be shown as it is."""


class ConfigError(RayjobsError):
    """The experiment file or the command line is wrong."""


class StorageError(RayjobsError):
    """A bucket, a key or a credential failed."""


class NotFoundError(StorageError):
    """Nothing lies at the address."""


class DamagedError(StorageError):
    """An object is not what its manifest says, or a manifest cannot be read."""


class PublishConflictError(StorageError):
    """Another writer published first, or holds the lease."""


class ImageryError(RayjobsError):
    """Imagery cannot serve the experiment."""


class EmptySearchError(ImageryError):
    """No scene fits the sources, the area and the dates."""


class BandError(ImageryError):
    """A band is named that the imagery does not have."""


class LabelMapError(ImageryError):
    """The label map cannot serve the imagery."""


class RadiometryError(ImageryError):
    """Pixels contradict the declared scale or offset."""


class NoTilesError(ImageryError):
    """Every tile was refused."""


class TooManyFailuresError(ImageryError):
    """More scenes or tiles were unreadable than `max_bad_fraction` allows."""


class UnreadableTileError(ImageryError):
    """One tile cannot be read. Bulk jobs may skip it: they count it and write it to quarantine."""


class TrainingError(RayjobsError):
    """Training cannot go on."""


class CheckpointError(RayjobsError):
    """A checkpoint is incomplete, altered, or made for other imagery."""


class RetrievalError(RayjobsError):
    """The index cannot serve."""


class FingerprintError(RetrievalError):
    """Index, embeddings and encoder do not belong together."""


class UnknownTileError(RetrievalError):
    """The index does not hold the tile."""


class IndexCorruptError(RetrievalError):
    """A segment does not match its manifest."""


class QueryError(RayjobsError):
    """The request cannot be answered as put."""


class PinnedVersionError(QueryError):
    """The request names an index version that the service does not hold."""


class UploadError(QueryError):
    """The upload is not an image that the encoder can take."""


class UploadTooLargeError(QueryError):
    """The upload has more bytes or pixels than the limit."""


class LabelError(RayjobsError):
    """A taxonomy or a label event cannot be."""


class UnknownTaxonomyError(LabelError):
    """The workspace holds no such taxonomy."""


class LabelLostError(LabelError):
    """Somebody else labelled the tile first: after its lease had ended, or as a second opinion without one."""

    def __init__(self, message: str, lost: Mapping[str, Sequence[str]] | None = None) -> None:
        """Take the message, and by tile id who has labelled it."""
        super().__init__(message)
        self.lost = dict(lost or {})
        """Who has labelled each tile, by its id."""

    def __reduce__(self) -> tuple[type[LabelLostError], tuple[str, dict[str, Sequence[str]]]]:
        """Keep what was lost on the way between processes."""
        return type(self), (str(self), self.lost)


class ClusterError(RayjobsError):
    """Ray cannot be started on this machine, or its processes die."""


class ServiceError(RayjobsError):
    """The service cannot be started or reached, or failed."""


class DemoError(RayjobsError):
    """A step of the demo failed; what it said stands above."""


def first_few(items: Sequence[str], *, most: int = 3, between: str = "; ") -> str:
    """Return the first of several items for a message, and how many more there are."""
    more = [f"and {len(items) - most:,} more"] if len(items) > most else []
    return between.join([*items[:most], *more])


SKIPPABLE: tuple[type[RayjobsError], ...] = (UnreadableTileError,)
"""What a bulk job may skip, count and write to quarantine. Everything else ends the job."""
