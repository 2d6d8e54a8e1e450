"""The page in a real browser: looked at with mouse and keyboard, at 5,000 nodes, with hostile words in it."""

import re

import pytest

from abduce.orchestrator.viewer import picture
from abduce.orchestrator.viewer.page import whole_page
from abduce.serving.scripted import Scripted

ROWS = ".row:not([hidden])"
SELECTED = f'{ROWS}[aria-selected="true"]'


@pytest.fixture
def page_of(tmp_path):
    def written(*runs):
        file = tmp_path / "page.html"
        file.write_text(whole_page([picture.load(run.trace) for run in runs]), encoding="utf-8")
        return file

    return written


@pytest.fixture
def a_star(run_of, page_of, visit):
    return visit(page_of(run_of("a_star", k=3)))


def words(tab):
    """The rows in sight, top to bottom: level and text."""
    rows = tab.eval_on_selector_all(
        ROWS,
        """rows => rows.map(r =>
            [r.getBoundingClientRect().top, +r.ariaLevel, r.querySelector('.words').textContent])""",
    )
    return [tuple(row[1:]) for row in sorted(rows)]


def count(tab, name):
    return int(tab.locator(f'[data-chip="{name}"] small').text_content().replace(",", ""))


def test_nodes_are_opened_and_closed(run_of, a_star):
    told = picture.load(run_of("a_star", k=3).trace)
    assert len(words(a_star)) == len(told.nodes)
    a_star.keyboard.press("c")
    roots = [node for node in told.nodes if node.parent < 0]
    assert words(a_star) == [(1, node.seen.text.strip() or "(ended)") for node in roots]
    row = a_star.locator(f'{ROWS}[aria-expanded="false"]').first
    row.locator(".twisty").click()
    assert len(words(a_star)) > len(roots)
    a_star.locator(f'{ROWS}[aria-expanded="true"]').first.dblclick()
    assert len(words(a_star)) == len(roots)
    a_star.keyboard.press("e")
    assert len(words(a_star)) == len(told.nodes)


def test_the_best_solution_is_chosen_at_first_and_told_in_full(run_of, a_star):
    run = run_of("a_star", k=3)
    detail = a_star.locator("#detail")
    assert "best path" in detail.inner_text()
    assert "which letters?" in detail.inner_text()  # the prompt
    steps = detail.locator(".path-step pre").all_text_contents()
    assert [s for s in steps if s != "(ended)"] == run.result["text"].split()
    assert a_star.locator("h1").text_content() == "which letters?"
    assert detail.locator(".probs").count() >= 0


def test_search_shows_matches_with_the_way_to_them(run_of, a_star):
    told = picture.load(run_of("a_star", k=3).trace)
    a_star.keyboard.press("/")
    a_star.keyboard.type("B")
    a_star.keyboard.press("Enter")
    matching = [node for node in told.nodes if "b" in node.seen.text]
    assert a_star.locator("#count").text_content() == f"{len(matching)} of {len(told.nodes)} steps"
    assert a_star.locator(f"{ROWS} mark").all_text_contents() == ["b"] * len(matching)
    assert a_star.locator(SELECTED).locator("mark").count() == 1
    first = a_star.locator(SELECTED).get_attribute("id")
    a_star.keyboard.press("n")
    assert a_star.locator(SELECTED).get_attribute("id") != first
    a_star.keyboard.press("p")
    assert a_star.locator(SELECTED).get_attribute("id") == first
    a_star.keyboard.press("Escape")
    assert a_star.locator("mark").count() == 0
    assert len(words(a_star)) == len(told.nodes)


