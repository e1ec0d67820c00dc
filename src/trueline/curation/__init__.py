"""Curation: the data that aligns, and what is known about it."""

from trueline.curation.dedup import dedup
from trueline.curation.difficulty import Keep, difficulty
from trueline.curation.jobs.job import Curated
from trueline.curation.jobs.step import Work, curates
from trueline.curation.mix import mix
from trueline.curation.near import Leakage
from trueline.curation.refusals.bank import Dealer, bank
from trueline.curation.refusals.compliance import compliance_refusal
from trueline.curation.refusals.preference import preference_from_two
from trueline.curation.refusals.rows import Refusals
from trueline.curation.refusals.writers import Answering, Instructed, Recorded
from trueline.curation.safe_prompts import PREFIXES, prefixed, safe_prompts
from trueline.curation.safety import Labels, keyword_scores, keywords
from trueline.curation.selection.candidates import Size
from trueline.curation.selection.embed import Cached, PolicyEmbedder, Precomputed, SentenceEmbedder
from trueline.curation.selection.real import select_pairs
from trueline.curation.selection.similarity import STRATEGIES, cosines, two_means
from trueline.curation.split import split

__all__ = [
    "PREFIXES",
    "STRATEGIES",
    "Answering",
    "Cached",
    "Curated",
    "Dealer",
    "Instructed",
    "Keep",
    "Labels",
    "Leakage",
    "PolicyEmbedder",
    "Precomputed",
    "Recorded",
    "Refusals",
    "SentenceEmbedder",
    "Size",
    "Work",
    "bank",
    "compliance_refusal",
    "cosines",
    "curates",
    "dedup",
    "difficulty",
    "keyword_scores",
    "keywords",
    "mix",
    "preference_from_two",
    "prefixed",
    "safe_prompts",
    "select_pairs",
    "split",
    "two_means",
]
