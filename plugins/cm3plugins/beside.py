"""Which distribution has what this one had, or what its users may ask for: an error says how to install it."""

from __future__ import annotations

#: Components, models, recipes and weights that moved from here to other distributions.
CM3_BESIDE = {
    "decoder/glm_image": "cm3published",
    "model/icons64": "cm3lab",
    **{
        f"{kind}/{name}": "cm3icons"
        for kind, names in {
            "dataset": ("icon_tasks", "icons"),
            "finisher": ("icon",),
            "image_tokenizer": ("outlines", "svg"),
            "metric": ("hand", "icon_style", "thing", "usable"),
            "model": ("icons64-hands", "icons64-tuned"),
            "protocol": (
                *(
                    "icons-comp-v1",
                    "icons-compose-v1",
                    "icons-unseen-v1",
                    "icons-missing-closed-v2",
                ),
                *(
                    f"icons-{split}-closed-v{version}"
                    for split in ("compose", "restyle", "strangers", "unseen", "variant")
                    for version in (1, 2)
                ),
            ),
            "recipe": (
                *(
                    "claims/candidates",
                    "icons",
                    "icons-hands",
                    "icons-ink",
                    "icons-svg",
                    "icons-tuned",
                ),
                *("outlines-tiny", "quickstart", "retrieval-gain", "tokenizer-icons-ink"),
                "tokenizer-icons64",
            ),
            "retriever": ("facets",),
            "upscaler": ("ink",),
            "weights": ("icons", "icons64", "icons64-ink"),
        }.items()
        for name in names
    },
    "retriever/pgvector": "cm3postgres",
    **{
        f"image_tokenizer/{name}": "cm3published"
        for name in (
            *("chameleon", "dall_e", "emu3", "glm_image", "ibq", "ldm", "llamagen", "movq"),
            "taming",
        )
    },
    **{
        f"layout/{name}": "cm3published"
        for name in ("chameleon", "emu3", "emu3_5", "glm_image", "janus", "llamagen", "lumina")
    },
    **{f"recipe/chameleon-{name}": "cm3published" for name in ("head", "lora")},
    "sampler/chameleon": "cm3published",
    **{
        f"task/{name}": "cm3published"
        for name in (
            *("emu3_5_draw", "emu3_5_edit", "emu3_caption", "emu3_question"),
            "lumina_draw",
        )
    },
}