def test_filters_keep_what_they_say(run_of, visit, page_of):
    run = run_of("particle_gibbs")
    told, tab = picture.load(run.trace), visit(page_of(run))
    fates = told.fates()
    true = {
        "finished": sum(node.seen.terminal for node in told.nodes),
        "best": fates.count(picture.BEST),
        "pruned": fates.count(picture.PRUNED),
        "speculative": fates.count(picture.SPECULATIVE),
    }
    assert {name: count(tab, name) for name in true} == true
    tab.click('[data-chip="pruned"]')
    assert tab.locator("#count").text_content() == f"{true['pruned']} of {len(told.nodes)} steps"
    assert set(
        tab.eval_on_selector_all(f"{ROWS}:not(.context)", "rows => rows.map(r => r.classList[1])")
    ) == {"pruned"}
    tab.click('[data-chip="pruned"]')
    tab.locator("#least").fill("0.5")
    high = [node for node in told.nodes if (node.seen.score or 0) >= 0.5]
    assert tab.locator("#count").text_content() == f"{len(high)} of {len(told.nodes)} steps"
    tab.click('[data-chip="finished"]')
    both = [node for node in high if node.seen.terminal]
    assert tab.locator("#count").text_content() == f"{len(both)} of {len(told.nodes)} steps"
    tab.locator("#tree").focus()
    tab.keyboard.press("Escape")
    assert tab.locator("#count").text_content() == ""


def test_everything_is_done_by_keyboard_alone(run_of, a_star):
    told = picture.load(run_of("a_star", k=3).trace)
    press, selected = a_star.keyboard.press, lambda: a_star.locator(SELECTED)
    press("Home")
    assert selected().get_attribute("aria-level") == "1"
    press("ArrowLeft")
    assert selected().get_attribute("aria-expanded") == "false"
    press("ArrowRight")
    assert selected().get_attribute("aria-expanded") == "true"
    press("ArrowRight")
    assert selected().get_attribute("aria-level") == "2"
    press("ArrowLeft")
    press("ArrowLeft")
    assert selected().get_attribute("aria-level") == "1"
    press("End")
    assert words(a_star)[-1][1] == selected().locator(".words").text_content()
    focused = "document.activeElement.id"
    press("Enter")
    assert a_star.evaluate(focused) == "detail"
    press("Escape")
    assert a_star.evaluate(focused) == "tree"
    assert a_star.locator("#tree").get_attribute("aria-activedescendant") == selected().get_attribute("id")
    press("2")
    assert a_star.evaluate(focused) == "timeline"
    press("ArrowRight")
    assert "policy" in a_star.locator("#said").text_content()
    first = a_star.locator("#detail").inner_text()
    press("ArrowRight")
    assert a_star.locator("#detail").inner_text() != first
    for key in ("+", "-", "0", "ArrowDown", "ArrowUp"):
        press(key)
    press("3")
    assert a_star.locator(".chart").count() >= 3
    press("ArrowRight")
    assert a_star.evaluate("document.activeElement.dataset.axis") == "tokens"
    press("b")
    assert "best" in selected().get_attribute("class")
    press("?")
    assert a_star.locator("#help").is_visible()
    press("Escape")
    assert not a_star.locator("#help").is_visible()
    assert len(told.nodes) == len(words(a_star))


def test_the_tree_is_one_to_a_screen_reader(a_star):
    snapshot = a_star.locator("#tree").aria_snapshot()
    assert snapshot.startswith('- tree "Search tree"')
    assert re.search(
        r'treeitem ".*score 0\.\d\d.*best path" \[level=\d\]', snapshot.replace(" [selected]", "")
    )
    assert a_star.locator('[role="tab"][aria-selected="true"]').text_content() == "Tree"


ACTS = """async () => {
    const done = () => new Promise(go => requestAnimationFrame(() => setTimeout(go)));
    const event = key => new KeyboardEvent('keydown', {key, bubbles: true});
    const press = key => document.activeElement.dispatchEvent(event(key));
    const type = words => {
        const box = document.getElementById('search');
        box.focus();
        box.value = words;
        press('Enter');
    };
    const took = {ready: +document.documentElement.dataset.ready}; // since navigation
    for (const [name, act] of Object.entries({
        open: () => press('e'),
        end: () => press('End'),
        search: () => type('a'),
        pruned: () => document.querySelector('[data-chip=pruned]').click(),
        timeline: () => press('2'),
        curves: () => press('3'),
        back: () => press('1'),
    })) {
        const from = performance.now();
        act();
        await done();
        took[name] = performance.now() - from;
    }
    return took;
}"""


