"""What splits are called, and measures where there is little room: in the terminal, in headings, in sentences."""

SPLITS = {
    "train": "training",
    "test": "held-out",
    "cross": "held-out around training means",
    "params": "parameters",
}
PLACES = {
    "train": "training samples",
    "test": "held-out samples, around their own class means",
    "cross": "held-out samples around the class means of the training samples",
    "params": "the parameters alone",
}

SYMBOLS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "margin": "margin",
    "predictive_entropy": "entropy",
    "weight_norm": "‖θ‖",
    "head_norm": "‖W‖",
    "relative_flatness": "κ",
    "relative_flatness_bound": "κ̄",
    "relative_flatness_looseness": "κ̄/κ",
    "relative_flatness_per_loss": "κ/L",
    "relative_flatness_geometric": "geometric κ",
    "relative_flatness_participation": "κ (share of samples)",
    "cdnv": "CDNV",
    "cdnv_sum": "CDNV (sum)",
    "nc1": "NC1",
    "nc1_ratio": "NC1 (ratio)",
    "rnc1": "RNC1",
    "rnc1_max": "RNC1 (max)",
    "nc2_equinorm": "NC2 norms",
    "nc2_equiangular": "NC2 angles",
    "nc2_etf": "NC2 simplex",
    "nc3": "NC3",
    "nc4": "NC4",
    "ildr": "ILDR",
}
