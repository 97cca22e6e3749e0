import base64
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from itertools import product

import pytest
import yaml
from PIL import Image

from stagebeam.evaluation.cases import choose
from stagebeam.evaluation.claim import label
from stagebeam.evaluation.plots import accuracy_against_seconds, accuracy_against_tokens
from stagebeam.evaluation.report import data_uri, write_report
from stagebeam.evaluation.report_tables import method_lines
from stagebeam.evaluation.results import SEARCHES

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements, attributes and text; fails on an element closed out of turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append((self.tags[-1][1].get("type"), data))
        elif self.open[-1:] != ["style"]:
            self.text += data

    def data(self) -> list[dict]:
        """What the viewer is handed."""
        return [json.loads(text) for kind, text in self.scripts if kind == "application/json"]


@pytest.fixture(scope="module")
def written(report_parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(*report_parts, folder).read_text(), json.loads(
        (folder / "report.json").read_text()
    )


def test_the_json_keeps_the_keys_that_other_programs_read(written):
    _, report = written
    assert report["train"]["world_size"] == 2 and report["train"]["zero_stage"] == 3
    assert report["shards"]["rows"] == 24000
    methods = [report["greedy"], report["judge_alone"]]
    methods += [report[method][n] for method in (*SEARCHES, "oracle") for n in ("2", "4")]
    for result in methods:
        assert result["accuracy"] == result["correct"] / result["questions"]
        low, high = result["interval"]
        assert low <= result["accuracy"] <= high
        assert set(result["by_category"]) == {"choice", "count"}
        assert {
            "tokens",
            "sequential_passes",
            "judge_tokens",
            "prefill_tokens",
            "image_encodes",
            "seconds",
        } <= set(result["cost"])
    judge = report["judge"]
    assert judge["kind"] == "likelihood" and 0 < judge["accuracy"] < 1
    assert len(judge["interval"]) == 2 and 0 <= judge["swap_consistency"] <= 1
    assert set(judge["by_stage"]) == {"REASONING", "CONCLUSION"}
    assert judge["training"] == {"steps": 400, "seconds": 130.5, "samples": 2048}
    assert set(judge["kinds"]) == {"likelihood", "verdict"}
    for comparison in report["comparisons"]:
        assert {"first", "second", "difference", "interval", "p"} <= set(comparison)
    assert "stage beam with N = 4" in report["claim"]
    assert "retracing with N = 4" in report["claim"]
    assert {"recipe", "fingerprints", "machine", "wandb", "seconds"} <= set(report)


def test_the_page_is_whole_and_asks_the_network_for_nothing(written):
    html, _ = written
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", html)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe")]
    for _, attributes in page.tags:
        source = attributes.get("src") or attributes.get("xlink:href") or "#"
        assert source.startswith(("data:image/", "#"))


def test_the_page_shows_the_claim_every_method_and_its_plots(written, report_parts):
    page = Page(written[0])
    assert report_parts[0].claim in page.text
    for method, n in product((*SEARCHES, "oracle"), (2, 4)):
        assert label(f"{method}@{n}") in page.text
    assert "the judge's model alone" in page.text
    plots = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(plots) == 4
    assert "latency under load" in page.text


def test_no_two_elements_share_an_id_and_plots_take_the_pages_colour(written):
    html, _ = written
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and ids
    assert "currentColor" in html and "#010203" not in html


@pytest.mark.parametrize(
    "plot, cost",
    [(accuracy_against_tokens, "tokens"), (accuracy_against_seconds, "seconds")],
)
def test_a_plot_has_a_point_for_each_n_of_each_method(plot, cost, report_parts):
    svg = plot(report_parts[0])
    for name in ("sentence beam", "retracing", "stage beam", "best of N", "majority", "oracle"):
        assert f">{name}</text>" in svg
    drawn = [text for text in re.findall(r">([^<]*)</text>", svg) if text in ("2", "4")]
    assert len(drawn) >= 2 * 6
    moved = report_parts[0].retrace["4"]
    dearer = moved.cost.model_copy(update={cost: 50 * getattr(moved.cost, cost)})
    by_n = {**report_parts[0].retrace, "4": moved.model_copy(update={"cost": dearer})}
    assert plot(report_parts[0].model_copy(update={"retrace": by_n})) != svg


def test_at_least_five_traces_can_be_read_stage_by_stage(written, report_parts):
    html, _ = written
    page = Page(html)
    articles = [attributes for tag, attributes in page.tags if tag == "article"]
    assert len(articles) >= 5
    assert sum(tag == "img" for tag, _ in page.tags) == len(articles)
    for shown in choose(report_parts[1]):
        assert f"trace {shown.trace.id}" in page.text
        assert shown.trace.model_dump(mode="json") in page.data()


def test_the_shown_traces_are_those_that_tell_most(report_parts):
    cases = report_parts[1]
    shown = choose(cases, 8)
    assert len(shown) == 8
    assert any(case.rescued for case in shown)
    assert any(case.spoiled for case in shown)
    assert any(not case.correct and not case.greedy_correct for case in shown)
    assert shown[0].rescued
    assert len(choose(cases[:3], 8)) == 3


