"""The Python client, for threads and for asyncio, against live processes."""

import asyncio
import inspect

import httpx
import numpy as np
import pytest
from sqlalchemy import text

from experiment_service.client import (
    AsyncExperimentClient,
    ExperimentClient,
    Options,
    RequestRefused,
)
from experiment_service.simulation import Household, Shoppers
from tests.conftest import free_port
from tests.integration.serving.conftest import (
    ITEMS,
    UNITS,
    declaration,
    is_live,
    run_experiment,
)

KINDS = [ExperimentClient, AsyncExperimentClient]


async def got(answer):
    """Return what a call of either client gives."""
    return await answer if inspect.isawaitable(answer) else answer


def use(kind, scenario, address, **options):
    async def run():
        if kind is AsyncExperimentClient:
            async with kind(address, **options) as client:
                return await scenario(client)
        with kind(address, **options) as client:
            return await scenario(client)

    return asyncio.run(run())


def told(server, unit):
    """Return the kinds that the database knows of a unit, once nothing waits."""
    server.wait_for(lambda: server.get("/v1/status").json()["journal"]["events"] == 0)
    return rows(server.engine, unit)


def rows(engine, unit):
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT kind FROM interaction WHERE unit_id = :u ORDER BY 1"),
            {"u": unit},
        )
        return [kind for (kind,) in found]


@pytest.mark.parametrize("kind", KINDS)
def test_carousels_variants_and_events(common_shop, kind):
    units = [f"{kind.__name__}-{unit}" for unit in UNITS[:30]]

    async def visit(client):
        for unit in units:
            shown = await got(
                client.recommend(unit, "offers", k=4, recent_item_ids=ITEMS[:2])
            )
            assert shown.served
            assert len(shown.item_ids) == 4
            assert shown.items[0].source in ("als:session", "popularity:default")
            variant = await got(
                client.assign(unit, experiment="offers-test", log_exposure=False)
            )
            for name in ("variant", "epoch", "propensity", "settings", "experiment"):
                assert getattr(variant, name) == getattr(shown, name)
            exposure_id = shown.exposure_id
            client.track("viewed", exposure_id=exposure_id, id=f"{exposure_id}:viewed")
            client.track("viewed", exposure_id=exposure_id, id=f"{exposure_id}:viewed")
            client.track(
                "click",
                exposure_id=exposure_id,
                unit_id=unit,
                item_id=shown.item_ids[1],
                category="shoes",
                placement="cart",
                position=2,
            )
            client.track("purchase", unit_id=unit, value=9.9)
            client.track("no such kind", unit_id=unit)
        assert await got(client.flush()) == 0
        return client.outbox.refused, client.outbox.dropped

    assert use(kind, visit, common_shop.address, options=Options(batch_size=7)) == (
        len(units),
        0,
    )
    for unit in units[:3]:
        assert told(common_shop, unit) == ["click", "purchase"]
    with common_shop.engine.connect() as connection:
        told_with_it = connection.execute(
            text(
                """SELECT DISTINCT category, placement FROM interaction
                WHERE kind = 'click' AND unit_id = ANY(:u)"""
            ),
            {"u": units},
        ).all()
        assert told_with_it == [("shoes", "cart")]
        viewed = connection.execute(
            text(
                """SELECT count(*) FROM interaction i JOIN exposure e
                ON e.id = i.exposure_id WHERE i.kind = 'viewed' AND e.unit_id = ANY(:u)"""
            ),
            {"u": units},
        ).scalar_one()
    assert viewed == len(units)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefetch_is_exposed_once_it_is_shown(common_shop, kind):
    unit = f"{kind.__name__}-prefetch"

    async def visit(client):
        shown = await got(client.recommend(unit, "offers", log_exposure=False))
        client.expose(shown)
        client.expose(shown)  # once more changes nothing
        assert await got(client.flush()) == 0
        assert client.outbox.refused == 0
        return shown

    shown = use(kind, visit, common_shop.address)
    told(common_shop, unit)
    with common_shop.engine.connect() as connection:
        stored = connection.execute(
            text("SELECT id::text, variant FROM exposure WHERE unit_id = :u"),
            {"u": unit},
        ).all()
    assert [tuple(row) for row in stored] == [(shown.exposure_id, shown.variant)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_request_is_told_not_hidden_behind_the_fallback(common_shop, kind):
    async def visit(client):
        with pytest.raises(RequestRefused) as refusal:
            await got(client.recommend("u", "nowhere", fallback=["a"]))
        return refusal.value

    refused = use(kind, visit, common_shop.address)
    assert (refused.status, refused.field) == (404, "placement")
    assert "placement 'nowhere' does not exist" in refused.message


def test_the_shoppers_of_the_demo_use_it(common_shop):
    household = Household(
        unit_id="demo-shopper",
        products=frozenset(ITEMS),
        types=frozenset(),
        buyer="new",
    )
    shoppers = Shoppers(
        common_shop.address,
        placements=["offers"],
        households=[household],
        products={},
        visits_per_second=50,
        rng=np.random.default_rng(5),
    )

    async def shop():
        stopping = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, stopping.set)
        await shoppers.run(stopping)

    asyncio.run(shop())
    kinds = told(common_shop, "demo-shopper")
    assert shoppers.tally.failures == 0
    assert kinds.count("viewed") == shoppers.tally.visits > 0
    assert kinds.count("click") == shoppers.tally.clicks > 0


