"""The fields of the routes that generate: what a body may hold, and what the documentation says of it."""

from __future__ import annotations

from cm3apps.server.conditions import condition_fields
from cm3apps.server.fields import Field
from cm3apps.server.settings import Limits

MAX_SEED = 2**63 - 1
#: Candidates at the quality "high", where the model can choose among them.
HIGH_QUALITY = 4
HIGH = ("high", "hd", "xhigh", "max")


def sampling_fields(limits: Limits) -> tuple[Field, ...]:
    """How results are drawn: in every route that generates."""
    text = limits.prompt_characters
    return (
        Field(
            name="seed",
            sort="whole",
            least=0,
            most=MAX_SEED,
            ours=True,
            help="the same seed gives the same result; by default another one each time",
        ),
        Field(
            name="guidance_scale",
            sort="number",
            least=0,
            most=100,
            ours=True,
            help="how strongly the prompt counts, where the sampler has guidance",
        ),
        Field(
            name="negative_prompt",
            sort="text",
            most=text,
            ours=True,
            help="what the picture should not show, where the sampler has guidance",
        ),
        Field(
            name="sampler",
            sort="text",
            most=100,
            ours=True,
            help="name of another sampler than the model's",
        ),
        Field(
            name="sampling",
            sort="object",
            ours=True,
            help="other keys of the sampler, such as temperature: numbers, flags and choices",
        ),
        Field(
            name="candidates",
            sort="whole",
            least=1,
            most=limits.candidates,
            ours=True,
            help="results that are generated for each one returned; the best is chosen",
        ),
        Field(
            name="reranker",
            sort="text",
            most=100,
            ours=True,
            help="name of another reranker than the model's",
        ),
        Field(
            name="num_retrieved",
            sort="whole",
            least=0,
            most=64,
            ours=True,
            help="documents that are retrieved and prepended",
        ),
        Field(
            name="documents",
            sort="list",
            most=limits.pictures,
            ours=True,
            help='documents to prepend: [{"image_url": "data:...", "text": "..."}]',
        ),
        Field(
            name="return_documents",
            sort="flag",
            ours=True,
            help="also return the pictures of the documents that were prepended; of a text, the documents",
        ),
        Field(
            name="truncate",
            sort="flag",
            ours=True,
            help="cut a prompt that is longer than the training texts instead of refusing it; of a "
            "conversation, leave out the oldest turns",
        ),
        Field(
            name="num_inference_steps",
            sort="whole",
            least=1,
            most=10_000,
            ours=True,
            ignored=True,
            help="accepted for clients of diffusion models, which have steps",
        ),
    )


def picture_fields(limits: Limits) -> tuple[Field, ...]:
    """What both routes of the Images API have."""
    return (
        Field(
            name="return_svg",
            sort="flag",
            ours=True,
            help="also return each picture traced as curves, an SVG",
        ),
        Field(name="model", sort="text", most=300, help="one of /v1/models; the first by default"),
        Field(
            name="n",
            sort="whole",
            least=1,
            most=limits.number,
            help="how many pictures; 1 by default",
        ),
        Field(
            name="size",
            sort="text",
            most=20,
            help="auto, the model's own size, or WIDTHxHEIGHT in its aspect ratio",
        ),
        Field(
            name="quality",
            sort="choice",
            choices=("auto", "low", "medium", "standard", *HIGH),
            help=f"high: the best of {HIGH_QUALITY} candidates, if the model can choose",
        ),
        Field(
            name="output_format",
            sort="choice",
            choices=("png", "jpeg", "webp"),
            help="of the pictures; PNG carries prompt, seed and model as text",
        ),
        Field(
            name="output_compression",
            sort="whole",
            least=0,
            most=100,
            help="quality of JPEG and WebP in percent",
        ),
        Field(
            name="background",
            sort="choice",
            choices=("auto", "opaque", "transparent"),
            help="transparent: the white around the drawing is removed (PNG, WebP)",
        ),
        Field(
            name="response_format",
            sort="choice",
            choices=("b64_json", "url"),
            help="url: as a data: URL, nothing is stored",
        ),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(
            name="partial_images",
            sort="whole",
            least=0,
            most=256,
            help="with stream: pictures of the rows finished so far, before each final one",
        ),
        Field(
            name="moderation",
            sort="choice",
            choices=("auto", "low"),
            ignored=True,
            help="there is none here",
        ),
        Field(
            name="style",
            sort="choice",
            choices=("vivid", "natural"),
            ignored=True,
            help="write the style into the prompt",
        ),
        Field(name="user", sort="text", most=512, ignored=True, help="your name for your user"),
        Field(
            name="safety_identifier",
            sort="text",
            most=512,
            ignored=True,
            help="your name for your user",
        ),
        *sampling_fields(limits),
    )


