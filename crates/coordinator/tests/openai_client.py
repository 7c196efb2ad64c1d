"""OpenAI's own Python client against the coordinator.

Needs LARES_TEST_URL (up to and including /v1), LARES_TEST_KEY and LARES_TEST_CHAT_MODEL; with
LARES_TEST_EMBEDDING_MODEL also embeddings. Prints one line a check; the exit code is the verdict.
"""

import asyncio
import json
import os
import sys

import openai

URL = os.environ["LARES_TEST_URL"]
KEY = os.environ["LARES_TEST_KEY"]
CHAT = os.environ["LARES_TEST_CHAT_MODEL"]
EMBEDDING = os.environ.get("LARES_TEST_EMBEDDING_MODEL")

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=300)
HELLO = [{"role": "user", "content": "Say hello in one word."}]


def expect_error(kind, call):
    try:
        call()
    except kind as error:
        assert error.message, error
        body = error.body
        assert isinstance(body, dict) and body["message"] and body["type"], body
        return error
    raise AssertionError(f"expected {kind.__name__}, got an answer")


def models_are_listed_with_their_context():
    names = [model.id for model in client.models.list()]
    assert CHAT in names, names
    model = client.models.retrieve(CHAT)
    assert model.id == CHAT and model.object == "model"
    assert model.lares["embeddings"] is not True


def a_chat_is_answered_with_its_usage():
    answer = client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=16, temperature=0)
    assert answer.choices[0].message.content.strip(), answer
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0, answer.usage
    assert answer._request_id, "no x-request-id"


def a_stream_comes_in_pieces_and_ends():
    pieces, usage = [], None
    stream = client.chat.completions.create(
        model=CHAT, messages=HELLO, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
    assert pieces and "".join(pieces).strip(), pieces
    assert usage and usage.completion_tokens > 0, usage


def a_stream_that_is_closed_early_leaves_the_model_free():
    stream = client.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=512, stream=True)
    next(iter(stream))
    stream.close()
    client.with_options(timeout=60).chat.completions.create(model=CHAT, messages=HELLO, max_tokens=4)


def an_async_client_is_served_too():
    async def ask():
        async with openai.AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=300) as other:
            calls = [other.chat.completions.create(model=CHAT, messages=HELLO, max_tokens=8) for _ in range(3)]
            return await asyncio.gather(*calls)

    assert len(asyncio.run(ask())) == 3


def a_completion_is_answered():
    answer = client.completions.create(model=CHAT, prompt="def add(a, b):\n    return", max_tokens=8, temperature=0)
    assert answer.choices[0].text, answer


def tools_reach_the_model():
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "What is the weather in Paris? Call the tool."}],
        tools=[tool],
        tool_choice="required",
        max_tokens=48,
        temperature=0,
    )
    # Small models write the call into the text; that they know its name, which is in `tools` only, shows it got there.
    message = answer.choices[0].message
    said = message.tool_calls[0].function.name if message.tool_calls else message.content
    assert "get_weather" in said, message


def a_response_format_is_kept_to():
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CHAT,
        messages=[{"role": "user", "content": "A person, as JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}},
        max_tokens=128,
        temperature=0,
    )
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age"} and isinstance(person["age"], int), person


def texts_are_embedded():
    one = client.embeddings.create(model=EMBEDDING, input="a house")
    assert len(one.data) == 1 and any(one.data[0].embedding), one.data
    many = client.embeddings.create(model=EMBEDDING, input=["a house", "a home", "the sea"], encoding_format="float")
    assert [item.index for item in many.data] == [0, 1, 2]
    assert many.usage.prompt_tokens > 0, many.usage


def a_chat_with_an_embedding_model_is_a_bad_request():
    error = expect_error(
        openai.BadRequestError, lambda: client.chat.completions.create(model=EMBEDDING, messages=HELLO)
    )
    assert error.param == "model" and EMBEDDING in error.message, error


def a_wrong_key_is_an_authentication_error():
    stranger = openai.OpenAI(base_url=URL, api_key="lares_wrong", max_retries=0)
    expect_error(openai.AuthenticationError, lambda: stranger.chat.completions.create(model=CHAT, messages=HELLO))
    expect_error(openai.AuthenticationError, stranger.models.list)


def an_unknown_model_is_not_found_and_names_those_there_are():
    wrong = CHAT + "x"
    for call in (
        lambda: client.chat.completions.create(model=wrong, messages=HELLO),
        lambda: client.models.retrieve(wrong),
    ):
        error = expect_error(openai.NotFoundError, call)
        assert error.code == "model_not_found" and f"`{CHAT}`" in error.message, error


def bad_requests_name_the_parameter():
    error = expect_error(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=CHAT, messages=HELLO, extra_body={"stream": "yes"}),
    )
    assert error.param == "stream", error
    # This one is the model server's own, passed through.
    expect_error(openai.BadRequestError, lambda: client.chat.completions.create(model=CHAT, messages="not a list"))


def main():
    checks = [
        models_are_listed_with_their_context,
        a_chat_is_answered_with_its_usage,
        a_stream_comes_in_pieces_and_ends,
        a_stream_that_is_closed_early_leaves_the_model_free,
        an_async_client_is_served_too,
        a_completion_is_answered,
        tools_reach_the_model,
        a_response_format_is_kept_to,
        a_wrong_key_is_an_authentication_error,
        an_unknown_model_is_not_found_and_names_those_there_are,
        bad_requests_name_the_parameter,
    ]
    embedding_checks = [texts_are_embedded, a_chat_with_an_embedding_model_is_a_bad_request]
    if EMBEDDING:
        checks += embedding_checks
    else:
        for check in embedding_checks:
            print(f"SKIP {check.__name__}: LARES_TEST_EMBEDDING_MODEL is not set")
    failed = 0
    for check in checks:
        try:
            check()
            print(f"ok   {check.__name__}")
        except Exception as error:  # noqa: BLE001 - one failed check must not hide the others
            failed += 1
            print(f"FAIL {check.__name__}: {type(error).__name__}: {error}")
    print(f"openai {openai.__version__}: {len(checks) - failed} of {len(checks)} passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
