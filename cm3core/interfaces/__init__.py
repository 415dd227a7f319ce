"""The interfaces: one file per kind, each an abstract class and the base of its configs.

No module here imports torch. A kind's config is a plain dataclass: its fields are the keys of the
recipe's section, its docstring documents them, and its `build(...)` imports the heavy modules and
returns the component. Public methods validate their arguments and call one abstract method; batch
methods default to a loop.
"""

from cm3core.interfaces.attention import AttentionBackend, AttentionConfig
from cm3core.interfaces.component import ComponentConfig, check_value
from cm3core.interfaces.condition import Condition, ConditionConfig
from cm3core.interfaces.dataset import (
    DocumentSource,
    DocumentSourceConfig,
    Original,
    Provenance,
    SkippedRecord,
    TaskSource,
)
from cm3core.interfaces.decoder import (
    Decoder,
    DecoderConfig,
    InferenceDecoder,
    KVCache,
    TrainingMemory,
    TrainingPass,
)
from cm3core.interfaces.embedder import Embedder, EmbedderConfig, VectorArray, normalise
from cm3core.interfaces.extractor import Extractor, ExtractorConfig, FeatureArray
from cm3core.interfaces.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from cm3core.interfaces.layout import Boundary, Frame, Layout, LayoutConfig, VocabularyParts
from cm3core.interfaces.metric import COLUMNS, Metric, MetricBatch, MetricConfig, Score
from cm3core.interfaces.objective import MaskingObjective, ObjectiveConfig
from cm3core.interfaces.reach import CONNECTS, CREDENTIALS, READS, TEXT, WRITES, Outside, Reach
from cm3core.interfaces.reranker import (
    Candidate,
    Likelihood,
    LogProbability,
    Reranker,
    RerankerConfig,
)
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3core.interfaces.sampler import (
    Filters,
    GuidanceSchedule,
    GuidanceStream,
    ModelParts,
    PromptVariant,
    Sampler,
    SamplerConfig,
    SamplingPlan,
    StatefulSampler,
    share_draws,
)
from cm3core.interfaces.sampler_state import DrawState, InitialState, RequestStart
from cm3core.interfaces.task import Blank, Task, TaskConfig
from cm3core.interfaces.text_tokenizer import TextTokenizer, TextTokenizerConfig
from cm3core.interfaces.tracker import (
    CheckpointSaved,
    Measured,
    PictureDrawn,
    RunEnded,
    RunFailed,
    RunInterrupted,
    RunStarted,
    StepDone,
    Tracker,
    TrackerConfig,
    Validated,
)
from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig

__all__ = [
    "COLUMNS",
    "CONNECTS",
    "CREDENTIALS",
    "READS",
    "TEXT",
    "WRITES",
    "AttentionBackend",
    "AttentionConfig",
    "Blank",
    "Boundary",
    "Candidate",
    "CheckpointSaved",
    "ComponentConfig",
    "Condition",
    "ConditionConfig",
    "Decoder",
    "DecoderConfig",
    "DocumentSource",
    "DocumentSourceConfig",
    "DrawState",
    "Embedder",
    "EmbedderConfig",
    "Extractor",
    "ExtractorConfig",
    "FeatureArray",
    "Filters",
    "Frame",
    "GuidanceSchedule",
    "GuidanceStream",
    "ImageTokenizer",
    "ImageTokenizerConfig",
    "InferenceDecoder",
    "InitialState",
    "KVCache",
    "Layout",
    "LayoutConfig",
    "Likelihood",
    "LogProbability",
    "MaskingObjective",
    "Measured",
    "Metric",
    "MetricBatch",
    "MetricConfig",
    "ModelParts",
    "ObjectiveConfig",
    "Original",
    "Outside",
    "PictureDrawn",
    "PromptVariant",
    "Provenance",
    "Reach",
    "RequestStart",
    "Reranker",
    "RerankerConfig",
    "Retrieved",
    "Retriever",
    "RetrieverConfig",
    "RunEnded",
    "RunFailed",
    "RunInterrupted",
    "RunStarted",
    "Sampler",
    "SamplerConfig",
    "SamplingPlan",
    "Score",
    "SkippedRecord",
    "StatefulSampler",
    "StepDone",
    "Task",
    "TaskConfig",
    "TaskSource",
    "TextTokenizer",
    "TextTokenizerConfig",
    "Tracker",
    "TrackerConfig",
    "TrainingMemory",
    "TrainingPass",
    "Upscaler",
    "UpscalerConfig",
    "Validated",
    "VectorArray",
    "VocabularyParts",
    "check_value",
    "normalise",
    "share_draws",
]
