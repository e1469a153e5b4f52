"""The browser client on the example page, in a real browser and with real faults."""

import functools
import http.server
import threading

import pytest
from playwright.sync_api import expect, sync_playwright
from sqlalchemy import text

from experiment_service.api import browser
from tests.acceptance.test_main_job import BROWSER
from tests.conftest import free_port

QUEUE = "JSON.parse(localStorage.getItem('experiment-service::queue') ?? '[]')"
SENDING = "**/v1/interactions"


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(**BROWSER)
        yield started
        started.close()


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1000, "height": 600})
    opened = context.new_page()
    opened.errors = []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    yield opened
    assert opened.errors == []
    context.close()


def visit(page, server, unit):
    page.goto(f"{server.address}/storefront?placement=offers&unit={unit}")
    expect(page.locator("#carousel")).to_have_attribute("data-state", "recommended")
    return page.locator("#carousel li").evaluate_all(
        "items => items.map(item => item.dataset.itemId)"
    )


def told(server, unit):
    """Return what the database knows of a unit once nothing waits any more."""
    server.wait_for(lambda: server.get("/v1/status").json()["journal"]["events"] == 0)
    with server.engine.connect() as connection:
        rows = connection.execute(
            text(
                """SELECT i.kind, i.item_id, i.position FROM interaction i
                JOIN exposure e ON e.id = i.exposure_id
                WHERE e.unit_id = :unit AND i.unit_id = :unit ORDER BY i.kind"""
            ),
            {"unit": unit},
        )
        return [tuple(row) for row in rows]


def wait_until_sent(page):
    page.wait_for_function(f"{QUEUE}.length === 0")


def test_a_visit_is_told_in_full(page, common_shop):
    items = visit(page, common_shop, "ana")
    assert len(items) == 8
    page.locator("#carousel li a").nth(2).click()
    page.locator("#carousel li button").nth(4).click()
    page.wait_for_timeout(1100)
    wait_until_sent(page)
    assert told(common_shop, "ana") == [
        ("add_to_cart", items[4], 5),
        ("click", items[2], 3),
        ("viewed", None, None),
    ]


def test_recent_items_are_asked_with_the_latest_of_them(page, common_shop):
    visit(page, common_shop, "bo")
    with page.expect_request("**/v1/recommendations") as asked:
        shown = page.evaluate(
            """async () => {
                const { ExperimentClient } = await import("/client.js");
                const client = new ExperimentClient({ unitId: "bo" });
                const recentItemIds = Array.from({ length: 30 }, (_, n) => `item-0${n}`);
                const asked = { placement: "offers", k: 3, recentItemIds };
                return (await client.recommend(asked)).items;
            }"""
        )
    assert len(shown) == 3
    recent = [f"item-0{number}" for number in range(10, 30)]
    assert asked.value.post_data_json["recent_item_ids"] == recent


def test_viewed_needs_half_of_it_for_a_second_on_end(page, common_shop):
    page.clock.install()
    page.route("**/storefront*", lambda route: route.fulfill(body=below_the_fold()))
    visit(page, common_shop, "ben")
    height = page.locator("#carousel").bounding_box()["height"]
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)

    def scroll(share):
        """Bring a share of the carousel into sight, and let the observer see it."""
        page.evaluate(
            """([top]) => new Promise(done => {
                scrollTo(0, top);
                const look = new IntersectionObserver(() => { look.disconnect(); done() });
                look.observe(document.body);
            })""",
            [3000 - 600 + share * height],
        )

    def waiting():
        return page.evaluate(QUEUE)

    page.clock.run_for(5000)
    assert waiting() == []
    scroll(0.4)
    page.clock.run_for(5000)
    assert waiting() == []
    scroll(0.7)
    page.clock.run_for(900)
    scroll(0.4)
    page.clock.run_for(200)
    scroll(0.7)
    page.clock.run_for(900)
    assert waiting() == []
    page.clock.run_for(200)
    page.clock.resume()
    wait_until_sent(page)
    assert told(common_shop, "ben") == [("viewed", None, None)]


def below_the_fold():
    content = (browser._STATIC / "storefront.html").read_text()
    style = (
        "#carousel { position: absolute; top: 3000px; width: 900px }"
        " body { height: 5000px }"
    )
    return content.replace("</style>", f"{style}</style>")