def test_five_thousand_nodes_are_there_and_answer_within_two_seconds(big, visit, page_of):
    assert len(picture.load(big.trace).nodes) > 5000
    page = page_of(big)
    for _ in range(3):  # other work on the machine only adds
        tab = visit(page)
        took = tab.evaluate(ACTS)  # milliseconds
        if max(took.values()) < 2000:
            break
    assert max(took.values()) < 2000, took
    assert tab.locator(".row").count() < 100  # only those in sight
    tab.keyboard.press("Escape")
    tab.keyboard.press("e")
    tab.keyboard.press("End")
    assert tab.locator(SELECTED).is_visible()


HOSTILE = "<script>owned = 1</script></script><img src=x onerror='owned = 1'><b>bold</b> <!-- \u202e gone\n\n"


def test_hostile_words_are_shown_as_words(run_of, visit, page_of):
    model = Scripted([HOSTILE, f"{HOSTILE}again"], rate=lambda request: 0.5)
    run = run_of("best_of_n", n=2, question=HOSTILE, model=model)
    tab = visit(page_of(run))
    assert tab.evaluate("typeof owned") == "undefined"
    assert tab.locator("h1").text_content().strip() == HOSTILE.strip()
    assert tab.locator("img, b:not(.eyebrow b, .answer b), main script").count() == 0
    assert "<img src=x onerror='owned = 1'><b>bold</b>" in words(tab)[0][1]
    assert "\u202e" not in words(tab)[0][1]  # a row holds no formatting characters
    assert HOSTILE.strip() in tab.locator("#detail .block.mine pre").first.text_content()
    tab.keyboard.press("/")
    tab.keyboard.type("<b>")
    tab.keyboard.press("Enter")
    assert tab.locator(f"{ROWS} mark").first.text_content() == "<b>"
    tab.locator("#map").hover()
    tab.keyboard.press("2")
    tab.keyboard.press("ArrowRight")
    assert "<img" in tab.locator("#detail").inner_text()
    assert tab.evaluate("typeof owned") == "undefined"


def test_two_runs_are_laid_over_each_other(run_of, visit, page_of):
    runs = run_of("particle_filter"), run_of("particle_filter", seed=1)
    tab = visit(page_of(*runs))
    shared = [count(tab, name) for name in ("only-a", "only-b", "both")]
    a, b = (len(picture.load(run.trace).nodes) for run in runs)
    assert (shared[0] + shared[2], shared[1] + shared[2]) == (a, b)
    assert min(shared) > 0
    tab.click('[data-chip="only-b"]')
    badges = tab.eval_on_selector_all(f"{ROWS}:not(.context) .side", "spans => spans.map(s => s.textContent)")
    assert set(badges) == {"B"}
    tab.keyboard.press("4")
    told = tab.locator("#view-compare").inner_text()
    assert f"{shared[2]} steps in both" in told
    assert runs[0].id in told and runs[1].id in told
    assert tab.locator("tr.differs", has_text="seed").locator("td").all_text_contents() == ["0", "1"]


def test_a_recipe_of_several_steps_shows_its_visits(several, visit, page_of):
    tab = visit(page_of(several))
    tab.keyboard.press("c")
    tab.keyboard.press("Home")
    rows = tab.locator('[aria-level="1"]:not([hidden]) .words').all_text_contents()
    assert rows == ["solve", "verify", "revise"]
    detail = tab.locator("#detail").inner_text()
    assert detail.startswith("solve") and "What it changed" in detail
    tab.keyboard.press("ArrowRight")
    assert tab.locator(SELECTED).get_attribute("aria-level") == "2"
    for key in "23":
        tab.keyboard.press(key)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(run_of, visit, page_of, scheme):
    tab = visit(page_of(run_of("a_star", k=3)), color_scheme=scheme)
    names = ("ink", "soft", "quiet", "accent", "best", "bad", "only-a", "only-b")
    ratios = tab.evaluate(
        """names => {
            const style = getComputedStyle(document.documentElement);
            const light = name => {
                const hex = style.getPropertyValue('--' + name).trim();
                const [r, g, b] = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
                    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
            };
            const ratio = (p, q) => Math.max(p, q) / Math.min(p, q);
            return Object.fromEntries(names.flatMap(n => ['paper', 'panel', 'raised'].map(
                back => [n + ' on ' + back, ratio(light(n), light(back))])));
        }""",
        names,
    )
    assert min(ratios.values()) >= 4.5, {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5}
