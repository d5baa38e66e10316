"""The official Python client against Biplane's MCP server.

    client.py http://127.0.0.1:8080/mcp          streamable HTTP
    client.py biplane mcp -m model.gguf          standard input and output
"""

import asyncio
import json
import sys

from mcp import Client, StdioServerParameters

WANTED = ["chat", "complete", "embed", "tokenize", "list_models", "verify_backends"]


async def check(place, args, mode):
    http = place.startswith("http")
    target = place if http else StdioServerParameters(command=place, args=args)
    steps = []

    async def progress(done, total, message):
        steps.append(done)

    async with Client(target, mode=mode) as client:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == WANTED, tools
        asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
        said = await client.call_tool("chat", asked, progress_callback=progress)
        assert not said.is_error, said
        assert isinstance(said.structured_content["text"], str)
        assert steps, "no progress was told"
        counted = await client.call_tool("tokenize", {"text": "Hello world"})
        assert counted.structured_content["count"] > 0
        assert (await client.call_tool("tokenize", {})).is_error
        many = [client.call_tool("tokenize", {"text": "word " * n}) for n in range(1, 51)]
        counts = [answer.structured_content["count"] for answer in await asyncio.gather(*many)]
        assert counts == sorted(counts) and counts[0] < counts[-1], counts
        resources = (await client.list_resources()).resources
        card = (await client.read_resource(resources[0].uri)).contents[0]
        assert json.loads(card.text)["architecture"]
        prompts = (await client.list_prompts()).prompts
        prompt = await client.get_prompt(prompts[0].name, {"user": "Hi", "system": "Be brief"})
        assert "Be brief" in prompt.messages[0].content.text
        spoken = client.protocol_version
    where = "HTTP" if http else "stdio"
    print(f"Python client over {where}, protocol {spoken}: all good, {len(steps)} times progress")
    return spoken


async def main():
    place, *args = sys.argv[1:]
    assert await check(place, args, "auto") == "2026-07-28"
    assert await check(place, args, "legacy") == "2025-11-25"


asyncio.run(main())