def test_a_lost_answer_is_asked_for_again_and_counts_once(page, common_shop):
    bodies = []

    def lose_the_first_answer(route):
        bodies.append(route.request.post_data_json["interactions"])
        if len(bodies) == 1:
            route.fetch()  # it arrives, but the page never hears of it
            route.abort()
        else:
            route.continue_()

    page.route(SENDING, lose_the_first_answer)
    items = visit(page, common_shop, "cleo")
    page.locator("#carousel li a").first.click()
    wait_until_sent(page)
    first, second = bodies[0], bodies[1]
    assert [event["id"] for event in first] == [event["id"] for event in second][:1]
    clicks = [row for row in told(common_shop, "cleo") if row[0] == "click"]
    assert clicks == [("click", items[0], 1)]


def test_what_the_page_could_not_send_the_next_one_does(page, common_shop):
    page.route(SENDING, lambda route: route.abort())
    items = visit(page, common_shop, "dora")
    page.locator("#carousel li a").nth(1).click()
    page.wait_for_function(f"{QUEUE}.length > 0")
    assert told(common_shop, "dora") == []
    page.unroute(SENDING)
    page.goto("about:blank")
    visit(page, common_shop, "dora")
    wait_until_sent(page)
    clicks = [row for row in told(common_shop, "dora") if row[0] == "click"]
    assert clicks == [("click", items[1], 2)]


def test_a_page_that_is_left_hands_over_what_waits(page, common_shop):
    sent = []

    def only_beacons(route):
        sent.append(route.request.resource_type)
        if route.request.resource_type == "ping":
            route.continue_()
        else:
            route.abort()

    page.context.route(SENDING, only_beacons)
    items = visit(page, common_shop, "emma")
    page.locator("#carousel li a").nth(3).click()
    page.wait_for_function(f"{QUEUE}.length > 0")
    page.goto("about:blank")
    common_shop.wait_for(lambda: told(common_shop, "emma"))
    assert "fetch" in sent  # which failed: the beacon brought it
    page.context.unroute(SENDING)
    visit(page, common_shop, "emma")  # the queue was kept, and is sent again
    wait_until_sent(page)
    clicks = [row for row in told(common_shop, "emma") if row[0] == "click"]
    assert clicks == [("click", items[3], 4)]


def test_the_queue_is_bounded_and_bad_events_do_not_block_it(page, common_shop):
    page.route(SENDING, lambda route: route.abort())
    visit(page, common_shop, "finn")
    page.evaluate(
        """async () => {
            const { ExperimentClient } = await import("/client.js");
            const client = new ExperimentClient({ unitId: "finn", maxQueued: 120 });
            for (let n = 0; n < 300; n++) client.track("purchase", { id: `finn-${n}` });
            client.track("no such kind", { id: "bad" });
        }"""
    )
    ids = [event["id"] for event in page.evaluate(QUEUE) if event["id"] != "viewed"]
    assert len(ids) == 120
    assert ids[0] == "finn-181"
    assert ids[-1] == "bad"
    page.evaluate("localStorage.setItem('experiment-service::unit', 'x')")
    page.unroute(SENDING)
    visit(page, common_shop, "finn")
    wait_until_sent(page)
    told(common_shop, "finn")
    with common_shop.engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT count(*) FROM interaction WHERE unit_id = 'finn'"
                " AND kind = 'purchase'"
            )
        ).scalar_one()
    assert found == 119


def test_a_damaged_queue_is_forgotten(page, common_shop):
    for damaged in ("{", "7", "[null, 3, {}]"):
        visit(page, common_shop, "gil")
        page.evaluate(
            "text => localStorage.setItem('experiment-service::queue', text)", damaged
        )
        visit(page, common_shop, "gil")
        page.locator("#carousel li a").first.click()
        wait_until_sent(page)
    clicks = [row for row in told(common_shop, "gil") if row[0] == "click"]
    assert len(clicks) == 3


def test_without_the_service_the_page_shows_its_own(page):
    files = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=browser._STATIC
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), files) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        gone = f"http://127.0.0.1:{free_port()}"
        page.goto(
            f"http://127.0.0.1:{server.server_port}/storefront.html?unit=u&api={gone}"
        )
        expect(page.locator("#carousel")).to_have_attribute("data-state", "fallback")
        expect(page.locator("#carousel li").first).to_contain_text("Bestseller 1")
        assert page.locator("#carousel li").count() == 3
        server.shutdown()
        thread.join()


def test_the_files_are_told_apart_by_their_tags(common_shop):
    for path, kind in (("/client.js", "text/javascript"), ("/storefront", "text/html")):
        answer = common_shop.get(path)
        assert answer.headers["content-type"].startswith(kind)
        again = common_shop.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
