"""Configs of the bundled metrics. `build` imports the implementations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cm3core.files import sha256_file, user_path
from cm3core.interfaces.metric import Metric, MetricConfig
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.metrics.of_texts import (
    BLEUConfig,
    CIDErConfig,
    ExactMatchConfig,
    METEORConfig,
    ROUGEConfig,
    SPICEConfig,
    VQAConfig,
)

_COUNT = (1, 2**20)
_SEED = (0, 2**63 - 1)


@dataclass(kw_only=True)
class FIDConfig(MetricConfig):
    """Frechet distance between the features of pictures and reference pictures.

    It is biased for few pictures: scores of different numbers of pictures can't be compared, and below a few
    thousand it is mostly bias. If a set has no more pictures than features, its covariance is singular, and
    the score says so. With the extractor `inception` it is the Frechet inception distance (FID); with
    another extractor only the formula is the same.

    Args:
        minimum: minimum number of pictures in each set. With fewer than 2,049 the covariance
            of 2,048 features is singular.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"minimum": (2, 2**31)}
    minimum: int = 2

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.frechet import FrechetMetric

        self.check()
        return FrechetMetric(self.minimum)


@dataclass(kw_only=True)
class KIDConfig(MetricConfig):
    """Kernel inception distance: unbiased, so suitable for few pictures.

    The spread is the standard deviation over the subsets.

    Args:
        num_subsets: number of random subsets of both sets; their distances are averaged.
        subset_size: pictures per subset, and minimum number of pictures in each set.
        seed: seed of the subsets.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "num_subsets": _COUNT,
        "subset_size": (2, 2**16),
        "seed": _SEED,
    }
    num_subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.kid import KIDMetric

        self.check()
        return KIDMetric(self.num_subsets, self.subset_size, self.seed)


@dataclass(kw_only=True)
class PRDCConfig(MetricConfig):
    """Precision, recall, density and coverage of the pictures among the reference pictures.

    Args:
        k: a picture's radius is the distance to its k-th neighbour, not counting itself.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k": (1, 2**16)}
    k: int = 5

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.manifold import ManifoldMetric

        self.check()
        return ManifoldMetric(self.k)


@dataclass(kw_only=True)
class CLIPScoreConfig(MetricConfig):
    """Mean cosine of picture and prompt, from an extractor that reads both.

    Args:
        weight: factor of the cosine (100; Hessel et al.: 2.5).
        clip_below_zero: count a negative cosine as 0, as Hessel et al. do.
        prefix: text prepended to each prompt, e.g. "A photo depicts ".
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "prefix": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"weight": (1e-6, 1e6)}
    weight: float = 100.0
    clip_below_zero: bool = False
    prefix: str = ""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.alignment import CLIPScoreMetric

        self.check()
        return CLIPScoreMetric(self.weight, self.clip_below_zero)


@dataclass(kw_only=True)
class RPrecisionConfig(MetricConfig):
    """How often a picture fits its own prompt better than other samples' prompts.

    Args:
        num_others: number of other prompts, drawn for each picture.
        seed: seed of that draw.
        prefix: text prepended to each prompt.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "prefix": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"num_others": _COUNT, "seed": _SEED}
    num_others: int = 99
    seed: int = 0
    prefix: str = ""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.alignment import RPrecisionMetric

        self.check()
        return RPrecisionMetric(self.num_others, self.seed)


@dataclass(kw_only=True)
class JudgeConfig(MetricConfig):
    """How often the real picture is the nearest, or among the five nearest, of 100 real ones, in percent.

    For icons, all 100 come from one set and style and show different objects; for other data sets they come
    from the training data. An evaluation also reports the score of real pictures, of real pictures after the
    image tokenizer, and of copies of the first prepended document.

    Args:
        centred: compare directions from the mean of the 100 instead of distances, for features of a
            network.
    """

    bounded: ClassVar[bool] = True
    centred: bool = False

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.ranking import JudgeMetric

        return JudgeMetric(self.centred)


