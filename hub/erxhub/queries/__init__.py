"""The read side: every query and every stream by its method. It never writes and never records an access itself."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from erxhub.queries import anomalies, audit, hospital, patient, proofs, registry, watch
from erxhub.queries.base import Query, Stream

QUERIES: Final[Mapping[str, Query]] = MappingProxyType(
    {
        **registry.QUERIES,
        **hospital.QUERIES,
        **patient.QUERIES,
        **audit.QUERIES,
        **proofs.QUERIES,
        **anomalies.QUERIES,
    }
)
STREAMS: Final[Mapping[str, Stream]] = MappingProxyType({**watch.STREAMS, **audit.STREAMS})