def test_a_rare_kind_of_answer_is_not_crowded_out(report_parts):
    cases = report_parts[1]
    rescued = next(case for case in cases if case.rescued)
    plain = replace(rescued, greedy_correct=True)
    spoiled = next(case for case in cases if case.spoiled)
    assert choose([plain] * 9 + [spoiled, rescued], 3) == [rescued, spoiled, plain]


def test_what_a_model_or_a_user_wrote_is_text_and_never_markup(report_parts, tmp_path):
    results, cases = report_parts
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    case = cases[0]
    stage = case.trace.stages[0]
    hostile = stage.model_copy(
        update={
            "candidates": tuple(
                c.model_copy(update={"text": f"<SUMMARY> {attack} </SUMMARY>"})
                for c in stage.candidates
            )
        }
    )
    trace = case.trace.model_copy(
        update={
            "stages": (hostile, *case.trace.stages[1:]),
            "conclusion": attack,
            "messages": (case.trace.messages[0].model_copy(update={"text": attack}),),
        }
    )
    named = results.model_copy(update={"name": attack, "recipe": {"name": attack}})
    hostile_case = replace(case, trace=trace, gold=attack, category=attack, choices=(attack,))
    html = write_report(named, [hostile_case], tmp_path).read_text()
    page = Page(html)
    assert [kind for kind, _ in page.scripts] == ["application/json", "module"]
    assert page.data() == [trace.model_dump(mode="json")]
    assert not [a for _, a in page.tags if "onerror" in a]
    assert page.text.count(attack) >= 6


def test_a_report_of_accuracies_alone_renders_too(report_parts, tmp_path):
    bare = report_parts[0].model_copy(
        update={
            "train": None,
            "shards": None,
            "judge": None,
            "judge_alone": None,
            "wandb": None,
            "seconds": {},
            "best_of_n": {},
            "oracle": {},
            "comparisons": (),
        }
    )
    html = write_report(bare, [], tmp_path).read_text()
    Page(html)
    assert "<h2>The judge</h2>" not in html
    assert json.loads((tmp_path / "report.json").read_text())["judge"] is None


def test_failures_are_printed_with_their_reason(report_parts, tmp_path):
    results = report_parts[0]
    failed = results.greedy.model_copy(update={"failed": 3, "failures": {"Timeout: slow": 3}})
    page = Page(
        write_report(results.model_copy(update={"greedy": failed}), [], tmp_path).read_text()
    )
    assert "greedy: 3 failed" in page.text and "Timeout: slow" in page.text


def test_the_markdown_holds_every_figure_and_no_markup_of_others(report_parts, tmp_path):
    results, _ = report_parts
    attack = "<script>|# *x*"
    write_report(results.model_copy(update={"name": attack}), [], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "# \\<script\\>\\|\\# \\*x\\*" in text
    for name, result in method_lines(results):
        low, high = (f"{100 * edge:.1f}" for edge in result.interval)
        figure = f"| {label(name)} | {100 * result.accuracy:.1f} | {low} to {high} |"
        assert figure in text
    for title in (
        "Fallbacks",
        "By category",
        "Against greedy",
        "At equal tokens",
        "The judge and length",
        "Calibration of the judge's margin",
        "Repeat it",
    ):
        assert f"## {title}\n" in text


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_reader_of_the_report_alone_can_repeat_it(name, report_parts, tmp_path):
    results, _ = report_parts
    recipe = {"name": "w", "search": {"seed": 7, "note": "``` and <b>"}}
    write_report(results.model_copy(update={"recipe": recipe}), [], tmp_path)
    text = unescape((tmp_path / name).read_text())
    kept = (tmp_path / "recipe.yaml").read_text()
    assert yaml.safe_load(kept) == recipe and kept.rstrip() in text
    repeat = results.repeat
    assert repeat is not None
    for told in (repeat.command, repeat.directory, repeat.commit, "ab" * 32, "world/model"):
        assert told in text, told
    for told in ("gen-1", "search", "1.2.3", "world/part-0.parquet"):
        assert told in text, told


def test_the_papers_tables_are_there_where_one_of_its_benchmarks_was_asked(report_parts, tmp_path):
    results, _ = report_parts
    assert "Beside the paper" not in write_report(results, [], tmp_path).read_text()
    overall = {"percent": 51.25, "count": 4, "interval": None}
    told = {
        "benchmark": "MMStar",
        "mode": "compat",
        "published": False,
        "methods": {"greedy": {"failed": 0, "figures": {"Overall": overall}}},
    }
    path = tmp_path / "benchmarks" / "MMStar" / "figures.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(told))
    page = write_report(results, [], tmp_path).read_text()
    for text in (page, (tmp_path / "report.md").read_text()):
        assert "LLaVA-CoT (published)" in text and "51.2" in text and "62.4" in text
        assert "the file is not the published one" in text


def picture(kind: str, side: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side // 2), "red").save(buffer, kind)
    return buffer.getvalue()


def test_images_are_inlined_as_they_are_or_scaled_down():
    assert data_uri(picture("PNG", 48)).startswith("data:image/png;base64,")
    assert data_uri(picture("BMP", 48)).startswith("data:image/jpeg;base64,")
    large = base64.b64decode(data_uri(picture("PNG", 4000)).partition(",")[2])
    assert Image.open(BytesIO(large)).size == (640, 320)