@dataclass(kw_only=True)
class ChoiceConfig(MetricConfig):
    """How often the right answer scores highest among several (ScienceQA, R@1 of captions)."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.likelihood import ChoiceMetric

        return ChoiceMetric()


@dataclass(kw_only=True)
class NatsConfig(MetricConfig):
    """-log p per token of the true picture or text.

    Args:
        modality: "image" or "text" tokens.
    """

    modality: Literal["image", "text"] = "image"

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.likelihood import NatsMetric

        return NatsMetric(self.modality)


@dataclass(kw_only=True)
class HeldOutLossConfig(MetricConfig):
    """-log p per token of the true picture, given its text and the documents that the model retrieves for it: for each
    document, and the mean over documents.

    `nats` prepends no document, and weighs documents by their number of tokens.
    """

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.likelihood import HeldOutLossMetric

        return HeldOutLossMetric()


@dataclass(kw_only=True)
class CodebookConfig(MetricConfig):
    """Share of the codebook in use, and the perplexity of the codes' frequencies.

    Args:
        codebook_size: codebook size of the image tokenizer.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"codebook_size": (1, 2**24)}
    codebook_size: int = 8192

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.likelihood import CodebookMetric

        self.check()
        return CodebookMetric(self.codebook_size)


@dataclass(kw_only=True)
class PSNRConfig(MetricConfig):
    """Mean peak signal-to-noise ratio of pictures and their references, dB; 100 for equal ones."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.fidelity import PSNRMetric

        return PSNRMetric()


@dataclass(kw_only=True)
class SSIMConfig(MetricConfig):
    """Mean structural similarity of pictures and their references, 1 for equal ones."""

    def build(self) -> Metric:
        """Return a metric without samples."""
        from cm3plugins.metrics.fidelity import SSIMMetric

        return SSIMMetric()


@dataclass(kw_only=True)
class LPIPSConfig(MetricConfig):
    """Learned perceptual distance (LPIPS 0.1) of pictures and their references, 0 for equal ones.

    Provide both files yourself; nothing is downloaded, and no code in them is run. Scores depend on their
    SHA-256, not on their paths.

    Args:
        backbone: torchvision's weights of the network, e.g. `alexnet-owt-7be5be79.pth` or
            `vgg16-397923af.pth`.
        heads: the `lpips` package's `weights/v0.1/alex.pth` or `vgg.pth`.
        network: which network. Published figures of image tokenizers mostly use vgg, others alex; they
            can't be compared.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "backbone": Outside(READS, "the network's weights"),
        "heads": Outside(READS, "the weights of its heads"),
    }

    backbone: str
    heads: str
    network: Literal["alex", "vgg"] = "alex"

    def build(self) -> Metric:
        """Load the weights.

        Raises:
            CheckpointError: a file is missing, or holds other tensors or more than tensors.
        """
        from cm3plugins.metrics.lpips import load_lpips

        self.check()
        return load_lpips(self.network, user_path(self.backbone), user_path(self.heads))

    def protocol(self) -> dict[str, Any]:
        """Return the keys, with the hashes of the files instead of their paths."""
        hashes = {key: sha256_file(user_path(getattr(self, key))) for key in ("backbone", "heads")}
        return super().protocol() | hashes


METRICS: Mapping[str, type[MetricConfig]] = {
    "bleu": BLEUConfig,
    "choice": ChoiceConfig,
    "cider": CIDErConfig,
    "clip_score": CLIPScoreConfig,
    "codebook": CodebookConfig,
    "exact_match": ExactMatchConfig,
    "fid": FIDConfig,
    "held_out_loss": HeldOutLossConfig,
    "judge": JudgeConfig,
    "kid": KIDConfig,
    "lpips": LPIPSConfig,
    "meteor": METEORConfig,
    "nats": NatsConfig,
    "prdc": PRDCConfig,
    "psnr": PSNRConfig,
    "r_precision": RPrecisionConfig,
    "rouge": ROUGEConfig,
    "spice": SPICEConfig,
    "ssim": SSIMConfig,
    "vqa": VQAConfig,
}
