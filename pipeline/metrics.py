"""How close a set of images is to real ones, and what a classifier learns from it. Features in, numbers out; plain functions.

A feature is a row of a float array (N, D). Distances are worked out in blocks, so memory is bounded by ``BLOCK`` x N.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

BLOCK = 1024


def precision_recall_density_coverage(real_ND: np.ndarray, made_MD: np.ndarray, *, k: int = 5) -> tuple[float, float, float, float]:
    """How many made images lie among the real ones, and the reverse, by balls that reach to the k-th neighbour of the same set.

    Precision is the share of made images in the ball of some real one, recall the share of real images in the ball of some made one
    (Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1 and 2). Density counts the real balls a made image lies in, over k;
    coverage is the share of real balls with a made image in them (Naeem et al. 2020, arXiv 2002.09797, equations 4 and 5).
    Both sets need more than k images.
    """
    real_radius_N, made_radius_M = _neighbour_distance(real_ND, k), _neighbour_distance(made_MD, k)
    balls_M = np.zeros(len(made_MD), dtype=np.int64)
    recalled_N, covered_N = np.zeros(len(real_ND), dtype=bool), np.zeros(len(real_ND), dtype=bool)
    for start in range(0, len(real_ND), BLOCK):
        rows = slice(start, start + BLOCK)
        distance_BM = _distances(real_ND[rows], made_MD)
        inside_BM = distance_BM <= real_radius_N[rows, None]
        balls_M += inside_BM.sum(axis=0)
        covered_N[rows] = inside_BM.any(axis=1)
        recalled_N[rows] = (distance_BM <= made_radius_M).any(axis=1)
    return float((balls_M > 0).mean()), float(recalled_N.mean()), float(balls_M.mean() / k), float(covered_N.mean())


def frechet_distance(real_ND: np.ndarray, made_MD: np.ndarray) -> float:
    """Squared Fréchet distance between normal distributions with the means and covariances of two sets of at least two.

    The Fréchet inception distance of Heusel et al. 2017 (arXiv 1706.08500, equation 6), on whatever features are given: on CLIP's it is
    that of Kynkäänniemi et al. 2023 (arXiv 2203.06026). Too large for small sets, so compare sets of one size only. With A'A and B'B for
    the covariances, the trace of the root of their product is the sum of the singular values of AB': nothing need be inverted.
    """
    (mean_D, root_RD), (other_D, other_RD) = (_moments(one) for one in (real_ND, made_MD))
    spread = (root_RD**2).sum() + (other_RD**2).sum() - 2 * np.linalg.svd(root_RD @ other_RD.T, compute_uv=False).sum()
    return float(((mean_D - other_D) ** 2).sum() + spread)


def kernel_distance(real_ND: np.ndarray, made_MD: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased.

    The kernel inception distance of Binkowski et al. 2018 (arXiv 1801.01401, section 4), on whatever features are given.
    About 0, and as often below as above it, for two samples of one distribution.
    """
    n, m = len(real_ND), len(made_MD)
    within_real, within_made = (_kernel_sum(one, one) - _kernel_trace(one) for one in (real_ND, made_MD))
    return within_real / (n * (n - 1)) + within_made / (m * (m - 1)) - 2 * _kernel_sum(real_ND, made_MD) / (n * m)


def mean_distance(features_ND: np.ndarray) -> float:
    """Mean over all pairs of at least two rows of 1 minus their cosine: unlike the Vendi score, not a matter of how many they are."""
    unit_ND = _unit(features_ND)
    n, sum_D = len(unit_ND), unit_ND.sum(axis=0)
    return float(1 - (sum_D @ sum_D - (unit_ND**2).sum()) / (n * (n - 1)))


