"""METEOR and SPICE: METEOR's own form beside nltk; the jars beside programs that answer as they do, and the real
METEOR 1.5 where pycocoevalcap and Java are there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CM3Error, DataError, MissingPackageError
from cm3core.files import sha256_file
from cm3core.interfaces.metric import MetricBatch
from cm3kits.metric import MetricContract
from cm3plugins.metrics import METEORConfig, SPICEConfig
from cm3plugins.metrics.captions import caption_words
from cm3plugins.metrics.meteor import PARSER, meteor_exact_stem, porter_stemmer, run_java
from messages import tells

WORDS = ["a", "dog", "dogs", "running", "runs", "run", "red", "sits", "sitting", "on", "the"]
#: Answers as METEOR 1.5 does: the words of each caption that are in a reference; of all captions, their share.
FAKE_METEOR = """#!{python}
import sys
assert sys.argv[1] == "-Xmx2G" and sys.argv[-6:] == ["-", "-", "-stdio", "-l", "en", "-norm"], sys.argv
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        *references, words = parts
        known = {{word for one in references for word in one.split()}}
        print(sum(word in known for word in words.split()), len(words.split()))
    else:
        pairs = [tuple(map(int, one.split())) for one in parts]
        for right, number in pairs:
            print(right / number)
        print(sum(right for right, _ in pairs) / sum(number for _, number in pairs))
"""
FAKE_SPICE = """#!{python}
import json, os, sys
assert os.path.isfile("spice-1.0.jar") and sys.argv[-2:] == ["-subset", "-silent"], sys.argv
rows = json.load(open(sys.argv[4]))
def f(row):
    return float("nan") if row["test"] == "nothing" else 1.0 if row["test"] in row["refs"] else 0.25
