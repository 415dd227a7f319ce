"""The bundled implementations. They register exactly like third-party plugins.

There is a folder for each kind, `scenes` for the data set of that name and its judges, and two folders shared by kinds:
`trained` and `vision`. The config classes named here are in light modules; `build` imports the implementations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.hookspecs import hookimpl
from cm3core.interfaces.component import Kind
from cm3plugins.beside import CM3_BESIDE as CM3_BESIDE

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionConfig
    from cm3core.interfaces.condition import ConditionConfig
    from cm3core.interfaces.dataset import DocumentSourceConfig
    from cm3core.interfaces.decoder import DecoderConfig
    from cm3core.interfaces.embedder import EmbedderConfig
    from cm3core.interfaces.extractor import ExtractorConfig
    from cm3core.interfaces.image_tokenizer import ImageTokenizerConfig
    from cm3core.interfaces.layout import LayoutConfig
    from cm3core.interfaces.metric import MetricConfig
    from cm3core.interfaces.objective import ObjectiveConfig
    from cm3core.interfaces.reranker import RerankerConfig
    from cm3core.interfaces.retriever import RetrieverConfig
    from cm3core.interfaces.sampler import SamplerConfig
    from cm3core.interfaces.task import TaskConfig
    from cm3core.interfaces.text_tokenizer import TextTokenizerConfig
    from cm3core.interfaces.tracker import TrackerConfig
    from cm3core.interfaces.upscaler import UpscalerConfig

CM3_API = 1

#: The model that is opened if none is named, and no other plugin offers one of a higher rank.
CM3_DEFAULT_MODELS = {"emoji64": 0}

#: Components that were removed: what to do instead.
CM3_GONE = {
    "embedder/bi_encoder": "use embedder=light_encoder, which finds names and pictures; or minilm, which finds texts by "
    "meaning",
    "prompt_rewriter/word_lists": "remove the section 'prompt_rewriter'; the retriever hybrid finds things that are "
    "worded otherwise (retriever: {name: hybrid, encoder: minilm})",
}


@hookimpl
def cm3_kinds() -> Sequence[Kind]:
    from cm3run.prompting import FinisherConfig, PromptRewriterConfig

    return [
        Kind(
            hook="cm3_prompt_rewriters",
            config=PromptRewriterConfig,
            interface="PromptRewriter",
            kit="cm3kits.prompting:PromptRewriterContract",
            words="prompt rewriter",
            summary="Prompt rewriters: a prompt -> the text that the memory is searched for",
        ),
        Kind(
            hook="cm3_finishers",
            config=FinisherConfig,
            interface="Finisher",
            kit="cm3kits.prompting:FinisherContract",
            words="finisher",
            summary="Finishers: a generated picture -> the picture to show, and its SVG",
        ),
    ]


@hookimpl
def cm3_image_tokenizers() -> Mapping[str, type[ImageTokenizerConfig]]:
    from cm3plugins.image_tokenizers.bitwise import BitwiseTokenizerConfig
    from cm3plugins.image_tokenizers.ordered import OrderedTokenizerConfig
    from cm3plugins.image_tokenizers.patches import PatchTokenizerConfig
    from cm3plugins.image_tokenizers.product import ProductTokenizerConfig
    from cm3plugins.image_tokenizers.residual import ResidualTokenizerConfig
    from cm3plugins.image_tokenizers.vqgan import VQGANConfig

    return {
        "bitwise": BitwiseTokenizerConfig,
        "product": ProductTokenizerConfig,
        "ordered": OrderedTokenizerConfig,
        "patches": PatchTokenizerConfig,
        "residual": ResidualTokenizerConfig,
        "vqgan": VQGANConfig,
    }


@hookimpl
def cm3_text_tokenizers() -> Mapping[str, type[TextTokenizerConfig]]:
    from cm3plugins.text_tokenizers.bpe import BPETokenizerConfig
    from cm3plugins.text_tokenizers.byte import ByteTokenizerConfig
    from cm3plugins.text_tokenizers.classes import ClassesConfig
    from cm3plugins.text_tokenizers.published import (
        HFTokenizerConfig,
        SentencePieceConfig,
        TiktokenConfig,
    )

    return {
        "bpe": BPETokenizerConfig,
        "byte": ByteTokenizerConfig,
        "classes": ClassesConfig,
        "hf": HFTokenizerConfig,
        "sentencepiece": SentencePieceConfig,
        "tiktoken": TiktokenConfig,
    }


@hookimpl
def cm3_layouts() -> Mapping[str, type[LayoutConfig]]:
    from cm3plugins.layouts.cm3leon import CM3LeonLayoutConfig

    return {"cm3leon": CM3LeonLayoutConfig}


@hookimpl
def cm3_embedders() -> Mapping[str, type[EmbedderConfig]]:
    from cm3plugins import embedders

    return {
        "clip": embedders.CLIPConfig,
        "light_encoder": embedders.LightEncoderConfig,
        "minilm": embedders.MiniLMConfig,
    }


@hookimpl
def cm3_retrievers() -> Mapping[str, type[RetrieverConfig]]:
    from cm3plugins import retrievers

    return {
        "bm25": retrievers.BM25RetrieverConfig,
        "dense": retrievers.DenseRetrieverConfig,
        "hybrid": retrievers.HybridRetrieverConfig,
        "none": retrievers.NoRetrieverConfig,
        "random": retrievers.RandomRetrieverConfig,
        "usearch": retrievers.UsearchRetrieverConfig,
    }


@hookimpl
def cm3_objectives() -> Mapping[str, type[ObjectiveConfig]]:
    from cm3plugins.objectives.causal import CausalObjectiveConfig
    from cm3plugins.objectives.cm3 import CM3ObjectiveConfig
    from cm3plugins.objectives.fim import FIMObjectiveConfig

    return {"causal": CausalObjectiveConfig, "cm3": CM3ObjectiveConfig, "fim": FIMObjectiveConfig}


@hookimpl
def cm3_decoders() -> Mapping[str, type[DecoderConfig]]:
    from cm3plugins.decoders.cm3leon import CM3LeonConfig
    from cm3plugins.decoders.llama import LlamaConfig
    from cm3plugins.decoders.places import PlacesConfig

    return {"cm3leon": CM3LeonConfig, "llama": LlamaConfig, "places": PlacesConfig}


@hookimpl
def cm3_attention_backends() -> Mapping[str, type[AttentionConfig]]:
    from cm3plugins import attention

    return {
        "flex": attention.FlexAttentionConfig,
        "reference": attention.ReferenceAttentionConfig,
        "by_device": attention.ByDeviceAttentionConfig,
        "sdpa": attention.SDPAAttentionConfig,
        "triton": attention.TritonAttentionConfig,
        "xformers": attention.XFormersAttentionConfig,
    }


@hookimpl
def cm3_samplers() -> Mapping[str, type[SamplerConfig]]:
    from cm3plugins.samplers.cfg import (
        CFGSamplerConfig,
        EditCFGSamplerConfig,
        RetrievalCFGSamplerConfig,
        StructureCFGSamplerConfig,
        TopPSamplerConfig,
    )
    from cm3plugins.samplers.contrastive import (
        CDKSamplerConfig,
        ContrastiveSamplerConfig,
        MixtureSamplerConfig,
    )
    from cm3plugins.samplers.patch_knn import PatchKNNSamplerConfig

    return {
        "cd_k": CDKSamplerConfig,
        "cfg": CFGSamplerConfig,
        "contrastive": ContrastiveSamplerConfig,
        "edit_cfg": EditCFGSamplerConfig,
        "structure_cfg": StructureCFGSamplerConfig,
        "mixture": MixtureSamplerConfig,
        "patch_knn": PatchKNNSamplerConfig,
        "retrieval_cfg": RetrievalCFGSamplerConfig,
        "top_p": TopPSamplerConfig,
    }


@hookimpl
def cm3_tasks() -> Mapping[str, type[TaskConfig]]:
    from cm3plugins.tasks.bundled import TASKS
    from cm3plugins.tasks.worded import TemplateTaskConfig

    return {**TASKS, "template": TemplateTaskConfig}


@hookimpl
def cm3_rerankers() -> Mapping[str, type[RerankerConfig]]:
    from cm3plugins.rerankers import ClipRerankerConfig, LikelihoodRerankerConfig, PMIRerankerConfig

    return {
        "clip": ClipRerankerConfig,
        "likelihood": LikelihoodRerankerConfig,
        "pmi": PMIRerankerConfig,
    }


@hookimpl
def cm3_upscalers() -> Mapping[str, type[UpscalerConfig]]:
    from cm3plugins.upscalers import EDSRConfig, ExternalUpscalerConfig, LanczosUpscalerConfig

    return {
        "edsr": EDSRConfig,
        "external": ExternalUpscalerConfig,
        "lanczos": LanczosUpscalerConfig,
    }


@hookimpl
def cm3_datasets() -> Mapping[str, type[DocumentSourceConfig]]:
    from cm3plugins.datasets.coco import COCOConfig
    from cm3plugins.datasets.conditioned import ConditionedConfig
    from cm3plugins.datasets.conversations import ConversationsConfig
    from cm3plugins.datasets.emoji import EmojiSourceConfig
    from cm3plugins.datasets.folder import FolderSourceConfig
    from cm3plugins.datasets.jsonl import JSONLSourceConfig
    from cm3plugins.datasets.mixture import MixtureConfig
    from cm3plugins.datasets.picture_pairs import PicturePairsConfig
    from cm3plugins.datasets.svg_folder import SvgFolderConfig
    from cm3plugins.datasets.table import TableSourceConfig
    from cm3plugins.datasets.tokens import TokensSourceConfig
    from cm3plugins.datasets.tuxpaint import TuxPaintSourceConfig
    from cm3plugins.datasets.vqa import VQAConfig
    from cm3plugins.datasets.webdataset import WebDatasetSourceConfig
    from cm3plugins.scenes.config import ScenesConfig

    return {
        "coco": COCOConfig,
        "conditioned": ConditionedConfig,
        "conversations": ConversationsConfig,
        "emoji": EmojiSourceConfig,
        "folder": FolderSourceConfig,
        "jsonl": JSONLSourceConfig,
        "mixture": MixtureConfig,
        "picture_pairs": PicturePairsConfig,
        "scenes": ScenesConfig,
        "table": TableSourceConfig,
        "tokens": TokensSourceConfig,
        "svg_folder": SvgFolderConfig,
        "tuxpaint": TuxPaintSourceConfig,
        "vqa": VQAConfig,
        "webdataset": WebDatasetSourceConfig,
    }


@hookimpl
def cm3_extractors() -> Mapping[str, type[ExtractorConfig]]:
    from cm3plugins.extractors import EXTRACTORS

    return EXTRACTORS


@hookimpl
def cm3_metrics() -> Mapping[str, type[MetricConfig]]:
    from cm3plugins.metrics import METRICS
    from cm3plugins.scenes.judging import METRICS as SCENE_METRICS

    return {**METRICS, **SCENE_METRICS}


@hookimpl
def cm3_conditions() -> Mapping[str, type[ConditionConfig]]:
    from cm3plugins.conditions import CONDITIONS

    return CONDITIONS


@hookimpl
def cm3_models() -> Mapping[str, Path]:
    folder = Path(__file__).parent / "assets" / "models"
    return {model.parent.name: model.parent for model in sorted(folder.glob("*/state.json"))}


@hookimpl
def cm3_trackers() -> Mapping[str, type[TrackerConfig]]:
    from cm3plugins.trackers import TRACKERS

    return TRACKERS