class _LosesAnswers:
    """Lets requests with events arrive, and loses every second answer."""

    def __init__(self):
        self.sent = 0

    def lose(self, request):
        if "interactions" in request.url.path:
            self.sent += 1
            if self.sent % 2:
                raise httpx.ReadError("lost")


class LossyTransport(_LosesAnswers, httpx.HTTPTransport):
    def __init__(self):
        _LosesAnswers.__init__(self)
        httpx.HTTPTransport.__init__(self)

    def handle_request(self, request):
        response = super().handle_request(request)
        response.read()
        self.lose(request)
        return response


class AsyncLossyTransport(_LosesAnswers, httpx.AsyncHTTPTransport):
    def __init__(self):
        _LosesAnswers.__init__(self)
        httpx.AsyncHTTPTransport.__init__(self)

    async def handle_async_request(self, request):
        response = await super().handle_async_request(request)
        await response.aread()
        self.lose(request)
        return response


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_answer_counts_nothing_twice(common_shop, kind):
    unit = f"{kind.__name__}-lossy"
    transport = (
        AsyncLossyTransport() if kind is AsyncExperimentClient else LossyTransport()
    )

    async def visit(client):
        for _ in range(8):
            client.track("click", unit_id=unit)
        return await got(client.flush(30))

    options = Options(batch_size=4)
    left = use(kind, visit, common_shop.address, transport=transport, options=options)
    assert left == 0
    assert transport.sent >= 4
    assert told(common_shop, unit) == ["click"] * 8


@pytest.mark.usefixtures("shop")
def test_events_outlast_a_service_that_is_down(engine, database_url, start_server):
    run_experiment(engine, declaration("home"))
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    async def visit(client):
        shown = await got(client.recommend("u", "home", k=2, fallback=["a", "b", "c"]))
        assert not shown.served
        assert shown.item_ids == ["a", "b"]
        assert {item.source for item in shown.items} == {"fallback"}
        assert shown.exposure_id is None
        assert not (await got(client.assign("u", placement="home"))).served
        client.expose(shown)  # nothing to record
        client.track("purchase", unit_id="u", value=5)
        return await got(client.flush(0.2))

    async def give_up(client):
        assert await visit(client) == 1
        return await got(client.close(0.1))

    for kind in KINDS:
        assert use(kind, give_up, address) == 1

    async def outlast(client):
        assert await visit(client) == 1
        server = start_server(
            database_url, wait=False, EXPERIMENT_SERVICE_PORT=str(port)
        )
        server.client = httpx.Client(base_url=address, timeout=20)
        server.wait_for(lambda: is_live(server))
        assert await got(client.flush(60)) == 0
        shown = await got(client.recommend("u", "home", k=2))
        return server, shown

    server, shown = use(ExperimentClient, outlast, address)
    assert shown.served
    server.stop()  # drains
    assert rows(engine, "u") == ["purchase"]
