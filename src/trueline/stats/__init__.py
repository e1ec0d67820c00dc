"""Rates, differences and tests, each with the uncertainty that belongs to it."""

from trueline.stats.agreement import Agreement, agreement
from trueline.stats.bootstrap import Clusters, cluster_bootstrap, design_effect
from trueline.stats.calibration import (
    Calibration,
    borrowed,
    corrected_difference,
    rogan_gladen,
)
from trueline.stats.margins import (
    NonInferiority,
    non_inferiority,
    tango_interval,
)
from trueline.stats.multiple import holm
from trueline.stats.paired import (
    McNemar,
    mcnemar,
    paired_difference,
    score_test,
    swap_test,
)
from trueline.stats.power import needed_n, paired_power, unpaired_power
from trueline.stats.proportions import (
    clustered_rate,
    clustered_share,
    mean_metric,
    rate,
    wilson,
)
from trueline.stats.resampling import Interval, bootstrap_interval

__all__ = [
    "Agreement",
    "Calibration",
    "Clusters",
    "Interval",
    "McNemar",
    "NonInferiority",
    "agreement",
    "bootstrap_interval",
    "borrowed",
    "cluster_bootstrap",
    "clustered_rate",
    "clustered_share",
    "corrected_difference",
    "design_effect",
    "holm",
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
