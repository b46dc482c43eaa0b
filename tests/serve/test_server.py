"""The server as OpenAI's own client sees it: answers, streams, errors, many at once."""

import concurrent.futures
import json
import math
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from segpt.config.sample import SampleSpec
from segpt.data.chat import JinjaTemplate
from segpt.serve.limits import Limits
from segpt.stages.chat_template import ModelTemplate
from segpt.stages.sample import sample
from tests.serve.servers import NAME, Running, running

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    limits = Limits(parallel=3, waiting=300, tokens=2000, body=20_000, seconds=900)
    with running(limits) as started:
        yield started


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def expected(server: Running, prompt: str, tokens: int = 12) -> str:
    """What `segpt sample` writes."""
    spec = SampleSpec(temperature=0, tokens=tokens, top_k=0, top_p=1, repetition_penalty=1)
    return sample(server.opened, [prompt.encode()], spec).texts[0].decode("utf-8", "replace")


def ask(prompt: str = "The json module", **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": prompt}], **GREEDY, **more}


def post(server: Running, path: str, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"} | headers
    return httpx.post(server.url + path, content=content, headers=headers, timeout=60)


def test_the_greedy_answer_is_that_of_sample(server: Running, client: Any) -> None:
    text = expected(server, "The json module")
    done = client.completions.create(model=NAME, prompt="The json module", **GREEDY)
    assert done.choices[0].text == text
    assert (done.choices[0].finish_reason, done.usage.completion_tokens) == ("length", 12)
    assert done.usage.total_tokens == done.usage.prompt_tokens + 12
    said = client.chat.completions.create(**ask())
    assert said.choices[0].message.content == text
    ids = [int(i) for i in server.opened.codec.encode(b"The json module")]
    assert client.completions.create(model=NAME, prompt=ids, **GREEDY).choices[0].text == text


def test_a_stream_adds_up_to_the_answer(server: Running, client: Any) -> None:
    text = expected(server, "The json module")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**ask(), **options))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) > 5
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1
    bare = client.completions.create(model=NAME, prompt="The json module", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in bare) == text


def test_seeds_decide_and_settings_are_those_of_sample(server: Running, client: Any) -> None:
    spec = SampleSpec(tokens=20, seed=5)
    text = sample(server.opened, [b"The"], spec).texts[0].decode("utf-8", "replace")
    extra = {"top_k": spec.top_k, "repetition_penalty": spec.repetition_penalty}
    shared: dict[str, Any] = {"model": NAME, "prompt": "The", "max_tokens": 20}
    done = client.completions.create(
        **shared, seed=5, temperature=0.7, top_p=0.95, extra_body=extra
    )
    assert done.choices[0].text == text
    free = {client.completions.create(**shared, temperature=2).choices[0].text for _ in range(4)}
    assert len(free) > 1


def test_a_stop_ends_the_answer_and_is_not_in_it(server: Running, client: Any) -> None:
    text = expected(server, "The json module", 40)
    stop = text[20:23]
    for stream in (False, True):
        done = client.completions.create(
            model=NAME,
            prompt="The json module",
            temperature=0,
            max_tokens=40,
            stop=[stop, "\0"],
            stream=stream,
        )
        parts = list(done) if stream else [done]
        assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_probabilities_are_those_of_the_model(client: Any) -> None:
    done = client.chat.completions.create(**ask(logprobs=True, top_logprobs=3))
    tokens = done.choices[0].logprobs.content
    assert len(tokens) == 12
    assert "".join(token.token for token in tokens) == done.choices[0].message.content
    for token in tokens:
        assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy takes the likeliest
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-9
    bare = client.completions.create(model=NAME, prompt="The json module", logprobs=2, **GREEDY)
    assert bare.choices[0].logprobs.token_logprobs == [token.logprob for token in tokens]


def test_the_model_is_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "segpt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_errors_are_those_that_the_client_knows(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**ask() | {"model": "gpt-5"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as large:
        client.chat.completions.create(**ask() | {"max_tokens": 10**9})
    assert large.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(**ask("word " * 1000))
    assert long.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"unheard": 1}, "unheard"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": [], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ],
)
def test_a_wrong_field_is_named(server: Running, change: Any, param: str) -> None:
    answer = post(server, CHAT, ask() | change)
    assert answer.status_code == (404 if change == {"model": "x"} else 400), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert param.split(".")[0].split("[")[0] in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"[" * 20_000, b'{"a": NaN}', b"\xff", b"1" * 9000]
)
def test_what_is_no_json_object_is_refused(server: Running, body: bytes) -> None:
    for path in (CHAT, TEXT):
        answer = post(server, path, body)
        assert answer.status_code == 400
        assert "JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [10**9], [-1], {"a": 1}, 3, [1.5]])
