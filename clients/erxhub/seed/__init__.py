"""A small fictional world to try the hub with: one area, two hospitals, two pharmacies, four persons, a catalogue.

Owns invented people, institutions and drugs; their codes have the real shapes, with serials from 99 on, and identity
numbers of an area that was never given out. Must never: hold data of anybody who exists.
"""

from erxhub.seed.catalogue import EDITION, catalogue
from erxhub.seed.identities import identity, signing_identity
from erxhub.seed.samples import sample_diagnoses, sample_pdf, sample_prescription
from erxhub.seed.world import SeedWorld, issue_world, register_world

__all__ = [
    "EDITION",
    "SeedWorld",
    "catalogue",
    "identity",
    "issue_world",
    "register_world",
    "sample_diagnoses",
    "sample_pdf",
    "sample_prescription",
    "signing_identity",
]
