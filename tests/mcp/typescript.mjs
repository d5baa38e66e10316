// The official TypeScript client against Biplane's MCP server.
//   node typescript.mjs http://127.0.0.1:8080/mcp          streamable HTTP
//   node typescript.mjs biplane mcp -m model.gguf          standard input and output
import assert from "node:assert/strict";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [place, ...args] = process.argv.slice(2);
const http = place.startsWith("http");
const transport = http
  ? new StreamableHTTPClientTransport(new URL(place))
  : new StdioClientTransport({ command: place, args, stderr: "inherit" });
const client = new Client({ name: "test", version: "1" });
await client.connect(transport);

const { tools } = await client.listTools();
const wanted = ["chat", "complete", "embed", "tokenize", "list_models", "verify_backends"];
assert.deepEqual(tools.map((tool) => tool.name), wanted);
await client.ping();
await client.setLoggingLevel("info");

let steps = 0;
const said = await client.callTool(
  { name: "chat", arguments: { messages: [{ role: "user", content: "Hello" }], max_tokens: 8, temperature: 0 } },
  undefined,
  { onprogress: () => steps++ },
);
assert.ok(!said.isError, JSON.stringify(said));
assert.equal(typeof said.structuredContent.text, "string");
assert.ok(steps > 0, "no progress was told");
const counted = await client.callTool({ name: "tokenize", arguments: { text: "Hello world" } });
assert.ok(counted.structuredContent.count > 0);
const wrong = await client.callTool({ name: "tokenize", arguments: {} });
assert.ok(wrong.isError);
await assert.rejects(client.callTool({ name: "no_such_tool", arguments: {} }));

// A call that is given up ends on the server too: the next one is answered at once.
const stop = new AbortController();
const long = client.callTool(
  { name: "complete", arguments: { prompt: "Once upon a time", max_tokens: 1500, temperature: 0 } },
  undefined,
  { signal: stop.signal, onprogress: () => stop.abort() },
);
await assert.rejects(long);

const { resources } = await client.listResources();
const { contents } = await client.readResource({ uri: resources[0].uri });
assert.ok(JSON.parse(contents[0].text).architecture);
const { prompts } = await client.listPrompts();
const { messages } = await client.getPrompt({ name: prompts[0].name, arguments: { user: "Hi", system: "Be brief" } });
assert.match(messages[0].content.text, /Be brief[\s\S]*Hi/);
await client.close();
console.log(`TypeScript client over ${http ? "HTTP" : "stdio"}: all good, ${steps} times progress`);
