// A server that stands in for Biplane's: serves the page under its content security policy and answers by what the
// last user message begins with. `state` changes its behaviour, `requests` holds what it was asked.
import http from "node:http";
import { readFile } from "node:fs/promises";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { GIANT, MARKDOWN, XSS } from "./texts.js";

const WEB = fileURLToPath(new URL("../../crates/server/web/", import.meta.url));
const TYPES = { ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8" };
export const CSP =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const words = (text) => text.match(/\s*\S+|\s+$/g) ?? [];

export async function startMock(port = 0) {
  const mock = { requests: [], aborted: 0, state: { health: { status: "ok" }, key: null, busy: 0, retryAfter: "1", models: ["tiny-one", "tiny-two"] } };
  const server = http.createServer((request, response) => {
    handle(mock, request, response).catch((error) => {
      if (!response.headersSent) response.writeHead(500);
      response.end(String(error));
    });
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  mock.url = `http://127.0.0.1:${server.address().port}/`;
  mock.close = () => (server.closeAllConnections(), new Promise((resolve) => server.close(resolve)));
  return mock;
}

function json(response, status, body, headers = {}) {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(body));
}

const failure = (message, type, code = null) => ({ error: { message, type, param: null, code } });

async function handle(mock, request, response) {
  const { state } = mock;
  const path = new URL(request.url, mock.url).pathname;
  if (path === "/health") return json(response, state.health.status === "ok" ? 200 : 503, state.health);
  if (!path.startsWith("/v1/")) return file(path, response);
  if (state.key && request.headers.authorization !== `Bearer ${state.key}`) {
    return json(response, 401, failure("This server wants an API key.", "authentication_error", "invalid_api_key"));
  }
  if (path === "/v1/models") return json(response, 200, { object: "list", data: state.models.map((id) => ({ id, object: "model" })) });
  if (path !== "/v1/chat/completions") return json(response, 404, failure(`No ${path}.`, "not_found"));
  let body = "";
  for await (const piece of request) body += piece;
  const asked = JSON.parse(body);
  mock.requests.push(asked);
  if (state.health.status === "loading") return json(response, 503, failure("The model is loading.", "unavailable", "loading"));
  if (state.busy > 0) {
    state.busy--;
    return json(response, 429, failure("Too many requests.", "rate_limit"), { "retry-after": state.retryAfter });
  }
  const last = asked.messages.findLast((message) => message.role === "user").content;
  if (last.startsWith("refused")) return json(response, 400, failure("top_k must be 0 or more, and is -1.", "invalid_request_error"));
  if (last.startsWith("html error")) {
    response.writeHead(502, { "content-type": "text/html" });
    return response.end("<h1>Bad gateway</h1>");
  }
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  let open = true;
  response.on("close", () => {
    if (!response.writableFinished) mock.aborted++;
    open = false;
  });
  await answer(last, asked, response, () => open, state);
}

async function file(path, response) {
  const name = path === "/" ? "index.html" : path.slice(1);
  if (!/^[\w-]+\.(html|css|js)$/.test(name)) return json(response, 404, failure(`No ${path}.`, "not_found"));
  try {
    const text = await readFile(join(WEB, name));
    response.writeHead(200, { "content-type": TYPES[extname(name)], "content-security-policy": CSP, "x-content-type-options": "nosniff" });
    response.end(text);
  } catch {
    json(response, 404, failure(`No ${path}.`, "not_found"));
  }
}

async function answer(last, asked, response, open, state) {
  const event = (value) => `data: ${JSON.stringify(value)}\n\n`;
  const frame = (delta, finish = null) => event({ id: "c", object: "chat.completion.chunk", model: asked.model, choices: [{ index: 0, delta, finish_reason: finish }] });
  const send = (text) => open() && response.write(text);
  const text = (content) => send(frame({ content }));
  let count = 0;
  const say = async (content, ms = 0) => {
    for (const word of words(content)) {
      if (!open()) return;
      text(word);
      count++;
      if (ms) await pause(ms);
    }
  };
  let finish = "stop";
  let timings = { prompt_n: 7, cached_n: 5, predicted_n: 42, prompt_per_second: 350.5, predicted_per_second: 98.76, time_to_first_token_ms: 123 };
  send(frame({ role: "assistant", content: "" }));
  if (last.startsWith("slow")) await say(Array.from({ length: 2000 }, (_, at) => `w${at}`).join(" "), 25);
  else if (last.startsWith("long slow")) await say(Array.from({ length: 4000 }, (_, at) => `Line ${at}.\n\n`).join(""), 8);
  else if (last.startsWith("markdown")) await bytes(frame({ content: MARKDOWN }), response);
  else if (last.startsWith("typed markdown")) for (const char of MARKDOWN) text(char);
  else if (last.startsWith("xss")) await say(XSS);
  else if (last.startsWith("giant")) {
    for (let at = 0; at < GIANT.length; at += 997) {
      text(GIANT.slice(at, at + 997));
      if (at % 9970 === 0) await pause(1);
    }
  } else if (last.startsWith("think")) {
    for (const word of words("First I consider the *question*, then I weigh it.")) {
      send(frame({ reasoning_content: word }));
      await pause(20);
    }
    await say("The answer is **42**.");
  } else if (last.startsWith("tools")) {
    await say("Let me look.");
    send(frame({ tool_calls: [{ index: 0, id: "call_a", type: "function", function: { name: "weather", arguments: "" } }] }));
    for (const piece of ['{"city":', '"Bern",', '"days":2}']) send(frame({ tool_calls: [{ index: 0, function: { arguments: piece } }] }));
    send(frame({ tool_calls: [{ index: 1, id: "call_b", type: "function", function: { name: "clock", arguments: "{}" } }] }));
    if (last.startsWith("tools run")) {
      send(frame({ biplane: { tool_result: { tool_call_id: "call_a", name: "weather", content: '{"sky":"<b>clear</b>"}' } } }));
      send(frame({ biplane: { tool_result: { tool_call_id: "call_b", name: "clock", content: "no clock here", is_error: true } } }));
      await say("It is clear.");
    } else finish = "tool_calls";
  } else if (last.startsWith("broken")) {
    await say("This goes well until");
    return response.end(event(failure("The engine ran out of memory.", "server_error")));
  } else if (last.startsWith("cut")) {
    await say("This is only the beginning of");
    return response.end();
  } else if (last.startsWith("limit")) {
    await say("As far as it goes");
    finish = "length";
  } else if (last.startsWith("bare")) {
    await say("one two three four five", 40);
    send(frame({}, "stop"));
    return response.end("data: [DONE]\n\n");
  } else if (last.startsWith("usage")) {
    await say("one two three", 40);
    timings = undefined;
  } else if (state.reply) await say(state.reply);
  else await say(`You said: ${last.slice(0, 200)}`, 2);
  if (!open()) return;
  send(": keep-alive\n\n");
  send(frame({}, finish));
  send(event({ id: "c", object: "chat.completion.chunk", model: asked.model, choices: [], usage: { prompt_tokens: 12, completion_tokens: count || 42, total_tokens: 54 }, timings }));
  response.end("data: [DONE]\n\n");
}

/** Writes a text so that pieces end within characters and lines, with comments and CRLF in between. */
async function bytes(text, response) {
  const all = Buffer.from(`: comment\r\n${text.replaceAll("\n\n", "\r\n\r\n")}`);
  for (let at = 0; at < all.length; at += 61) {
    response.write(all.subarray(at, at + 61));
    if (at % 610 === 0) await pause(1);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock(Number(process.env.PORT ?? 8099));
  console.log(`The page is at ${mock.url}`);
}
