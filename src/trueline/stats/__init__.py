"""Rates, differences and tests, each with the uncertainty that belongs to it."""

from trueline.stats.calibration import (
    Calibration,
    borrowed,
    corrected_difference,
    difference_of_corrected,
    rogan_gladen,
)
from trueline.stats.clusters import Clusters, inflation
from trueline.stats.margins import (
    NonInferiority,
    non_inferiority,
    tango_interval,
)
from trueline.stats.paired import (
    Agreement,
    agreement,
    holm,
    mcnemar,
    paired_difference,
    score_test,
    swap_test,
)
from trueline.stats.power import needed_n, paired_power, unpaired_power
from trueline.stats.proportions import (
    clustered_mean,
    clustered_rate,
    clustered_share,
    mean_metric,
    rate,
    wilson,
)
from trueline.stats.resampling import bootstrap_interval

__all__ = [
    "Agreement",
    "Calibration",
    "Clusters",
    "NonInferiority",
    "agreement",
    "bootstrap_interval",
    "borrowed",
    "clustered_mean",
    "clustered_rate",
    "clustered_share",
    "corrected_difference",
    "difference_of_corrected",
    "holm",
    "inflation",
    "mcnemar",
    "mean_metric",
    "needed_n",
    "non_inferiority",
    "paired_difference",
    "paired_power",
    "rate",
    "rogan_gladen",
    "score_test",
    "swap_test",
    "tango_interval",
    "unpaired_power",
    "wilson",
]