def vendi_score(features_ND: np.ndarray) -> float:
    """How many different images a set is worth: 1 if all are alike, N if no two have anything in common.

    The exponential of the entropy of the eigenvalues of K / N, where K holds the cosines of all pairs (Friedman & Dieng 2022,
    arXiv 2210.02410, definition 3.1). X'X / N has the same eigenvalues but for zeros.
    """
    unit_ND = _unit(features_ND)
    smaller = unit_ND @ unit_ND.T if len(unit_ND) < unit_ND.shape[1] else unit_ND.T @ unit_ND
    share = np.linalg.eigvalsh(smaller / len(unit_ND))
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


def classifier_accuracy(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], *, classes: int, decay: float = 1e-3
) -> float:
    """Share of the test images that a linear classifier, trained on the training images alone, puts into their class.

    Multinomial logistic regression on standardised features with a squared penalty of ``decay``, by L-BFGS from zero: one
    answer, no random start. With synthetic training and real test images it is the classification accuracy score of Ravuri & Vinyals
    2019 (arXiv 1905.10887), but for their classifier, a ResNet-50 on pixels.
    """
    (features_ND, label_N), (test_MD, test_label_M) = train, test
    mean_D, deviation_D = features_ND.mean(axis=0), features_ND.std(axis=0) + 1e-6
    x_NF, x_MF = (np.c_[(one - mean_D) / deviation_D, np.ones(len(one))].astype(np.float64) for one in (features_ND, test_MD))
    wanted_NC = np.eye(classes)[label_N]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_FC = flat.reshape(x_NF.shape[1], classes)
        logits_NC = x_NF @ weight_FC
        value = -(wanted_NC * log_softmax(logits_NC, axis=1)).sum() / len(x_NF) + decay * (weight_FC**2).sum()
        slope_FC = x_NF.T @ (softmax(logits_NC, axis=1) - wanted_NC) / len(x_NF) + 2 * decay * weight_FC
        return float(value), slope_FC.ravel()

    found = minimize(loss, np.zeros(x_NF.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return float(((x_MF @ found.x.reshape(-1, classes)).argmax(axis=1) == test_label_M).mean())


def _moments(features_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and R with R'R the covariance, of as many rows as its rank may have."""
    features_ND = features_ND.astype(np.float64)
    mean_D = features_ND.mean(axis=0)
    return mean_D, np.asarray(np.linalg.qr((features_ND - mean_D) / np.sqrt(len(features_ND) - 1), mode="r"))


def _unit(features_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return features_ND / np.maximum(np.linalg.norm(features_ND.astype(np.float64), axis=1, keepdims=True), 1e-12)


def _distances(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
    """Euclidean, float64 (N, M)."""
    one_ND, other_MD = one_ND.astype(np.float64), other_MD.astype(np.float64)
    squared_NM = (one_ND**2).sum(axis=1)[:, None] + (other_MD**2).sum(axis=1) - 2 * one_ND @ other_MD.T
    return np.sqrt(np.maximum(squared_NM, 0))


def _neighbour_distance(features_ND: np.ndarray, k: int) -> np.ndarray:
    """To the k-th nearest other row of the same set."""
    found = []
    for start in range(0, len(features_ND), BLOCK):
        distance_BN = _distances(features_ND[start : start + BLOCK], features_ND)
        rows = np.arange(len(distance_BN))
        distance_BN[rows, start + rows] = np.inf  # itself
        found.append(np.partition(distance_BN, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def _kernel_sum(one_ND: np.ndarray, other_MD: np.ndarray) -> float:
    one_ND, other_MD = one_ND.astype(np.float64), other_MD.astype(np.float64)
    blocks = (one_ND[start : start + BLOCK] for start in range(0, len(one_ND), BLOCK))
    return float(sum(((block @ other_MD.T / one_ND.shape[1] + 1) ** 3).sum() for block in blocks))


def _kernel_trace(features_ND: np.ndarray) -> float:
    return float((((features_ND.astype(np.float64) ** 2).sum(axis=1) / features_ND.shape[1] + 1) ** 3).sum())
