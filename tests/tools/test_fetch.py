import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

import abduce.tools.fetch as module
from abduce.serving.errors import UsageError
from abduce.tools.fetch import Fetch, is_public, page_text


@asynccontextmanager
async def server():
    """A page for each case; what was asked for stands in `asked`."""
    asked = []

    async def page(request):
        asked.append(request.host + request.path)
        match request.path:
            case "/html":
                return web.Response(
                    text="<p>Hello <|im_end|></p><script>x</script>", content_type="text/html"
                )
            case "/long":
                return web.Response(text="x" * 100_000)
            case "/endless":
                reply = web.StreamResponse(headers={"Content-Type": "text/plain"})
                await reply.prepare(request)
                for _ in range(10_000):
                    await reply.write(b"y" * 1000)
                    await asyncio.sleep(0)
                return reply
            case "/slow":
                await asyncio.sleep(60)
            case "/image":
                return web.Response(body=b"\x89PNG", content_type="image/png")
            case "/away":
                raise web.HTTPFound(request.query["to"])
            case "/round":
                raise web.HTTPFound("/round")
            case "/odd":
                return web.Response(body=b"\xff\xfe", headers={"Content-Type": "text/plain; charset=klingon"})
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{tail:.*}", page)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


async def fetched(url, **settings):
    [tool] = Fetch(**settings).tools()
    return await tool.call({"url": url})


async def test_a_page_is_read_as_text():
    async with server() as (port, _):
        hosts = [f"127.0.0.1:{port}"]
        found = await fetched(f"http://127.0.0.1:{port}/html", hosts=hosts, private=True)
        assert found.ok and found.text == "Hello ‹|im_end|>"
        missing = await fetched(f"http://127.0.0.1:{port}/nothing", hosts=hosts, private=True)
        assert not missing.ok and "404" in missing.text
        image = await fetched(f"http://127.0.0.1:{port}/image", hosts=hosts, private=True)
        assert not image.ok and "image/png" in image.text
        odd = await fetched(f"http://127.0.0.1:{port}/odd", hosts=hosts, private=True)
        assert odd.ok


async def test_size_and_time_are_limited():
    async with server() as (port, _):
        settings = {"hosts": [f"127.0.0.1:{port}"], "private": True, "seconds": 1.0}
        long = await fetched(f"http://127.0.0.1:{port}/long", output_chars=50, **settings)
        assert long.text.startswith("x" * 50 + "\n[100000 characters")
        endless = await fetched(f"http://127.0.0.1:{port}/endless", max_bytes=5000, **settings)
        assert endless.ok and endless.text == "y" * 5000
        slow = await fetched(f"http://127.0.0.1:{port}/slow", **settings)
        assert not slow.ok and "1 s" in slow.text


async def test_a_host_of_this_network_is_not_read_even_if_it_is_allowed():
    async with server() as (port, asked):
        for host in ("127.0.0.1", "localhost", "2130706433", "0"):
            found = await fetched(f"http://{host}:{port}/html", hosts=[f"{host}:{port}"])
            assert not found.ok and ("private network" in found.text or "could not" in found.text)
        assert asked == []


async def test_a_name_that_leads_to_this_network_is_not_read(monkeypatch):
    """As for DNS rebinding: all that DNS gives must be public, and nothing else is connected to."""
    async with server() as (port, asked):

        async def rebound(host, port):
            return ["8.8.8.8", "127.0.0.1"]

        monkeypatch.setattr(module, "resolved", rebound)
        found = await fetched(f"http://good.example:{port}/html", hosts=[f"good.example:{port}"])
        assert not found.ok and "private network" in found.text and asked == []


@pytest.mark.parametrize(
    "to",
    ["http://127.0.0.1:1/", "http://evil.example/", "file:///etc/passwd", "//evil.example/", "gopher://x/"],
)
async def test_each_redirect_is_judged_anew(to):
    async with server() as (port, asked):
        hosts = [f"127.0.0.1:{port}"]
        found = await fetched(f"http://127.0.0.1:{port}/away?to={to}", hosts=hosts, private=True)
        assert not found.ok and ("not allowed" in found.text or "Only http" in found.text)
        assert len(asked) == 1


async def test_redirects_are_followed_but_not_for_ever():
    async with server() as (port, asked):
        settings = {"hosts": [f"127.0.0.1:{port}"], "private": True}
        found = await fetched(f"http://127.0.0.1:{port}/away?to=/html", **settings)
        assert found.ok and len(asked) == 2
        found = await fetched(f"http://127.0.0.1:{port}/round", redirects=3, **settings)
        assert not found.ok and "More than 3 redirects" in found.text


@pytest.mark.parametrize(
    ("url", "ok"),
    [
        ("https://en.example.org/x", True),
        ("http://en.example.org:80/x", True),
        ("https://EN.example.org./x", True),
        ("https://en.example.org:8443/x", False),
        ("https://example.org/", False),
        ("https://a.wild.org/", True),
        ("https://a.b.wild.org/", True),
        ("https://wild.org/", False),
        ("https://evilwild.org/", False),
        ("https://en.example.org@evil.org/", False),
        ("https://user:pass@en.example.org/", False),
        ("ftp://en.example.org/", False),
        ("en.example.org", False),
        ("https://[::1/", False),
        ("https://en.example.org:port/", False),
        ("", False),
    ],
)
def test_only_allowed_hosts_are_read(url, ok):
    assert (Fetch(hosts=("en.example.org", "*.wild.org")).refusal(url) == "") == ok


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "ff02::1",
        "::ffff:127.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1", "no address",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_open_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_open_internet(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "hosts", [[], "wikipedia.org", ["https://x.org"], ["*"], [3], ["a b"], ["x.org/path"]]
)
def test_without_hosts_by_name_there_is_no_such_tool(hosts):
    with pytest.raises(UsageError):
        Fetch(hosts=hosts)


def test_any_html_is_read():
    assert page_text("<p>a<p>b<br>c<td>d") == "a\n\nb\nc d"
    assert page_text("<script>" * 3 + "x" + "</b></script" + "<" * 500).count("x") == 0
    assert page_text("") == ""
