"""The pinned npm packages from which the emoji corpus is built, and their different names for the same
picture.

Pictures come from five Iconify packages; English names, categories and keywords from two metadata
packages. To change a version, change its checksum here and run ``build.py`` again.
"""

from __future__ import annotations

from cm3plugins.datasets.vector.packages import NpmPackage

STYLE_PACKAGES: dict[str, NpmPackage] = {
    "noto": NpmPackage(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "noto-v1": NpmPackage(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    "fluent": NpmPackage(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "twemoji": NpmPackage(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "emojione": NpmPackage(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
}
"""Style name, as typed by users -> the package with its pictures. The order is the corpus
order."""

NAMES_PACKAGE = NpmPackage(
    "unicode-emoji-json",
    "0.9.0",
    "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
)
KEYWORDS_PACKAGE = NpmPackage(
    "emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303"
)

ALL_PACKAGES: tuple[NpmPackage, ...] = (*STYLE_PACKAGES.values(), NAMES_PACKAGE, KEYWORDS_PACKAGE)

# noto-v1 and emojione have no code points, and use older Unicode names for some pictures than
# unicode-emoji-json does.
OLD_NAMES: dict[str, str] = {
    "asterisk": "keycap-*",
    "keycap-pound": "keycap-#",
    "digit-zero": "keycap-0",
    "digit-one": "keycap-1",
    "digit-two": "keycap-2",
    "digit-three": "keycap-3",
    "digit-four": "keycap-4",
    "digit-five": "keycap-5",
    "digit-six": "keycap-6",
    "digit-seven": "keycap-7",
    "digit-eight": "keycap-8",
    "digit-nine": "keycap-9",
    "direct-hit": "bullseye",
    "dizzy-face": "face with crossed-out eyes",
    "exclamation-mark": "red exclamation mark",
    "question-mark": "red question mark",
    "hugging-face": "smiling face with open hands",
    "pistol": "water pistol",
    "pouting-face": "enraged face",
    "blond-haired-person": "person blond hair",
    "bride-with-veil": "person with veil",
    "heavy-heart-exclamation": "heart exclamation",
    "man-and-woman-holding-hands": "woman and man holding hands",
    "two-men-holding-hands": "men holding hands",
    "two-women-holding-hands": "women holding hands",
    "man-in-suit-levitating": "person in suit levitating",
    "man-with-chinese-cap": "person with skullcap",
    "robot-face": "robot",
    "up-text-button": "up! button",
    "cat-face-with-tears-of-joy": "cat with tears of joy",
    "cat-face-with-wry-smile": "cat with wry smile",
    "crying-cat-face": "crying cat",
    "grinning-cat-face": "grinning cat",
    "grinning-cat-face-with-smiling-eyes": "grinning cat with smiling eyes",
    "kissing-cat-face": "kissing cat",
    "pouting-cat-face": "pouting cat",
    "smiling-cat-face-with-heart-eyes": "smiling cat with heart-eyes",
    "weary-cat-face": "weary cat",
}

LICENCES = {
    "noto": ("Apache-2.0", "Google Inc, https://github.com/googlefonts/noto-emoji"),
    "noto-v1": ("Apache-2.0", "Google Inc, https://github.com/googlefonts/noto-emoji"),
    "fluent": ("MIT", "Microsoft Corporation, https://github.com/microsoft/fluentui-emoji"),
    "twemoji": ("CC-BY-4.0", "Twitter and contributors, https://github.com/jdecked/twemoji"),
    "emojione": (
        "CC-BY-4.0",
        "Emoji One and EmojiTwo contributors, https://github.com/EmojiTwo/emojitwo",
    ),
}
"""Style -> SPDX name of the licence and author, as stated in its package."""
