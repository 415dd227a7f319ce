"""What `cm3 plugin check` says of laws: that a component broke one that is checked wherever it is used, and
that a good plugin, the one that tests of training use, keeps them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from checked_plugins import GOOD, WriteFile
from cm3apps.cli.main import main
from cm3apps.plugin_check.checking import Options, check
from cm3apps.plugin_check.reporter import _detail
from cm3apps.plugin_check.worker import worded
from cm3core.interfaces.component import broken
from squares import PARTS

#: A tokenizer whose ids are too large: `encode` says so wherever it is used, in `build` too.
OUTSIDE = GOOD.replace(
    "        return ByteTokenizer()",
    """\
        class Outside(ByteTokenizer):
            def _encode(self, text):
                return [999]
        if self.size == 4:
            Outside().encode("a")
        return Outside()""",
)

#: A tokenizer that does not make the folder that it is saved into.
PLAIN = GOOD.replace("size", "vocab_size").replace(
    "        return ByteTokenizer()",
    """\
        list(corpus)
        class Plain(ByteTokenizer):
            def save(self, folder):
                (folder / "plain.txt").write_text("plain")
        return Plain()""",
)


def test_a_broken_law_does_not_name_the_check_that_is_running() -> None:
    error = broken("a text", "ids_are_in_range", "it returned ids 7..7")
    assert "`cm3 plugin check` tests all laws" in error.next_step
    assert worded(error) == (
        "breaks the law 'ids_are_in_range': it returned ids 7..7",
        "correct the plugin",
        "",
    )
    assert _detail(error) == ""


@pytest.mark.slow
def test_a_law_that_is_checked_where_the_component_is_used(write: WriteFile) -> None:
    argument = write(OUTSIDE)
    (report,) = check(
        argument, Options(max_examples=3, waived=[("", "special_ids_are_no_text", "x")])
    )
    failed = {one.subject: one for one in report.verdicts if one.status == "fail"}
    cause = "breaks the law 'ids_are_in_range': it returned ids 999..999, not a list of ids 0..255"
    whole = failed["text_tokenizer/characters ids_are_in_range"]
    assert whole.text == cause
    assert whole.next_step.startswith("the law: Ids are whole numbers 0..vocab_size-1")
    assert not any("tests all laws" in line for one in report.verdicts for line in one.lines())
    (report,) = check(argument, Options(overrides=["characters.size=4"]))
    built = next(one for one in report.verdicts if one.check == "build")
    assert (built.status, built.text, built.next_step) == ("fail", cause, "correct the plugin")
    assert 'Outside().encode("a")' in built.detail


@pytest.mark.slow
def test_the_parts_of_the_training_tests_keep_all_laws() -> None:
    (report,) = check(str(PARTS / "train_parts.py"), Options(max_examples=5))
    assert [one for one in report.verdicts if one.status != "ok"] == []
    assert {one.check for one in report.verdicts} == {
        "api",
        "hooks",
        "keys",
        "defaults",
        "names",
        "import",
        "build",
        "law",
    }


def test_a_new_folder_is_made_before_a_tokenizer_is_saved_into_it(
    write: WriteFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`save` may count on its folder, as the laws do: checkpoints make it, too."""
    plugin = write(PLAIN)
    (tmp_path / "corpus.txt").write_text("a text\n")
    command = ["--plugin", plugin, "tokenizer", "train-text", "corpus.txt", "--vocab-size", "3"]
    assert main([*command, "--tokenizer", "characters", "-o", "new/folder"]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "new/folder/plain.txt").read_text() == "plain"