def generation_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/images/generations`."""
    prompt = Field(
        name="prompt",
        sort="text",
        most=limits.prompt_characters,
        required=True,
        help="what the picture shows, worded like the training captions",
    )
    return (prompt, *condition_fields(), *picture_fields(limits))


def edit_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/images/edits`."""
    return (
        Field(
            name="prompt",
            sort="text",
            most=limits.prompt_characters,
            help="with a mask: what the whole picture should show (none: the model describes it); "
            "without: an instruction",
        ),
        Field(name="image", sort="picture", help="the picture, as a file of the form"),
        Field(
            name="images",
            sort="list",
            most=limits.pictures,
            help='in JSON: [{"image_url": "data:image/png;base64,..."}]',
        ),
        Field(
            name="mask",
            sort="picture",
            help="a PNG of the same size whose fully transparent pixels are filled; in JSON "
            '{"image_url": "data:..."}',
        ),
        Field(
            name="input_fidelity",
            sort="choice",
            choices=("high", "low"),
            ignored=True,
            help="what is not masked stays exactly as it is",
        ),
        *picture_fields(limits),
    )


def chat_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/chat/completions`."""
    return (
        Field(name="model", sort="text", most=300, help="one of /v1/models; the first by default"),
        Field(
            name="messages",
            sort="list",
            most=1000,
            required=True,
            help="the last message of the user counts, and the last picture before its end; all turns "
            "where the model was tuned for chat",
        ),
        Field(
            name="modalities",
            sort="list",
            most=4,
            help='["image"]: answer with a picture; ["text"]: with a text',
        ),
        Field(name="n", sort="whole", least=1, most=limits.number, help="how many answers"),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(name="stream_options", sort="object", help="include_usage"),
        Field(
            name="partial_images",
            sort="whole",
            least=0,
            most=3,
            ours=True,
            help="with stream, where the model's layout has turns: pictures of the rows finished so "
            "far, before each final one",
        ),
        Field(name="max_tokens", sort="whole", least=1, most=100_000, help="most tokens of a text"),
        Field(
            name="max_completion_tokens",
            sort="whole",
            least=1,
            most=100_000,
            help="most tokens of a text",
        ),
        Field(
            name="temperature",
            sort="number",
            least=0,
            most=2,
            help="of the sampler: of texts for a text, of pictures for a picture",
        ),
        Field(name="top_p", sort="number", least=0, most=1, help="of the sampler, as temperature"),
        *(
            Field(
                name=name,
                sort="number",
                least=0,
                most=0,
                ignored=True,
                help="there is none: only the default of clients that always send it, 0",
            )
            for name in ("frequency_penalty", "presence_penalty")
        ),
        Field(name="user", sort="text", most=512, ignored=True, help="your name for your user"),
        *sampling_fields(limits),
    )


def structure_fields() -> tuple[Field, ...]:
    """`POST /v1/conditions`."""
    return (
        Field(
            name="condition",
            sort="text",
            most=300,
            required=True,
            ours=True,
            help="what is drawn of the picture: one of `conditions` of /studio/facts, such as canny",
        ),
        Field(
            name="image_url",
            sort="text",
            required=True,
            ours=True,
            help="the picture, as data:image/png;base64,...",
        ),
        Field(
            name="model",
            sort="text",
            most=300,
            help="one of /v1/models, which is to follow the structure; the first by default",
        ),
    )