def test_a_wrong_prompt_is_refused(server: Running, prompt: Any) -> None:
    answer = post(server, TEXT, {"model": NAME, "prompt": prompt})
    assert answer.status_code == 400, answer.text


def test_a_large_body_is_refused_before_it_is_read(server: Running) -> None:
    assert post(server, CHAT, ask("x" * 30_000)).status_code == 413
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: "
            "application/json\r\nContent-Length: 99999999999\r\n\r\n".encode()
        )
        assert b" 413 " in plain.recv(100)

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    assert httpx.post(server.url + CHAT, content=chunks(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "evil.example@127.0.0.1"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "multipart/form-data; boundary=a"}, 415),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
    ],
)
def test_other_sites_get_nothing(server: Running, headers: dict[str, str], status: int) -> None:
    answer = post(server, CHAT, ask(), **headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert post(server, CHAT, ask(), origin=server.url).status_code == 200


def test_there_are_no_other_paths(server: Running) -> None:
    for path in ("/../pyproject.toml", "/chat.js/../app.py", "/%2e%2e/app.py", "/docs", "/v1"):
        assert httpx.get(server.url + path).status_code == 404
    assert httpx.get(server.url + CHAT).status_code == 405
    assert httpx.request("OPTIONS", server.url + CHAT).status_code == 405
    page = httpx.get(server.url)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http" not in page.text.replace("http-equiv", "")


def together(server: Running, count: int, tokens: int) -> list[Any]:
    """Ask many at once, each its own question: every other one as a stream."""

    def one(number: int) -> Any:
        body = {"model": NAME, "prompt": f"Module {number}", "temperature": 0}
        with httpx.Client(timeout=600) as client:
            more = {"max_tokens": tokens, "stream": number % 2 == 1}
            return client.post(server.url + TEXT, json=body | more)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def text_of(answer: Any) -> str:
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return str(answer.json()["choices"][0]["text"])
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


@pytest.mark.parametrize(
    ("count", "tokens"), [(30, 6), pytest.param(200, 24, marks=pytest.mark.campaign)]
)
def test_many_at_once_all_get_their_own_answer(server: Running, count: int, tokens: int) -> None:
    answers = together(server, count, tokens)
    assert [answer.status_code for answer in answers] == [200] * count
    for number, answer in enumerate(answers):
        assert text_of(answer) == expected(server, f"Module {number}", tokens)
    assert server.idle()


def test_more_than_can_wait_are_turned_away() -> None:
    with running(Limits(parallel=1, waiting=2, tokens=2000)) as server:
        answers = together(server, 16, 100)
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 3
        for answer in answers:
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["error"]["code"] == "overloaded"
        assert server.idle()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_goes_frees_the_place(stream: bool) -> None:
    with running(Limits(parallel=1, waiting=1, tokens=100_000, seconds=600)) as server:
        body = ask(max_tokens=100_000, stream=stream)
        for _ in range(3):
            content = json.dumps(body).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as plain:
                plain.sendall(
                    f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
                    f"\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                    + content
                )
                if stream:
                    assert b"200" in plain.recv(100)
                while server.engine.busy != (1, 0):
                    time.sleep(0.01)
            assert server.idle(10)
        assert post(server, CHAT, ask()).status_code == 200


def test_an_answer_ends_when_its_time_is_over() -> None:
    with running(Limits(tokens=100_000, seconds=1)) as server:
        begun = time.monotonic()
        done = post(server, CHAT, ask(max_tokens=100_000)).json()
        assert time.monotonic() - begun < 5
        assert done["choices"][0]["finish_reason"] == "length"
        assert 0 < done["usage"]["completion_tokens"] < 100_000


def test_requests_take_turns() -> None:
    """A short answer does not wait for a long one that came before."""
    with running(Limits(parallel=2, tokens=100_000, seconds=600)) as server:
        body = ask(max_tokens=100_000, stream=True)
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=60) as long:
            lines = long.iter_lines()
            next(lines)
            assert post(server, CHAT, ask()).status_code == 200
            end = time.monotonic() + 10
            while server.engine.busy != (1, 0):  # the long one goes on alone
                assert time.monotonic() < end
                time.sleep(0.01)
        assert server.idle(10)


def test_the_template_of_an_imported_model_is_applied_and_may_refuse() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}Q: {{ m.content | trim }}\nA:{% endfor %}"
    )
    template = ModelTemplate(JinjaTemplate(source), "x.jinja")
    with running(Limits(), template) as server:
        done = post(server, CHAT, ask(" What? ")).json()
        assert done["choices"][0]["message"]["content"] == expected(server, "Q: What?\nA:")
        refused = post(server, CHAT, ask() | {"messages": [{"role": "system", "content": "x"}]})
        assert refused.status_code == 400
        assert "no system" in refused.json()["error"]["message"]