json.dump([{{"image_id": row["image_id"], "scores": {{"All": {{"f": f(row)}}}}}} for row in rows], open(sys.argv[6], "w"))
"""


def fake_java(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    path = folder / "bin" / "java"
    path.write_text(program.format(python=sys.executable))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))


def jars(folder: Path) -> tuple[Path, Path]:
    (folder / "lib").mkdir()
    for name in ("meteor-1.5.jar", "spice-1.0.jar", *(f"lib/{one}" for one in PARSER)):
        (folder / name).write_bytes(name.encode())
    return folder / "meteor-1.5.jar", folder / "spice-1.0.jar"


def batch(texts: list[str], references: list[list[str]]) -> MetricBatch:
    return MetricBatch(range(len(texts)), {"texts": texts, "references": references})


TRACE = """Parsing captions
Exception in thread "main" java.lang.RuntimeException: no parser
\tat edu.stanford.Parser.load(Parser.java:80)
Caused by: java.io.IOException: Unable to open "englishPCFG.ser.gz"
\tat edu.stanford.IOUtils.open(IOUtils.java:448)
\t... 15 more
"""


def test_of_a_program_that_fails_the_innermost_cause_is_told(tmp_path, monkeypatch) -> None:
    for number, (printed, told) in enumerate(
        {
            TRACE: 'Caused by: java.io.IOException: Unable to open "englishPCFG.ser.gz"',
            "one\n  two\n": "one two",
            "": "exit code 3",
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        program = f"#!{{python}}\nimport sys\nsys.stderr.write({printed!r})\nsys.exit(3)\n"
        fake_java(folder, program, monkeypatch)
        with pytest.raises(DataError) as error:
            run_java(["-jar", "a.jar"])
        assert tells(error.value, f"java -jar a.jar: failed: {told}")


class TestExactStem(MetricContract):
    config = METEORConfig()

    def known_answers(self) -> Any:
        # two of three and of four words match, in one chunk of two
        sample = batch(["A dog sat."], [["cats", "the dogs sat down"]])
        mean = (2 / 3) * (2 / 4) / (0.9 * 2 / 3 + 0.1 * 2 / 4)
        return [([sample], {"meteor_exact_stem": 100 * mean * (1 - 0.5 / 8)})]


@given(
    st.lists(st.sampled_from(WORDS), max_size=9),
    st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1),
)
def test_equal_to_nltk(words: list[str], references: list[list[str]]) -> None:
    theirs = pytest.importorskip("nltk.translate.meteor_score", reason="nltk is the oracle")

    class Porter:
        stem = staticmethod(porter_stemmer())

    class NoWordNet:
        def synsets(self, word: str) -> list[Any]:
            return []

    wanted = theirs.meteor_score(references, words, stemmer=Porter(), wordnet=NoWordNet())
    found = max(meteor_exact_stem(words, one, porter_stemmer()) for one in references)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_a_missing_stemmer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snowballstemmer", None)
    with pytest.raises(MissingPackageError) as caught:
        METEORConfig().build()
    assert tells(caught.value, "metric 'meteor': the package 'snowballstemmer'")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meteor", "spice"])
def test_the_laws_of_the_jars(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meteor, spice = jars(tmp_path)
    fake_java(tmp_path, FAKE_METEOR if name == "meteor" else FAKE_SPICE, monkeypatch)
    config: Any = METEORConfig(jar=str(meteor)) if name == "meteor" else SPICEConfig(jar=str(spice))
    contract: Any = MetricContract.for_config(config, max_examples=1)()
    for law in contract.laws():
        if not law.startswith("batch_size"):  # a start of Java for each
            getattr(contract, f"test_{law}")()


def test_the_jars_answers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meteor, spice = jars(tmp_path)
    samples = batch(["A dog!", "two cats", "nothing"], [["a dog", "x"], ["a cat"], ["a"]])
    fake_java(tmp_path, FAKE_METEOR, monkeypatch)
    config: Any = METEORConfig(jar=str(meteor))
    metric = config.build()
    metric.update(samples)
    [score] = metric.result()
    assert (score.name, score.num, score.value) == ("meteor", 3, pytest.approx(100 * 2 / 5))
    assert config.protocol()["jar"] == sha256_file(meteor)
    shutil.rmtree(tmp_path / "bin")
    fake_java(tmp_path, FAKE_SPICE, monkeypatch)
    config = SPICEConfig(jar=str(spice))
    metric = config.build()
    metric.update(batch(["a dog", "two cats", "nothing"], [["a dog", "x"], ["a cat"], ["a"]]))
    [score] = metric.result()
    assert dict(score.per_sample) == {0: 100.0, 1: 25.0, 2: 0.0}
    assert (score.name, score.value) == ("spice", pytest.approx(125 / 3))
    assert config.protocol()["jar"] == sha256_file(spice)


def test_what_the_programs_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meteor, spice = jars(tmp_path)

    def message(config: Any) -> str:
        def score() -> None:
            metric = config.build()
            metric.update(batch(["a"], [["a"]]))
            metric.result()

        with pytest.raises(CM3Error) as caught:
            score()
        return str(caught.value)

    none = str(tmp_path / "none.jar")
    assert tells(
        message(METEORConfig(jar=none)),
        f"metric.jar {none}: there is no such file ... meteor-1.5.jar",
    )
    assert "get spice-1.0.jar with its folder lib" in message(SPICEConfig(jar=none))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for config in (METEORConfig(jar=str(meteor)), SPICEConfig(jar=str(spice))):
        assert tells(message(config), "java: is not installed")
    fake_java(tmp_path, "#!{python}\nimport sys\nsys.exit('no memory')\n", monkeypatch)
    assert "failed: no memory" in message(METEORConfig(jar=str(meteor)))
    shutil.rmtree(tmp_path / "bin")
    fake_java(tmp_path, "#!{python}\nprint('hello')\n", monkeypatch)
    assert "wrote no SPICE scores" in message(SPICEConfig(jar=str(spice)))
    assert "answered '1 lines', which is not METEOR 1.5's format" in message(
        METEORConfig(jar=str(meteor))
    )
    (tmp_path / "lib" / PARSER[1]).unlink()
    assert tells(
        message(SPICEConfig(jar=str(spice))), "... next: copy stanford-corenlp-3.6.0.jar and"
    )


def real_meteor() -> Path | None:
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations or shutil.which("java") is None:
        return None
    return Path(found.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"


@pytest.mark.slow
@pytest.mark.skipif(real_meteor() is None, reason="METEOR 1.5 needs pycocoevalcap and Java")
def test_equal_to_pycocoevalcap() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(8)]
    references = [[" ".join(rng.choice(WORDS, 7)) for _ in range(3)] for _ in range(8)]
    wanted, _ = Meteor().compute_score(
        dict(enumerate(references)), {i: [t] for i, t in enumerate(texts)}
    )
    metric = METEORConfig(jar=str(real_meteor())).build()
    metric.update(batch(texts, references))
    assert all(" ".join(caption_words(text)) == text for text in texts)
    assert metric.result()[0].value == pytest.approx(100 * wanted, abs=1e-9)


def test_a_sample_without_references() -> None:
    for config in (METEORConfig(),):
        with pytest.raises(DataError, match="has no reference captions"):
            config.build().update(batch(["a"], [[]]))
